"""A command and all that it starts end with the process that asked for it."""

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
# Writes its sign of life into a named pipe and holds it open: whoever reads it sees the end of the last holder.
HOLDER = """
import os, signal, sys
{deaf}
pipe = os.open({pipe!r}, os.O_WRONLY)
os.write(pipe, b"here")
print("ready", flush=True)
signal.pause()
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
WITHIN_MS = 60_000  # only a failing test waits that long


class Pipe:
    """The reading end of a named pipe that the processes under test hold open."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self.end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """Wait for a sign of life, or for the end (no bytes) once one has been read."""
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        assert poll.poll(WITHIN_MS), "neither a sign of life nor an end"
        return os.read(self.end, 64)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    made = Pipe(tmp_path / "pipe")
    yield made
    os.close(made.end)


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_lines_come_while_the_command_runs(tmp_path: Path) -> None:
    """The command goes on only when its first line has been heard."""
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    code = "import sys; print('first', flush=True); print('heard', open(sys.argv[1]).read())"
    heard = []

    def say(line: str) -> None:
        heard.append(line)
        if line == "first":
            answer.write_text("you")

    assert _group.run(python(code, str(answer)), say) == _group.Ended(0, ("first", "heard you"), ())
    assert heard == ["first", "heard you"]


def test_streams_are_told_apart_and_a_failure_is_a_code() -> None:
    code = "import sys; print('10%\\r20%\\rdone'); sys.stderr.write('bad\\nno end of line'); sys.exit(3)"
    ended = _group.run(python(code), lambda line: None)
    assert ended == _group.Ended(3, ("10%", "20%", "done"), ("bad", "no end of line"))


def test_what_a_command_leaves_behind_ends_with_it(pipe: Pipe) -> None:
    """The command is over, and what it left holds its pipes: that is not waited for."""
    code = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    code += "; os.read(os.open(sys.argv[2], os.O_RDONLY), 4)"  # waits for its sign of life
    assert _group.run(python(code, HOLDER.format(deaf="", pipe=pipe.path), pipe.path), lambda line: None).code == 0
    assert pipe.read() == b""


@pytest.mark.parametrize("deaf", ["", DEAF], ids=["obedient", "deaf"])
def test_an_exception_ends_the_grandchild(pipe: Pipe, monkeypatch: pytest.MonkeyPatch, deaf: str) -> None:
    if deaf:
        monkeypatch.setattr(_group, "GRACE_S", 0.1)

    def interrupted(line: str) -> None:
        assert line == "ready"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _group.run(python(PARENT, HOLDER.format(deaf=deaf, pipe=pipe.path)), interrupted)
    assert pipe.read() == b"here"
    assert pipe.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a process to its parent on Linux only")
@pytest.mark.parametrize("shell", [path for name in ("sh", "bash") if (path := shutil.which(name))])
def test_a_killed_flow_leaves_no_stage_behind(repository: Path, pipe: Pipe, shell: str) -> None:
    """Flow -> dvc -> shell -> stage: the flow is killed outright, and each ends with the one above it."""
    tied = "from qamoe.process_lifetime import die_with_parent\ndie_with_parent()\n"
    (repository / "stage.py").write_text(tied + HOLDER.format(deaf="", pipe=pipe.path))
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
