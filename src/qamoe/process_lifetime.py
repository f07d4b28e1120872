"""Tie a process to the life of its parent, and identify a process by its start time."""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """On Linux, kill this process when its parent ends, or at once if the parent has already ended.

    The kernel signals only a parent that ends from now on, and imports may have taken seconds. A process that lost its
    parent is adopted by one of another session, so a parent in another session means an orphan. A session leader is
    never an orphan: it was started in a session of its own.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    session = os.getsid(0)
    if session == os.getpid():
        return
    try:
        orphaned = os.getsid(os.getppid()) != session
    except ProcessLookupError:
        orphaned = True
    if orphaned:
        os.kill(os.getpid(), signal.SIGKILL)


def start_time(pid: int) -> str | None:
    """Return when a process started (kernel ticks), or None if it does not run; tells apart reuses of a process id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
