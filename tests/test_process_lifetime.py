"""A process ends with its parent, even if the parent ended before the kernel could watch it, and says how it ended."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a process to its parent on Linux only")

# Parent and child both inherit the write end of the test's pipe as their standard output.
TIED = "from qamoe.process_lifetime import die_with_parent; die_with_parent(); print('tied', flush=True); input()"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
# The child continues when its parent has ended: only the parent holds the pipe open.
LATE = "import os, sys; os.read(int(sys.argv[1]), 1); " + TIED
LATE_PARENT = """
import os, subprocess, sys
reading, writing = os.pipe()
os.set_inheritable(reading, True)
subprocess.Popen([sys.executable, "-c", {child!r}, str(reading)], close_fds=True, pass_fds=[reading])
os._exit(0)
"""
ENDING = """
import signal
from qamoe.process_lifetime import end_on_sigterm
end_on_sigterm()
try:
    print("ready", flush=True)
    signal.pause()
finally:
    print("ending", flush=True)
    input()
    print("ended", flush=True)
"""


@pytest.fixture
def never() -> Iterator[int]:
    """A standard input that never receives anything."""
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    os.close(reading)


def output_until_end(process: "subprocess.Popen[bytes]") -> bytes:
    """Return all output of a process and its children, after all of them have ended."""
    assert process.stdout is not None
    written = b""
    while True:
        assert select.select([process.stdout], [], [], 60)[0], f"a process still runs; output so far: {written!r}"
        chunk = os.read(process.stdout.fileno(), 64)
        if not chunk:
            return written
        written += chunk
        if written == b"tied\n":
            process.kill()


@pytest.mark.integration
def test_a_process_ends_with_its_parent(never: int) -> None:
    code = PARENT.format(child=TIED)
    with subprocess.Popen([sys.executable, "-c", code], stdin=never, stdout=subprocess.PIPE) as parent:
        assert output_until_end(parent) == b"tied\n"


@pytest.mark.integration
def test_a_process_whose_parent_has_already_ended_ends_at_once(never: int) -> None:
    """For example a stage that still runs its imports when dvc is killed."""
    command = [sys.executable, "-c", LATE_PARENT.format(child=LATE)]
    with subprocess.Popen(command, stdin=never, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert output_until_end(parent) == b""


@pytest.mark.integration
def test_a_session_leader_is_not_taken_for_an_orphan(never: int) -> None:
    command = [sys.executable, "-c", TIED]
    with subprocess.Popen(command, stdin=never, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert output_until_end(leader) == b"tied\n"


@pytest.mark.integration
def test_a_second_sigterm_does_not_interrupt_the_end() -> None:
    """A stage gets one with its group, and one from the kernel when dvc, which is of that group, has ended."""
    with subprocess.Popen([sys.executable, "-c", ENDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"ready\n", b"ending\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGTERM)
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stdout.read() == b"ended\n"
        assert process.wait() == 128 + signal.SIGTERM
