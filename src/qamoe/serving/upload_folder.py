"""A folder for files that are being uploaded, which the next server removes if this one is killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "qamoe-uploads-"
_LOCK = "lock"


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Make a folder that exists within the with block; remove the folders of servers that were killed.

    A running server holds a lock on its folder, which the system releases when the process ends.
    """
    import fcntl

    _remove_left(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        # The file gets its name after it is locked, so another server never sees it without the lock.
        unnamed = Path(folder) / ".lock"
        with unnamed.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unnamed.rename(Path(folder) / _LOCK)
            yield Path(folder)


def _remove_left(temporary: Path) -> None:
    import fcntl

    for folder in temporary.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:  # in use, being made, or removed by another server at the same time
            continue
