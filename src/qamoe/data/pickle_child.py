"""Interpret a pickle of unknown origin in a process of its own: plain values and arrays, and nothing else.

data/safe_pickle.py starts it with `python -I -S`, so it imports no package. stdin is the pickle. stdout is a
temporary file: a pickle of the values, in which an array is a call of `array` with the place of its bytes in the file,
or, with exit code REJECTED, the end of a sentence about the file.

No opcode calls anything that the file names, and none allocates more than the bytes of its own argument. A dtype is
its code and byte order; all else in its state is ignored. An array exists only if its bytes do.
"""

from __future__ import annotations

import _pickle
import _signal  # the module signal takes 3 ms to import
import math
import mmap
import os
import resource
import struct
from codecs import escape_decode  # type: ignore[attr-defined]  # as Python's own unpickler

TYPE_CHECKING = False  # typing is not imported, because it would take half of the time of this process
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEEPEST = 32  # containers within containers; the deepest layout that we know has seven
SHARED = 16  # times that a file's size may be repeated by references to values that the file has once
SPARE_BYTES, SPARE_ITEMS = 64 << 20, 100_000  # in addition, because a small file may repeat a value often
REJECTED = 3
MEMORY, SECONDS = 512 << 20, 10  # of this process, for a small file
PATIENCE = 30  # times as long as its time on a processor may be waited for
_LONGEST_INTEGER = 16  # bytes; the number at the start of a torch storage has ten
_INLINE = {"bytes": 256, "text": 1 << 16, "old": 1 << 16}  # bytes that are copied; of longer values, the place is kept
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4",
    "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "b1",
    "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16",
}  # fmt: skip
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SCALARS = {type(None), bool, int, float}
DAMAGED = (EOFError, IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error)


class RefusedError(Exception):
    """The file holds what is not plain; the message continues "FILE was rejected: "."""


class Name(str):
    """A global that the file names, `module.name`."""


class Span:
    """The place of a value in the file.

    form: "bytes"; "text", which is UTF-8; "latin1", UTF-8 of letters that are one byte each; "old", which is a string
    of Python 2 and so text or bytes.
    """

    def __init__(self, offset: int, length: int, form: str) -> None:
        self.offset, self.length, self.form = offset, length, form

    def __reduce__(self) -> Any:
        return span, (self.offset, self.length, self.form)


class DType:
    """A dtype: kind and size as numpy writes them (`f4`, `U5`), and its byte order."""

    def __init__(self, code: str) -> None:
        kind, size = code[:1], code[1:]
        if not (size.isascii() and size.isdigit() and len(size) < 10):
            raise RefusedError(f"it holds an array of dtype {code[:40]!r}")
        if int(size) not in _SIZES.get(kind, (int(size),) if kind in "SUO" else ()):
            raise RefusedError(f"it holds an array of dtype {code[:40]!r}")
        self.code, self.kind, self.order = code, kind, "|"
        self.itemsize = int(size) * (4 if kind == "U" else 1)

    def __str__(self) -> str:
        return "O" if self.kind == "O" else self.order + self.code


