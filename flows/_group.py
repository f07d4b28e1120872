"""Run a command in its own process group, and end the whole group when this process stops.

DVC runs a stage as its child, and a stage has workers; ending only dvc would leave them running. If this process is
killed, it cannot end the group; on Linux the kernel then kills the command.

Run as a script, this file ties itself to its parent process and then becomes the command. A `preexec_fn` would do the
same, but it runs Python between fork and exec, which can hang in a process with threads.
"""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class CommandResult:
    """The exit code of a command, and the lines that it wrote."""

    code: int
    stdout: tuple[str, ...]
    stderr: tuple[str, ...]


def run(
    command: Sequence[str], on_line: Callable[[str, str], None], environment: Mapping[str, str] | None = None
) -> CommandResult:
    """Run a command and call `on_line` with the stream and each line, as it is written; then end its whole group."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
    with process:
        try:
            for stream, line in _lines(process):
                lines[stream].append(line)
                on_line(stream, line)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            _end(process)
    return CommandResult(process.returncode, tuple(lines["stdout"]), tuple(lines["stderr"]))


def _lines(process: subprocess.Popen[bytes], until: float | None = None) -> Iterator[tuple[str, str]]:
    """Yield (stream, line) until all writers have closed, the command has ended and is silent, or time `until`.

    With `until`, a process that the command leaves behind gets that time to end.
    """
    partial = {"stdout": b"", "stderr": b""}  # the start of an unfinished line
    with selectors.DefaultSelector() as selector:
        for stream in partial:
            selector.register(getattr(process, stream), selectors.EVENT_READ, stream)
        while selector.get_map() and (until is None or time.monotonic() < until):
            ready = selector.select(timeout=1.0)
            if not ready and until is None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                break  # a process that it left behind holds the pipes
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                # A progress bar ends its lines with a carriage return.
                *complete, partial[key.data] = (partial[key.data] + chunk).replace(b"\r", b"\n").split(b"\n")
                yield from ((key.data, line.decode(errors="replace")) for line in complete)
    yield from ((stream, line.decode(errors="replace")) for stream, line in partial.items() if line)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the group: SIGTERM first, then SIGKILL after GRACE_S or as soon as no process of it holds the output.

    The command is reaped last; until then no other group can get its number.
    """
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        for _ in _lines(process, until=time.monotonic() + GRACE_S):
            pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _become(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
