"""Writing files so that a reader never sees half of one: aside first, then renamed. And what tells a file's content."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it there when the block ends well, remove it when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove_abandoned(folder: Path, names: str) -> None:
    """Remove what was being written aside to files of these names (a glob) by processes that have ended since."""
    for aside in folder.glob(f".{names}.[0-9]*"):
        try:
            os.kill(int(aside.suffix[1:]), 0)
        except ProcessLookupError:
            aside.unlink(missing_ok=True)
        except PermissionError:  # it runs, and is somebody else's
            continue


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it."""
    with atomic_write(path) as aside:
        aside.write_text(text)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
