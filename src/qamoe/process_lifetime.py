"""When a process started, and how it ends with the one that started it, however that ended."""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """On Linux, end this process when its parent ends, and at once where it has ended already.

    The kernel tells of a parent's end only from now on, and until now seconds may have gone by with imports. Whoever
    adopted this process since then is of another session; what leads a session was started in one of its own.
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
    """When a process started (kernel ticks), so that a re-used process id is not mistaken for it; None where there is
    none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
