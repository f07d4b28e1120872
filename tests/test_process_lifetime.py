"""A process ends with its parent, also where the parent ended before anyone could be told."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a process to its parent on Linux only")

# Both hold the write end of the test's pipe, as the standard output that they inherit.
TIED = "from qamoe.process_lifetime import die_with_parent; die_with_parent(); print('tied', flush=True); input()"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
# Goes on only when its parent is gone: the pipe that the parent alone held is then closed.
LATE = "import os, sys; os.read(int(sys.argv[1]), 1); " + TIED
LATE_PARENT = """
import os, subprocess, sys
reading, writing = os.pipe()
os.set_inheritable(reading, True)
subprocess.Popen([sys.executable, "-c", {child!r}, str(reading)], close_fds=True, pass_fds=[reading])
os._exit(0)
"""


@pytest.fixture
def never() -> Iterator[int]:
    """A standard input on which nothing ever comes."""
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    os.close(reading)


def said(process: "subprocess.Popen[bytes]") -> bytes:
    """All that a process and its children wrote, once none of them is there any more."""
    assert process.stdout is not None
    written = b""
    while True:
        assert select.select([process.stdout], [], [], 60)[0], f"something is there still, having said {written!r}"
        chunk = os.read(process.stdout.fileno(), 64)
        if not chunk:
            return written
        written += chunk
        if written == b"tied\n":
            process.kill()


def test_a_process_ends_with_its_parent(never: int) -> None:
    code = PARENT.format(child=TIED)
    with subprocess.Popen([sys.executable, "-c", code], stdin=never, stdout=subprocess.PIPE) as parent:
        assert said(parent) == b"tied\n"


def test_a_process_whose_parent_has_gone_before_ends_at_once(never: int) -> None:
    """As a stage does when dvc was killed while the stage still imported what it needs."""
    command = [sys.executable, "-c", LATE_PARENT.format(child=LATE)]
    with subprocess.Popen(command, stdin=never, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert said(parent) == b""


def test_what_leads_a_session_of_its_own_is_no_orphan(never: int) -> None:
    command = [sys.executable, "-c", TIED]
    with subprocess.Popen(command, stdin=never, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert said(leader) == b"tied\n"