class Array:
    """An array or, with shape None, a numpy scalar. content: bytes, their place, or the items of an object array."""

    def __init__(self) -> None:
        self.dtype: DType | None = None
        self.shape: tuple[int, ...] | None = None
        self.layout: Any = "C"
        self.content: Any = None

    def fill(self, dtype: Any, shape: Any, layout: Any, content: Any) -> Array:
        """Set everything once. Raises RefusedError if the bytes are not those of the array."""
        if self.dtype is not None or type(dtype) is not DType:
            raise RefusedError("it holds an array without a plain dtype, or one that is changed later")
        self.dtype, self.shape, self.layout, self.content = dtype, shape, layout, content
        if shape is not None and (type(shape) is not tuple or len(shape) > DEEPEST):
            raise RefusedError("it holds an array with an impossible shape")
        items = largest = 1
        for n in shape or ():
            if type(n) is not int or not 0 <= n < 2**48:
                raise RefusedError("it holds an array with an impossible shape")
            items, largest = items * n, largest * (n or 1)
        if dtype.kind == "O":
            if shape is None or type(content) is not list or len(content) != items:
                raise RefusedError("it holds an array of objects without its objects")
        elif not _has_length(content, items * dtype.itemsize) or max(dtype.itemsize, 1) * largest > 2**60:
            raise RefusedError("it holds an array whose bytes are not in the file")
        return self

    def __reduce__(self) -> Any:
        return array, (str(self.dtype), self.shape, self.layout, _place(self.content))

    def size(self) -> tuple[int, int]:
        """Return items and bytes: what a loop over the array meets, and what a copy of it takes."""
        assert self.dtype is not None
        shape = self.shape or ()
        reached = shape[: shape.index(0)] if 0 in shape else shape if self.dtype.kind in "SUO" else shape[:1]
        return math.prod(reached) + 1, math.prod(shape) * self.dtype.itemsize


class Storage:
    """The numbers of torch tensors; see Array."""

    def __init__(self, dtype: DType, length: int, content: Any) -> None:
        self.dtype, self.length, self.content = dtype, length, content


class Tensor:
    """A part of a storage: a tensor's numbers, checked to be within it."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def __reduce__(self) -> Any:
        return tensor, (str(self.storage.dtype), _place(self.storage.content), self.offset, self.shape, self.strides)


def array(*_: Any) -> Any:
    """Stand for safe_pickle's function of this name in the pickle on stdout, as `span` and `tensor` do."""


def span(*_: Any) -> Any: ...


def tensor(*_: Any) -> Any: ...


def _has_length(content: Any, length: int) -> bool:
    """Return whether content has so many bytes; safe_pickle.py counts those of "latin1", which have one or two."""
    if type(content) is not Span:
        return type(content) is bytes and len(content) == length
    if content.form == "latin1":
        return bool(length <= content.length <= 2 * length)
    return content.form == "bytes" and bool(content.length == length)


def _place(content: Any) -> Any:
    return (content.offset, content.length, content.form) if type(content) is Span else content


