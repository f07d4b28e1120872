"""A flow run ends as by SIGTERM when the worker that started it has gone; one that a person started goes on."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of a parent's end")

# Says how it ended, on a standard output that it inherits.
RUN = """
import os, signal, sys
from flows._worker import end_with_worker

def ended(*_):
    print("asked to end", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, ended)
{before}
end_with_worker()
print("runs", flush=True)
sys.stdin.read()
print("left alone", flush=True)
"""
WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', {run!r}])"
# Waits until its parent is gone, which alone holds the other end of this pipe.
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
        except OSError:  # the test has closed it
            continue


def started(code: str, stdin: int, **more: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT__FLOW_RUN_ID"} | more
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, env=environment)


def line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0], "it says nothing"
    return process.stdout.readline()


@pytest.mark.parametrize(("by_worker", "says"), [(True, b"asked to end\n"), (False, b"left alone\n")])
def test_a_run_ends_with_its_worker_alone(pipe: tuple[int, int], by_worker: bool, says: bytes) -> None:
    more = {"PREFECT__FLOW_RUN_ID": "one"} if by_worker else {}
    with started(WORKER.format(run=RUN.format(before="")), pipe[0], **more) as worker:
        assert line(worker) == b"runs\n"
        worker.kill()
        worker.wait()
        if not by_worker:
            os.close(pipe[1])
        assert line(worker) == says


def test_a_worker_that_had_gone_before_is_noticed(pipe: tuple[int, int]) -> None:
    with started(LATE_WORKER.format(run=RUN.format(before=LATE)), pipe[0], PREFECT__FLOW_RUN_ID="one") as worker:
        assert line(worker) == b"asked to end\n"
