"""Test that a command and all processes that it starts end with the process that runs it."""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import _group

ROOT = Path(_group.__file__).parent.parent
# Writes to a named pipe and keeps it open: the reader sees the end of the file when the last holder ends.
HOLDER = """
import os, signal, sys
{ignore_sigterm}
pipe = os.open({pipe!r}, os.O_WRONLY)
os.write(pipe, b"here")
print("ready", flush=True)
signal.pause()
"""
IGNORE_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
WITHIN_MS = 60_000  # only a failing test waits this long


class Pipe:
    """The read end of a named pipe that the processes under test keep open."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self.end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """Wait for bytes from a holder, or for the end of the file (no bytes) after the last holder ends."""
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        assert poll.poll(WITHIN_MS), "neither bytes nor the end of the file"
        return os.read(self.end, 64)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path / "pipe")
    yield pipe
    os.close(pipe.end)


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_lines_arrive_while_the_command_runs(tmp_path: Path) -> None:
    """The command continues only after its first line has been received."""
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    code = "import sys; print('first', flush=True); print('received', open(sys.argv[1]).read())"
    received = []

    def on_line(stream: str, line: str) -> None:
        received.append(line)
        if line == "first":
            answer.write_text("it")

    result = _group.run(python(code, str(answer)), on_line)
    assert result == _group.CommandResult(0, ("first", "received it"), ())
    assert received == ["first", "received it"]


def test_stdout_and_stderr_are_separate_and_a_failure_has_its_exit_code() -> None:
    code = "import sys; print('10%\\r20%\\rdone'); sys.stderr.write('bad\\nno end of line'); sys.exit(3)"
    result = _group.run(python(code), lambda stream, line: None)
    assert result == _group.CommandResult(3, ("10%", "20%", "done"), ("bad", "no end of line"))


def test_a_process_that_a_command_leaves_behind_is_ended(pipe: Pipe) -> None:
    """The command has ended, and a process that it left keeps its pipes open: run does not wait for it."""
    code = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    code += "; os.read(os.open(sys.argv[2], os.O_RDONLY), 4)"  # waits until the process runs
    holder = HOLDER.format(ignore_sigterm="", pipe=pipe.path)
    assert _group.run(python(code, holder, pipe.path), lambda stream, line: None).code == 0
    assert pipe.read() == b""


@pytest.mark.parametrize("ignore_sigterm", ["", IGNORE_SIGTERM], ids=["sigterm", "sigkill"])
def test_an_exception_ends_the_grandchild(pipe: Pipe, monkeypatch: pytest.MonkeyPatch, ignore_sigterm: str) -> None:
    if ignore_sigterm:
        monkeypatch.setattr(_group, "GRACE_S", 0.1)

    def interrupt(stream: str, line: str) -> None:
        assert line == "ready"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _group.run(python(PARENT, HOLDER.format(ignore_sigterm=ignore_sigterm, pipe=pipe.path)), interrupt)
    assert pipe.read() == b"here"
    assert pipe.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel can kill a process with its parent")
@pytest.mark.parametrize("shell", [path for name in ("sh", "bash") if (path := shutil.which(name))])
def test_a_killed_flow_leaves_no_stage_behind(repository: Path, pipe: Pipe, shell: str) -> None:
    """Flow -> dvc -> shell -> stage: the flow is killed with SIGKILL, and each process ends with its parent."""
    tie = "from qamoe.process_lifetime import die_with_parent\ndie_with_parent()\n"
    (repository / "stage.py").write_text(tie + HOLDER.format(ignore_sigterm="", pipe=pipe.path))
    code = "import sys; from flows import _dvc, _group; _group.run(sys.argv[1:], print, _dvc.environment({}))"
    flow = subprocess.Popen(
        python(code, sys.executable, "-m", "dvc", "repro", "-q", "-s", "code-extract", "extract"),
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "SHELL": shell},
    )
    try:
        assert pipe.read() == b"here"
    finally:
        flow.send_signal(signal.SIGKILL)
        flow.wait()
    assert pipe.read() == b""