class Machine:
    """The stack and the memo of an unpickler, over the bytes of `data` from `start`. `storages`: within torch's."""

    def __init__(self, data: Any, start: int, end: int, encoding: str, storages: bool = False) -> None:
        self.data, self.at, self.end, self.encoding, self.storages = data, start, end, encoding, storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Interpret up to STOP. Raises RefusedError for what is not plain, and one of DAMAGED for a damaged file."""
        data, end = self.data, self.end
        results, actions = _RESULT_OF, _ACTION_OF
        while self.at < end:
            code = data[self.at]
            self.at += 1
            result = results[code]
            if result is not None:
                value = result(self)  # before self.stack is read, which a mark replaces
                self.stack.append(value)
            elif code == _STOP:
                return self.stack.pop()
            else:
                action = actions[code]
                if action is None:
                    raise RefusedError(f"it has the opcode {code:#04x}, which plain values do not need")
                action(self)
        raise EOFError

    def take(self, length: int) -> bytes:
        start = self.at
        if length > self.end - start:
            raise EOFError
        self.at = start + length
        return bytes(self.data[start : self.at])

    def byte(self) -> int:
        self.at += 1
        return int(self.data[self.at - 1])

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at, self.end)
        if end < 0:
            raise EOFError
        return self.take(end + 1 - self.at)[:-1]

    def place(self, length: int, form: str = "bytes") -> Any:
        """Return the next bytes, or a Span of them if they are many and in the file."""
        if length <= _INLINE[form] or isinstance(self.data, bytes):
            return self.take(length)
        if length > self.end - self.at:
            raise EOFError
        self.at += length
        return Span(self.at - length, length, form)

    def text(self, length: int) -> Any:
        content = self.place(length, "text")
        return content if type(content) is Span else content.decode()

    def old(self, content: Any) -> Any:
        """Return a string of Python 2: text, or bytes if they are no text, such as those of an array."""
        try:
            return content if type(content) is Span else content.decode(self.encoding)
        except UnicodeDecodeError:
            return content

    def raw(self, content: Any) -> Any:
        """Return the bytes of an array, which Python 2 wrote as a string."""
        if type(content) is Span and content.form == "old":
            return Span(content.offset, content.length, "bytes")
        return content.encode(self.encoding) if type(content) is str else content

    def items(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def remember(self, slot: int) -> None:
        if not 0 <= slot <= self.at:  # picklers number their slots one by one
            raise RefusedError(f"it names memo slot {slot} within its first {self.at} bytes")
        self.memo[slot] = self.stack[-1]


def _key(value: Any) -> Any:
    if type(value) not in _SCALARS and type(value) not in (str, bytes):
        raise RefusedError(f"it has a key of type {_type(value)}")
    return value


def _type(value: Any) -> str:
    return "code" if type(value) is Name else type(value).__name__.lower()


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _set_items(machine: Machine, pairs: list[Any]) -> None:
    keys, values = pairs[::2], pairs[1::2]
    _typed(machine.stack[-1], dict).update(zip(map(_key, keys), values, strict=True))


def _new_dict(machine: Machine) -> None:
    pairs = machine.items()
    machine.stack.append({})
    _set_items(machine, pairs)


def _extend(machine: Machine, items: list[Any]) -> None:
    _typed(machine.stack[-1], list).extend(items)


def _add(machine: Machine, items: list[Any]) -> None:
    _typed(machine.stack[-1], set).update(map(_key, items))


def _tuple(machine: Machine, length: int) -> None:
    if len(machine.stack) < length:
        raise IndexError
    machine.stack[-length:] = [tuple(machine.stack[-length:])]


def _mark(machine: Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _integer(machine: Machine, length: int) -> int:
    if length > _LONGEST_INTEGER:
        raise RefusedError(f"it has an integer of {length} bytes")
    return int.from_bytes(machine.take(length), "little", signed=True)


def _decimal(machine: Machine) -> int | bool:
    text = machine.line().removesuffix(b"L")
    if len(text) > 2 * _LONGEST_INTEGER:
        raise RefusedError(f"it has an integer of {len(text)} digits")
    return {b"00": False, b"01": True}.get(text, int(text))


def _quoted(machine: Machine) -> Any:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise ValueError
    return machine.old(escape_decode(text[1:-1])[0])


def _escaped(machine: Machine) -> str:
    text = machine.line().decode("raw-unicode-escape")
    text.encode()  # raises for a lone surrogate, which is not text
    return text


def _name(machine: Machine, module: Any, name: Any) -> Name:
    dotted = f"{_typed(module, str)}.{_typed(name, str)}"
    known = dotted if "." not in name else ""
    storage = machine.storages and module == "torch" and name in _STORAGES
    if known not in _CALLS and known not in _VALUES and not storage:
        raise RefusedError(f"it refers to {dotted[:80] if dotted[:80].isprintable() else repr(dotted[:80])}")
    return Name(dotted)


def _global(machine: Machine) -> Name:
    module, name = machine.line().decode(), machine.line().decode()
    return _name(machine, module, name)


def _stack_global(machine: Machine) -> Name:
    name, module = machine.stack.pop(), machine.stack.pop()
    return _name(machine, module, name)


def _reduce(machine: Machine) -> Any:
    arguments, call = machine.stack.pop(), machine.stack.pop()
    if type(call) is not Name or call not in _CALLS:
        raise RefusedError(f"it calls a {_type(call)}")
    return _CALLS[call](machine, *_typed(arguments, tuple))


def _build(machine: Machine) -> None:
    state = _typed(machine.stack.pop(), tuple)
    target = machine.stack[-1]
    if type(target) is DType:
        if target.order != "|" or len(state) < 8 or state[1] not in ("<", ">", "=", "|") or any(state[2:5]):
            raise RefusedError(f"it holds an array of dtype {target.code[:40]!r} with more than a byte order")
        target.order = "<" if state[1] == "=" else str(state[1])
    elif type(target) is Array:
        shape, dtype, fortran, content = state[-4:]
        target.fill(dtype, shape, "F" if fortran else "C", machine.raw(content))
    else:
        raise RefusedError(f"it sets the state of a {_type(target)}")


def _encode(machine: Machine, text: Any, encoding: Any) -> Any:
    """Return bytes as written by protocols 0 to 2; only latin1, because other encodings may take very long."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"it uses the encoding {encoding[:40]!r}" if type(encoding) is str else "an encoding")
    if type(text) is Span and text.form == "text":
        return Span(text.offset, text.length, "latin1")
    return _typed(text, str).encode("latin-1")


