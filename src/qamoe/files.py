"""Atomic file writes (to a temporary file that is then renamed) and file digests."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, remove it on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path, names: str) -> None:
    """Remove temporary files of `atomic_write` for these names (a glob) whose process no longer runs."""
    for temporary in folder.glob(f".{names}.[0-9]*"):
        try:
            os.kill(int(temporary.suffix[1:]), 0)
        except ProcessLookupError:
            temporary.unlink(missing_ok=True)
        except PermissionError:  # the process runs, under another user
            continue


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as a hexadecimal string."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
