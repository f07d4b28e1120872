"""Start and end of a stage: one instance at a time, errors as one sentence, no process or lock left over."""

import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qamoe.errors import UserError
from qamoe.pipeline import runner
from qamoe.process_lifetime import start_time

Started = Callable[..., "subprocess.Popen[bytes]"]
# Ends by itself when the other end of its standard input is closed.
WAITING = "import sys; print('ready', flush=True); sys.stdin.read()"
# The leader of a process group whose child outlives it, unless the whole group is ended.
LEADER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITING!r}])"


def closed(process: "subprocess.Popen[bytes]") -> bool:
    """Return whether the process and its children have closed the standard output."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 60)
    return bool(ready) and process.stdout.read() == b""


@pytest.fixture
def started() -> Iterator[Started]:
    """Start Python code that prints 'ready' and waits; processes still running after the test are killed."""
    running: list[subprocess.Popen[bytes]] = []

    def start(code: str, **options: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in running:
        process.kill()
        if process.stdin is not None:
            process.stdin.close()  # a remaining child reads end of file and exits
        process.wait()


def lock_content(pid: int, started_at: str | None) -> str:
    return json.dumps({"pid": pid, "started": started_at})


def test_the_lock_names_this_process_and_is_removed_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "out" / ".train.lock"
    with runner.single_instance(lock):
        assert json.loads(lock.read_text()) == {"pid": os.getpid(), "started": start_time(os.getpid())}
    assert not lock.exists()
    with pytest.raises(UserError), runner.single_instance(lock):
        raise UserError("no")
    assert not lock.exists()


def test_a_running_stage_is_ended_by_the_next(tmp_path: Path, started: Started) -> None:
    process, lock = started(WAITING), tmp_path / ".train.lock"
    lock.write_text(lock_content(process.pid, start_time(process.pid)))
    with runner.single_instance(lock):
        assert process.wait() == -signal.SIGKILL
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_another_process_with_the_same_id_is_not_ended(tmp_path: Path, started: Started) -> None:
    process, lock = started(WAITING), tmp_path / ".train.lock"
    lock.write_text(lock_content(process.pid, "1"))
    with runner.single_instance(lock):
        assert process.poll() is None
    process.communicate(b"")
    assert process.returncode == 0


@pytest.mark.parametrize(
    "content", ["", "half of a li", lock_content(2**22 + 1, None), lock_content(2**22 + 1, "5"), "[]", "{}"]
)
def test_an_invalid_lock_is_replaced(tmp_path: Path, content: str) -> None:
    lock = tmp_path / ".train.lock"
    lock.write_text(content)
    with runner.single_instance(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_the_whole_group_of_a_leader_is_ended(started: Started) -> None:
    process = started(LEADER, start_new_session=True)
    runner.end(process.pid)
    assert closed(process), "the child is still running"
    assert process.wait() == -signal.SIGKILL


def test_ending_a_process_that_has_ended_does_nothing(started: Started) -> None:
    process = started(WAITING)
    process.communicate(b"")
    runner.end(process.pid)


@pytest.fixture
def command(tmp_path: Path, params_file: Any, environment: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start the stage train with a function in its place: command(run, out=Path("elsewhere"), model="mean")."""
    path = params_file()
    monkeypatch.chdir(tmp_path)
    level = runner.log.level

    def call(
        work: Callable[..., dict[str, Any]],
        out: Path = Path("artifacts"),
        quiet: bool = False,
        params: Path = path,
        **more: Any,
    ) -> None:
        runner.run_stage("train", work, params, out, quiet, selects_model=True, **more)

    yield call
    runner.log.setLevel(level)


def test_a_stage_gets_its_parameters_folder_and_model(command: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    def run(params: Any, out: Path, model: str | None) -> dict[str, Any]:
        seen.append((params.seeds["mean"], out, model, sorted(p.name for p in out.iterdir())))
        return {}

    command(run)
    command(run, Path("elsewhere"), model="mean")
    assert seen == [
        ((1,), Path("artifacts"), None, [".train-concat.lock", ".train-mean.lock", ".train-qamoe.lock"]),
        ((1,), Path("elsewhere"), "mean", [".train-mean.lock"]),
    ]
    assert not Path("elsewhere").exists(), "a folder created only for the lock stayed"


def test_temporary_files_of_dead_processes_are_removed_at_the_start(command: Any, started: Started) -> None:
    """Also those of its encoded text, although a stage with nothing left to do does not open it."""
    ended, running = started(WAITING), started(WAITING)
    ended.kill()
    ended.wait()
    left = [Path("artifacts", folder, f".file.{ended.pid}") for folder in ("train/qamoe/1", "states/train")]
    kept = [path.with_suffix(f".{running.pid}") for path in left]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    command(lambda params, out, model: {})
    assert [path for path in (*left, *kept) if path.exists()] == kept


def test_a_user_error_is_one_sentence_and_exit_code_2(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any) -> dict[str, Any]:
        raise UserError("x does not exist.")

    with pytest.raises(SystemExit) as ended:
        command(run)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "train: x does not exist.\n"
    assert not Path("artifacts").exists()


def test_ctrl_c_ends_the_stage_with_one_line_and_exit_code_130(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command(run)
    assert ended.value.code == 130
    error = capsys.readouterr().err
    assert error.startswith("train: ")
    assert error.count("\n") == 1
    assert not Path("artifacts").exists()


def test_an_unknown_model_is_refused(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(lambda *_: pytest.fail("it ran"), model="tensor")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    for part in ("'tensor'", "concat, mean, qamoe", "params.yaml"):
        assert part in error
    assert not Path("artifacts").exists()


@pytest.mark.parametrize(("quiet", "level"), [(False, logging.INFO), (True, logging.WARNING)])
def test_quiet_silences_the_log_but_prints_the_json_line(
    command: Any, quiet: bool, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda *_: {"level": runner.log.getEffectiveLevel()}, quiet=quiet)
    assert json.loads(capsys.readouterr().out) == {"stage": "train", "level": level}


def test_a_lock_with_other_content_is_replaced(tmp_path: Path) -> None:
    lock = tmp_path / ".train.lock"
    lock.write_text("[1]")
    with runner.single_instance(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