def _reconstruct(machine: Machine, subtype: Any, shape: Any, code: Any) -> Array:
    if subtype != "numpy.ndarray" or type(subtype) is not Name:
        raise RefusedError(f"it holds an array of type {_type(subtype)}")
    return Array()


def _dtype(machine: Machine, code: Any, *_: Any) -> DType:
    return DType(_typed(code, str))


def _from_buffer(machine: Machine, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Array:
    layout = axes if order == "K" and axes is not None else order
    permuted = type(layout) is tuple and type(shape) is tuple and sorted(layout) == list(range(len(shape)))
    if not permuted and layout not in ("C", "F", "A"):
        raise RefusedError("it holds an array in an impossible order")
    if type(dtype) is DType and dtype.kind == "O":
        raise RefusedError("it holds an array of objects without its objects")
    return Array().fill(dtype, shape, "C" if layout == "A" else layout, content)


def _scalar(machine: Machine, dtype: Any, content: Any) -> Array:
    return Array().fill(dtype, None, "C", machine.raw(content))


def _storage(machine: Machine, content: Any) -> Storage:
    """Read torch's form of a storage: five pickles, the number of values, and the values."""
    try:
        if type(content) is Span and content.form == "latin1":
            content = machine.data[content.offset : content.offset + content.length].decode().encode("latin-1")
        if type(content) is Span and content.form == "bytes":
            inner = Machine(
                machine.data, content.offset, content.offset + content.length, machine.encoding, storages=True
            )
        else:
            inner = Machine(_typed(content, bytes), 0, len(content), machine.encoding, storages=True)
        magic, _version, _system, storage, keys = (_restarted(inner) for _ in range(5))
        if magic != _TORCH_MAGIC or type(storage) is not Storage or keys != [storage.content]:
            raise ValueError
        if inner.number(8) != storage.length:
            raise ValueError
        values = inner.place(storage.length * storage.dtype.itemsize)
    except (RefusedError, *DAMAGED) as error:
        reason = f"{error}" if isinstance(error, RefusedError) else type(error).__name__
        raise RefusedError(f"it holds a damaged torch storage ({reason})") from None
    return Storage(storage.dtype, storage.length, values)


def _restarted(machine: Machine) -> Any:
    machine.stack, machine.below, machine.memo = [], [], {}
    return machine.run()


def _persistent(machine: Machine) -> Storage:
    """Return the storage that torch's pickle names; its content is its key until the values are read."""
    if not machine.storages:
        raise RefusedError("it refers to an object outside the file")
    kind, name, key, _location, length, view = _typed(machine.stack.pop(), tuple)
    if kind != "storage" or view is not None or type(name) is not Name:
        raise RefusedError("it refers to an object outside the file")
    dtype = DType(_STORAGES[name.removeprefix("torch.")])
    dtype.order = "<"
    if type(key) is not str or type(length) is not int or length < 0:
        raise ValueError
    return Storage(dtype, length, key)


def _tensor(machine: Machine, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *_typed(shape, tuple), *_typed(strides, tuple))
    if type(storage) is not Storage or len(shape) != len(strides) or len(shape) > DEEPEST:
        raise RefusedError("it holds a tensor without a storage")
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise RefusedError("it holds a tensor that reaches beyond its storage")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if all(shape) else offset
    if last >= storage.length + (not all(shape)):
        raise RefusedError("it holds a tensor that reaches beyond its storage")
    if math.prod(n or 1 for n in shape) > max(storage.length, SPARE_ITEMS) or math.prod(shape) > storage.length:
        raise RefusedError("it holds a tensor that is larger than its storage")
    return Tensor(storage, offset, shape, strides)


def _slice(machine: Machine, *limits: Any) -> slice:
    if not all(limit is None or type(limit) is int for limit in limits):
        raise TypeError
    return slice(*limits)


def _set(machine: Machine, items: Any = ()) -> set[Any]:
    return set(map(_key, items if type(items) is tuple else _typed(items, list)))


_CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.{name}": call
        for core in ("core", "_core")
        for name, call in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    },
    **{
        f"{builtins}.{name}": call
        for builtins in ("builtins", "__builtin__")
        for name, call in (("set", _set), ("slice", _slice), ("bytes", lambda machine: b""))
    },
    "collections.OrderedDict": lambda machine: {},
    "_codecs.encode": _encode,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
