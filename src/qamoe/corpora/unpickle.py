"""Reading pickles from strangers: only arrays, numbers and strings, never code."""

import pickle
from pathlib import Path
from typing import Any

from qamoe.errors import Refused

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{place}", name)
        for core in ("core", "_core")
        for place, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
    ("_codecs", "encode"),  # how protocols 0 to 2 spell bytes
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("builtins", "slice"),
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read(path: Path) -> Any:
    """Load a pickle of plain containers and numpy arrays. Raises Refused for anything else."""
    try:
        with path.open("rb") as file:
            return _Arrays(file).load()
    except FileNotFoundError:
        raise Refused(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise Refused(f"{path} is a folder; a pickle file is needed.") from None
    except pickle.UnpicklingError as error:
        raise Refused(f"{path} is refused: {error}; only numpy arrays and plain values are read.") from None
    except (
        EOFError,
        OverflowError,
        ValueError,
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        TypeError,
        UnicodeDecodeError,
    ):
        raise Refused(f"{path} is no readable pickle: it is damaged or cut short.") from None
