"""Test that a flow run ends when the worker that started it ends, and that a manually started run continues."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open of Linux")

# Prints how it ended to the standard output that it inherits.
RUN = """
import os, signal, sys
from flows._worker import end_with_worker

def terminated(*_):
    print("SIGTERM", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, terminated)
{before}
end_with_worker()
print("runs", flush=True)
sys.stdin.read()
print("continued", flush=True)
"""
WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', {run!r}])"
# Waits until its parent ends; only the parent holds the other end of this pipe.
LATE = "os.read(int(os.environ['PIPE']), 1)"
LATE_WORKER = """
import os, subprocess, sys
reading, writing = os.pipe()
environment = dict(os.environ, PIPE=str(reading))
subprocess.Popen([sys.executable, "-c", {run!r}], env=environment, pass_fds=[reading])
os._exit(0)
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # a test closed it
            continue


def started(code: str, stdin: int, **variables: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT__FLOW_RUN_ID"} | variables
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, env=environment)


def line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0], "no output"
    return process.stdout.readline()


@pytest.mark.parametrize(("by_worker", "output"), [(True, b"SIGTERM\n"), (False, b"continued\n")])
def test_only_a_run_that_a_worker_started_ends_with_its_parent(
    pipe: tuple[int, int], by_worker: bool, output: bytes
) -> None:
    variables = {"PREFECT__FLOW_RUN_ID": "one"} if by_worker else {}
    with started(WORKER.format(run=RUN.format(before="")), pipe[0], **variables) as worker:
        assert line(worker) == b"runs\n"
        worker.kill()
        worker.wait()
        if not by_worker:
            os.close(pipe[1])
        assert line(worker) == output


def test_a_run_ends_if_its_worker_ended_before_the_check(pipe: tuple[int, int]) -> None:
    with started(LATE_WORKER.format(run=RUN.format(before=LATE)), pipe[0], PREFECT__FLOW_RUN_ID="one") as worker:
        assert line(worker) == b"SIGTERM\n"
