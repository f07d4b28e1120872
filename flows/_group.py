"""One command in a process group of its own, which does not outlive the process that asked for it.

DVC runs a stage as its child, and a stage has workers: ending dvc alone leaves them running. So the group is ended as
a whole, whatever made this process stop. Where it was killed and could not do so (Linux), the kernel ends the command.

Run as a script, this file is the step between: it ties itself to the process that started it and becomes the command.
A `preexec_fn` would do that too, but runs Python between fork and exec, which can hang in a process with threads.
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
class Ended:
    """How a command ended, and the lines that it wrote."""

    code: int
    stdout: tuple[str, ...]
    stderr: tuple[str, ...]


def run(command: Sequence[str], say: Callable[[str], None], environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end, handing each line to `say` as it comes; afterwards nothing of its group is left."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    written: dict[str, list[str]] = {"stdout": [], "stderr": []}
    with process:
        try:
            for stream, line in _lines(process):
                written[stream].append(line)
                say(line)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            _end(process)
    return Ended(process.returncode, tuple(written["stdout"]), tuple(written["stderr"]))


def _lines(process: subprocess.Popen[bytes], until: float | None = None) -> Iterator[tuple[str, str]]:
    """Yield (stream, line) until nobody can write any more, or the command has ended and is silent, or `until`."""
    rest = {"stdout": b"", "stderr": b""}
    with selectors.DefaultSelector() as selector:
        for stream in rest:
            selector.register(getattr(process, stream), selectors.EVENT_READ, stream)
        while selector.get_map() and (until is None or time.monotonic() < until):
            ready = selector.select(timeout=1.0)
            if not ready and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                break  # something that it left behind holds the pipes
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                # A progress bar ends its lines by a carriage return.
                *whole, rest[key.data] = (rest[key.data] + chunk).replace(b"\r", b"\n").split(b"\n")
                yield from ((key.data, line.decode(errors="replace")) for line in whole)
    yield from ((stream, left.decode(errors="replace")) for stream, left in rest.items() if left)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what there is of the group: asked first, then, after GRACE_S or once the command itself is gone, made to.

    The command is reaped last: until then no other group can get its number.
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
        if os.getppid() != parent:  # it ended before it could be tied to
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