_VALUES = ("numpy.ndarray",)
_BINARY_FLOAT = struct.Struct(">d")
_STOP = ord(".")
# Opcodes that change the stack or the memo. An opcode that is in neither table is refused.
_ACTIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"(": _mark,
    b"0": lambda m: m.stack.pop() if m.stack else m.items(),
    b"1": lambda m: m.items(),
    b"\x80": lambda m: m.take(1),
    b"\x95": lambda m: m.take(8),
    b"p": lambda m: m.remember(int(m.line())),
    b"q": lambda m: m.remember(m.byte()),
    b"r": lambda m: m.remember(m.number(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"s": lambda m: _set_items(m, [m.stack.pop(), m.stack.pop()][::-1]),
    b"u": lambda m: _set_items(m, m.items()),
    b"d": _new_dict,
    b"a": lambda m: _extend(m, [m.stack.pop()]),
    b"e": lambda m: _extend(m, m.items()),
    b"\x90": lambda m: _add(m, m.items()),
    b"b": _build,
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
}
# Opcodes that put a value on the stack.
_RESULTS: dict[bytes, Callable[[Machine], Any]] = {
    b"g": lambda m: m.memo[int(m.line())],
    b"h": lambda m: m.memo[m.byte()],
    b"j": lambda m: m.memo[m.number(4)],
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"I": _decimal,
    b"L": _decimal,
    b"J": lambda m: _integer(m, 4),
    b"K": lambda m: m.byte(),
    b"M": lambda m: m.number(2),
    b"\x8a": lambda m: _integer(m, m.number(1)),
    b"\x8b": lambda m: _integer(m, m.number(4)),
    b"F": lambda m: float(m.line()),
    b"G": lambda m: _BINARY_FLOAT.unpack(m.take(8))[0],
    b"S": _quoted,
    b"T": lambda m: m.old(m.place(m.number(4), "old")),
    b"U": lambda m: m.old(m.take(m.number(1))),
    b"C": lambda m: m.take(m.byte()),
    b"B": lambda m: m.place(m.number(4)),
    b"\x8e": lambda m: m.place(m.number(8)),
    b"\x96": lambda m: m.place(m.number(8)),
    b"V": _escaped,
    b"\x8c": lambda m: m.take(m.byte()).decode(),
    b"X": lambda m: m.text(m.number(4)),
    b"\x8d": lambda m: m.text(m.number(8)),
    b"]": lambda m: [],
    b"l": lambda m: m.items(),
    b")": lambda m: (),
    b"t": lambda m: tuple(m.items()),
    b"}": lambda m: {},
    b"\x8f": lambda m: set(),
    b"\x91": lambda m: frozenset(map(_key, m.items())),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"P": _persistent,
    b"Q": _persistent,
}
_ACTION_OF = [_ACTIONS.get(bytes([code])) for code in range(256)]
_RESULT_OF = [_RESULTS.get(bytes([code])) for code in range(256)]


class Expansion:
    """Count what a value is when it is written out, with all repetitions. Raises RefusedError for too much."""

    def __init__(self, size: int) -> None:
        self.limits = SPARE_ITEMS + 4 * size, SPARE_BYTES + SHARED * size
        self.known: dict[int, tuple[int, int, int]] = {}  # of containers, by id: items, bytes and depth

    def of(self, value: Any, depth: int = 0) -> tuple[int, int, int]:
        """Return the items, bytes and depth of a container or an array."""
        if id(value) in self.known:
            return self.known[id(value)]
        if depth > DEEPEST:
            raise RefusedError(f"it nests more than {DEEPEST} containers, or one within itself")
        items, size, below = 1, 0, 0
        for part in _parts(value):
            kind = type(part)
            if kind is str or kind is bytes:
                items, size = items + 1, size + len(part)
            elif kind in _SCALARS:
                items += 1
            else:
                inner = self.of(part, depth + 1)
                items, size, below = items + inner[0], size + inner[1], max(below, inner[2])
        if type(value) is Array and type(value.content) is not list:
            items, size = value.size()
        elif type(value) is Tensor:
            size = (math.prod(value.shape) + value.storage.length) * value.storage.dtype.itemsize
            items = (value.shape or (1,))[0] + 1
        elif type(value) is Span:
            size = value.length
        if items > self.limits[0] or size > self.limits[1]:
            raise RefusedError("it repeats its own values until they are many times the size of the file")
        if below + 1 + depth > DEEPEST:
            raise RefusedError(f"it nests more than {DEEPEST} containers")
        self.known[id(value)] = items, size, below + 1
        return self.known[id(value)]


def _parts(value: Any) -> Any:
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return value
    if kind is dict:
        return (*value, *value.values())
    if kind is Array and value.dtype is not None:
        if type(value.content) is list:
            if len(value.content) != math.prod(value.shape or ()):  # the list has grown since
                raise RefusedError("it holds an array of objects without its objects")
            return value.content
        return ()
    if kind in (Tensor, Span, slice):
        return ()
    raise RefusedError(f"it holds {'the name ' + str(value) if kind is Name else 'a ' + _type(value)} as a value")


def _limit(size: int) -> None:
    """Limit the memory and the time of this process, for a file of `size` bytes."""
    for limited, amount in ((resource.RLIMIT_AS, MEMORY + 8 * size), (resource.RLIMIT_CPU, SECONDS + (size >> 20))):
        hard = resource.getrlimit(limited)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(limited, (amount, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _signal.alarm(PATIENCE * (SECONDS + (size >> 20)))  # its default action ends the process


def interpret(data: Any, size: int, encoding: str) -> Any:
    """Return the value of a pickle. Raises RefusedError for what is not plain, one of DAMAGED for a damaged file."""
    value = Machine(data, 0, size, encoding).run()
    if type(value) not in _SCALARS and type(value) not in (str, bytes):
        Expansion(size).of(value)
    return value


def main(encoding: str) -> int:
    """Interpret stdin, write the values or a sentence to stdout, and return the exit code."""
    size = os.fstat(0).st_size
    _limit(size)
    try:
        with mmap.mmap(0, size, access=mmap.ACCESS_READ) if size else memoryview(b"") as data:
            value = interpret(data, size, encoding)
        with os.fdopen(1, "wb", closefd=False) as out:
            _pickle.Pickler(out, 4).dump(value)
        return 0
    except RefusedError as error:
        answer = f"was rejected: {error}; only arrays and plain values are read"
    except MemoryError:
        answer = f"was rejected: its values take more than {(MEMORY + 8 * size) >> 20} MB of memory"
    except DAMAGED:
        answer = "is not a readable pickle: it is damaged or truncated"
    os.ftruncate(1, 0)
    os.pwrite(1, answer.encode("utf-8", "replace"), 0)
    return REJECTED
