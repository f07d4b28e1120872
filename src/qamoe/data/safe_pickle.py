"""Reading pickles from strangers: only arrays, numbers and strings, never code.

The opcodes are looked at before anything is loaded: a file of 20 bytes may name memo slot 4,000,000,000, and the
unpickler would make room for all of them. Tensors come back as arrays.
"""

import math
import os
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any

import numpy as np

from qamoe.errors import UserError

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
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("builtins", "slice"),
    ("collections", "OrderedDict"),
}
# How an opcode says how long its argument is: the width in bytes of the length that stands before it.
_LENGTH_WIDTH = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_GET = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_DEEPEST = 100  # tuples in tuples; arrays need a handful
_OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


def _encode(text: str, encoding: str) -> bytes:
    """How protocols 0 to 2 spell bytes; other encodings than latin1 may take very long, so none is asked for."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding[:40]!r}")
    return text.encode("latin-1")


def _storage(content: bytes) -> np.ndarray:
    """The numbers of a torch storage. torch's own function of that name would run code."""
    import io
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # typed storages are deprecated; old files hold them
            storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return torch.tensor([], dtype=storage.dtype).set_(storage).numpy()
    except Exception as error:  # torch raises nearly anything on a damaged storage
        raise pickle.UnpicklingError(f"it holds a damaged torch storage ({type(error).__name__})") from None


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A tensor as an array of its own; its shape may not reach beyond its storage."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else offset
    if min((offset, *size, *stride)) < 0 or last >= len(storage) + (not all(size)):
        raise pickle.UnpicklingError("it holds a tensor that reaches beyond its storage")
    if math.prod(size) > len(storage):
        raise pickle.UnpicklingError("it holds a tensor that is larger than its storage")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


_REPLACED = {
    ("_codecs", "encode"): _encode,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REPLACED:
            return _REPLACED[module, name]
        if (module, name) not in _ALLOWED:
            asked = f"{module}.{name}"[:80]
            raise pickle.UnpicklingError(f"it asks for {asked if asked.isprintable() else repr(asked)}")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for an object that is kept elsewhere")


def read(path: Path, encoding: str = "ASCII") -> Any:
    """Load a pickle of plain containers, numpy arrays and torch tensors (as arrays). Raises UserError for anything
    else.

    `encoding` is that of the strings of Python 2.
    """
    try:
        with path.open("rb") as file:
            _look_at_opcodes(file)
            file.seek(0)
            return _Arrays(file, encoding=encoding).load()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a pickle file is needed.") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: {error}; only arrays and plain values are read.") from None
    except (
        EOFError,
        OverflowError,
        ValueError,
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        RecursionError,
        TypeError,
        UnicodeDecodeError,
    ):
        raise UserError(f"{path} is no readable pickle: it is damaged or cut short.") from None


def _look_at_opcodes(file: IO[bytes]) -> None:
    """Raises UnpicklingError for a memo slot that no pickler would name and for tuples in tuples without an end,
    EOFError for an argument beyond the end.

    Picklers number their memo one by one, so a slot above the count of opcodes so far is none of theirs. A tuple that
    is a key is hashed with all that lies in it, which Python does without a look at its stack: it would crash.
    """
    size = os.fstat(file.fileno()).st_size
    count = 0
    stack: list[int | None] = []
    memo: dict[int, int] = {}
    while True:
        op = _OPCODES.get(file.read(1))
        if op is None:
            raise EOFError
        count += 1
        argument = b""
        if op.arg is not None and op.arg.n >= 0:
            argument = file.read(op.arg.n)
        elif op.arg is not None and op.arg.n == pickletools.UP_TO_NEWLINE:
            argument = file.readline()
            if op.name in ("GLOBAL", "INST"):  # a module, then a name
                file.readline()
        elif op.arg is not None:
            length = int.from_bytes(file.read(_LENGTH_WIDTH[op.arg.n]), "little")
            if length > size - file.tell():
                raise EOFError
            file.seek(length, os.SEEK_CUR)
        slot = len(memo)  # of MEMOIZE
        if op.name in _PUT or op.name in _GET:
            slot = int(argument) if op.name in ("PUT", "GET") else int.from_bytes(argument, "little")
            if op.name in _PUT and not 0 <= slot <= count:
                raise pickle.UnpicklingError(f"it names memo slot {slot} after {count} opcodes")
        if op.name == "FRAME" and int.from_bytes(argument, "little") > size - file.tell():
            raise EOFError
        if op.name == "STOP":
            return
        if _depth(op, stack, memo, slot) > _DEEPEST:
            raise pickle.UnpicklingError(f"it holds more than {_DEEPEST} tuples in each other")


def _depth(op: pickletools.OpcodeInfo, stack: list[int | None], memo: dict[int, int], slot: int) -> int:
    """Follow an opcode, and say how many tuples lie in each other in what it makes.

    The stack and the memo hold that number of each value; a mark on the stack is None.
    """
    if op.name in _PUT or op.name == "MEMOIZE":
        memo[slot] = (stack[-1] if stack else 0) or 0
        return 0
    taken = [memo.get(slot, 0) if op.name in _GET else 0]
    wanted = op.stack_before
    if pickletools.markobject in wanted:
        while stack and (value := stack.pop()) is not None:
            taken.append(value)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    for _ in wanted[: len(stack)]:
        taken.append(stack.pop() or 0)
    depth = max(taken) + (op.name in _TUPLES)
    stack.extend(None if made is pickletools.markobject else depth for made in op.stack_after)
    return depth
