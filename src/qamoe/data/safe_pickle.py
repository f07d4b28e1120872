"""Read untrusted pickles: only arrays, numbers and strings, never code.

The opcodes are checked before anything is loaded: a file of 20 bytes may name memo slot 4,000,000,000, and the
unpickler would allocate all of them. Tensors are returned as arrays.
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
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
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
# Width in bytes of the length prefix of an opcode's argument.
_LENGTH_WIDTH = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_GET = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_DEEPEST = 100  # nested tuples; arrays need a handful
_OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


def _encode(text: str, encoding: str) -> bytes:
    """Decode bytes as written by protocols 0 to 2; only latin1, because other encodings may take very long."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it uses the encoding {encoding[:40]!r}")
    return text.encode("latin-1")


def _storage(content: bytes) -> np.ndarray:
    """Return the numbers of a torch storage. torch's own function could run code."""
    import io
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # typed storages are deprecated, but old files have them
            storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return torch.tensor([], dtype=storage.dtype).set_(storage).numpy()
    except Exception as error:  # torch raises almost any exception for a damaged storage
        raise pickle.UnpicklingError(f"it holds a damaged torch storage ({type(error).__name__})") from None


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """Return a tensor as a new array. Raises UnpicklingError if its shape reaches beyond its storage."""
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
            dotted = f"{module}.{name}"[:80]
            raise pickle.UnpicklingError(f"it refers to {dotted if dotted.isprintable() else repr(dotted)}")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside the file")


def read(path: Path, encoding: str = "ASCII") -> Any:
    """Load a pickle of plain containers, numpy arrays and torch tensors (as arrays).

    `encoding` is that of strings written by Python 2. Raises UserError for any other content.
    """
    try:
        with path.open("rb") as file:
            _check_opcodes(file)
            file.seek(0)
            return _Arrays(file, encoding=encoding).load()
    except FileNotFoundError:
        raise UserError(f"File not found: {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; it must be a pickle file.") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} was rejected: {error}; only arrays and plain values are read.") from None
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
        raise UserError(f"{path} is not a readable pickle: it is damaged or truncated.") from None


def _check_opcodes(file: IO[bytes]) -> None:
    """Raise UnpicklingError for an impossible memo slot or deeply nested tuples, EOFError for a truncated argument.

    Picklers number their memo slots one by one, so no valid slot exceeds the number of opcodes so far. Python hashes a
    tuple that is a key recursively and without checking its stack, so deep nesting would crash the process.
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
        slot = len(memo)  # the slot of MEMOIZE
        if op.name in _PUT or op.name in _GET:
            slot = int(argument) if op.name in ("PUT", "GET") else int.from_bytes(argument, "little")
            if op.name in _PUT and not 0 <= slot <= count:
                raise pickle.UnpicklingError(f"it names memo slot {slot} after {count} opcodes")
        if op.name == "FRAME" and int.from_bytes(argument, "little") > size - file.tell():
            raise EOFError
        if op.name == "STOP":
            return
        if _depth(op, stack, memo, slot) > _DEEPEST:
            raise pickle.UnpicklingError(f"it nests more than {_DEEPEST} tuples")


def _depth(op: pickletools.OpcodeInfo, stack: list[int | None], memo: dict[int, int], slot: int) -> int:
    """Simulate an opcode and return how deeply tuples are nested in its result.

    The stack and the memo hold the nesting depth of each value; a mark on the stack is None.
    """
    if op.name in _PUT or op.name == "MEMOIZE":
        memo[slot] = (stack[-1] if stack else 0) or 0
        return 0
    depths = [memo.get(slot, 0) if op.name in _GET else 0]
    operands = op.stack_before
    if pickletools.markobject in operands:
        while stack and (value := stack.pop()) is not None:
            depths.append(value)
        operands = operands[: operands.index(pickletools.markobject)]
    for _ in operands[: len(stack)]:
        depths.append(stack.pop() or 0)
    depth = max(depths) + (op.name in _TUPLES)
    stack.extend(None if result is pickletools.markobject else depth for result in op.stack_after)
    return depth
