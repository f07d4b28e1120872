"""Read untrusted pickles: only arrays, numbers and strings, never code, and never more memory or time than they need.

Another process, which has no packages, interprets the file under limits (data/pickle_child.py). It returns plain values
and the places of arrays, and this process reads the arrays from these places. Tensors are returned as arrays.
"""

import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from qamoe.data import pickle_child
from qamoe.data.file_kinds import other_than_pickle, pickle_in
from qamoe.errors import UserError

# An import, and not a script, because Python keeps the compiled form of a module only.
_START = "import sys; sys.path.append(sys.argv[1]); import pickle_child; sys.exit(pickle_child.main(sys.argv[2]))"
_LAST_CHARACTER = 0x10FFFF
_SURROGATES = 0xD800, 0xDFFF


def read(path: Path, encoding: str = "utf-8") -> Any:
    """Load a pickle of plain containers, numpy arrays and torch tensors (as arrays).

    `encoding` is that of strings written by Python 2; those that it cannot decode are bytes. Raises UserError for any
    other content, and for a file that takes too much memory or time.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            inside = pickle_in(path) if path.is_dir() else None
            such_as = f", such as {inside}" if inside else ""
            kind = "a folder" if path.is_dir() else "not a file"
            raise UserError(f"{path} is {kind}; it must be a pickle file{such_as}.")
        if other := other_than_pickle(path):
            raise UserError(f"{path} {other}.")
        with path.open("rb", buffering=0) as file, tempfile.TemporaryFile() as answer:
            _interpret(path, file, answer, encoding)
            answer.seek(0)
            return _Values(answer, file, encoding).load()
    except FileNotFoundError:
        raise UserError(f"File not found: {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, MemoryError) as error:
        raise UserError(f"{path} was rejected: {error}; only arrays and plain values are read.") from None


def text(value: Any, where: str) -> str:
    """Return a string of a pickle; bytes are decoded as UTF-8. Raises UserError for any other value."""
    try:
        content = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise UserError(f"{where} is {bytes(value[:20])!r}, which is not UTF-8; it must be text.") from None
    if not isinstance(content, str):
        raise UserError(f"{where} is {type(value).__name__}; it must be text.")
    return str(content)


def _interpret(path: Path, file: IO[bytes], answer: IO[bytes], encoding: str) -> None:
    """Write the values of `file` to `answer`. Raises UserError where the other process rejects the file or is ended."""
    command = [sys.executable, "-I", "-S", "-c", _START, str(Path(pickle_child.__file__).parent), encoding]
    done = subprocess.run(command, stdin=file, stdout=answer, stderr=subprocess.DEVNULL)
    if done.returncode == pickle_child.REJECTED:
        answer.seek(0)
        raise UserError(f"{path} {answer.read().decode()}.")
    if -done.returncode in (signal.SIGXCPU, signal.SIGALRM):
        seconds = pickle_child.SECONDS + (os.fstat(file.fileno()).st_size >> 20)
        raise UserError(f"{path} was rejected: it takes more than {seconds} s to read.")
    if done.returncode:
        raise UserError(f"{path} was rejected: the process that read it ended with code {done.returncode}.")


def _is_unicode(letters: np.ndarray) -> bool:
    surrogates = (letters >= _SURROGATES[0]) & (letters <= _SURROGATES[1])
    return not (surrogates.any() or (letters > _LAST_CHARACTER).any())


class _Values(pickle.Unpickler):
    """Load the answer of the other process; arrays come from the file."""

    def __init__(self, answer: IO[bytes], file: IO[bytes], encoding: str) -> None:
        super().__init__(answer)
        self.file, self.encoding = file, encoding

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any]] = {
            "array": self.array,
            "span": self.span,
            "tensor": self.tensor,
            "slice": slice,
        }
        if module not in (pickle_child.__name__.rpartition(".")[2], "builtins") or name not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")  # a fault of pickle_child.py
        return known[name]

    def numbers(self, dtype: str, content: tuple[int, int, str] | bytes) -> np.ndarray:
        """Return a new array (N,) of the bytes of `content`, or of those that a Span of pickle_child.py names."""
        kind = np.dtype(dtype)
        found = content if isinstance(content, bytes) else self.span(*content)
        raw = found if isinstance(found, bytearray) else bytearray(found)
        values = np.frombuffer(raw, kind) if kind.itemsize and raw else np.zeros(0, kind)
        if kind.kind == "b" and (values.view(np.uint8) > 1).any():
            raise ValueError("it holds a truth value that is neither true nor false")
        if kind.kind == "U":
            letters = values.view(kind.str[0] + "u4") if values.size else np.zeros(0, np.uint32)
            if letters.max(initial=0) >= _SURROGATES[0] and not _is_unicode(letters):
                raise ValueError("it holds a string that is not Unicode")
        return values

    def array(self, dtype: str, shape: tuple[int, ...] | None, layout: Any, content: Any) -> Any:
        """Return an array, or a numpy scalar where shape is None. layout: C, F, or the axes of C order."""
        if isinstance(content, list):
            values = np.empty(len(content), object)
            for place, value in enumerate(content):
                values[place] = value
        else:
            values = self.numbers(dtype, content)
        if shape is None:
            return values[0] if values.size else np.zeros((), dtype)[()]
        if not values.size:
            return np.zeros(shape, dtype)  # also of strings of length 0, which have no bytes
        return (
            values.reshape(shape).transpose(layout)
            if isinstance(layout, tuple)
            else values.reshape(shape, order=layout)
        )

    def tensor(self, dtype: str, content: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """Return a tensor's numbers as a new array. pickle_child.py has checked that they are within the storage."""
        storage = self.numbers(dtype, content)
        steps = tuple(step * storage.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()

    def span(self, offset: int, length: int, form: str) -> Any:
        """Return the bytes or the text at a place in the file; see Span of pickle_child.py."""
        content = bytearray(length)
        view, done = memoryview(content), 0
        while done < length:
            read = os.preadv(self.file.fileno(), [view[done:]], offset + done)
            if not read:
                raise ValueError("it was truncated while it was read")
            done += read
        if form == "bytes":
            return content
        try:
            text = content.decode(self.encoding if form == "old" else "utf-8")
            return text.encode("latin-1") if form == "latin1" else text
        except UnicodeError:
            if form == "old":
                return bytes(content)
            raise ValueError("it holds a string that is not Unicode") from None
