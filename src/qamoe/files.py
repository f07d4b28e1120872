"""Write files whole or not at all, lock folders, and compute digests."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qamoe.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, remove it on an error.

    The file is on the disk before it is renamed, so neither a kill nor a power cut leaves a part of it under its name.
    Raises UserError if the system refuses to write it, such as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        other = "" if error.filename in (None, str(temporary)) else f" ({error.filename})"
        raise UserError(f"{path} cannot be written: {error.strerror or error}{other}.") from error
    finally:
        remove_quietly(temporary)


def remove_quietly(path: Path) -> None:
    """Remove a file or a folder if it exists and the system lets us."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; libraries that lose errors of the disk, such as numpy, write into memory first."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove temporary files and folders of killed processes: those matching a glob that ends in a process's number."""
    for temporary in folder.glob(pattern):
        try:
            os.kill(int(temporary.suffix[1:]), 0)
        except ProcessLookupError:
            remove_quietly(temporary)
        except (ValueError, OverflowError, PermissionError):  # not ours, or the process of another user runs
            continue


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that lock it; wait while one holds it.

    The kernel releases the lock when the process ends. Raises UserError if the folder does not exist.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder} cannot be locked: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as a hexadecimal string."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
