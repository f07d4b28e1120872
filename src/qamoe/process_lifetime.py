"""Tie a process to the life of its parent, and identify a process by its start time."""

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """On Linux, send this process a signal when its parent ends, or at once if the parent has already ended.

    The kernel signals only a parent that ends from now on, and imports may have taken seconds. A process that lost its
    parent is adopted by one of another session, so a parent in another session means an orphan. A session leader is
    never an orphan: it was started in a session of its own.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    session = os.getsid(0)
    if session == os.getpid():
        return
    try:
        orphaned = os.getsid(os.getppid()) != session
    except ProcessLookupError:
        orphaned = True
    if orphaned:
        os.kill(os.getpid(), by)


def end_on_sigterm(seconds: int = 10) -> None:
    """Make the first SIGTERM raise SystemExit, so that a command can say how it ended, within some seconds.

    A stage that is ended with its dvc gets a second SIGTERM as dvc ends; it must not interrupt what the first began.
    """

    def stop(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(seconds)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def this_process() -> str:
    """Return host, number and start time of this process: what `is_dead` needs to know it again."""
    return f"{platform.node()} {os.getpid()} {start_time(os.getpid())}"


def is_dead(process: str) -> bool:
    """Return whether a process that `this_process` named has ended; False for one of another machine."""
    host, pid, started = process.split(" ") if process.count(" ") == 2 else ("", "0", "")
    return host == platform.node() and start_time(int(pid)) != started


def start_time(pid: int) -> str | None:
    """Return when a process started (kernel ticks), or None if it does not run; tells apart reuses of a process id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
