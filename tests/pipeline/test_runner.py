"""How a stage starts and ends: one at a time, a refusal as one sentence, nothing left running or locked."""

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
# Ends by itself only when nobody holds the other end of its standard input.
WAITING = "import sys; print('ready', flush=True); sys.stdin.read()"
# A leader of a group whose child outlives it, unless the whole group is ended.
LEADER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITING!r}])"


def closed(process: "subprocess.Popen[bytes]") -> bool:
    """Whether nobody holds the standard output of a process any more, be it the process or a child of it."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 60)
    return bool(ready) and process.stdout.read() == b""


@pytest.fixture
def started() -> Iterator[Started]:
    """Start Python code that says 'ready' and waits; what is left at the end of the test is ended."""
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
            process.stdin.close()  # a child that is left over reads its end and goes
        process.wait()


def held(pid: int, started_at: str | None) -> str:
    return json.dumps({"pid": pid, "started": started_at})


def test_the_lock_names_this_process_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "out" / ".train.lock"
    with runner.single_instance(lock):
        assert json.loads(lock.read_text()) == {"pid": os.getpid(), "started": start_time(os.getpid())}
    assert not lock.exists()
    with pytest.raises(UserError), runner.single_instance(lock):
        raise UserError("no")
    assert not lock.exists()


def test_a_stage_that_still_runs_is_ended_by_the_next(tmp_path: Path, started: Started) -> None:
    process, lock = started(WAITING), tmp_path / ".train.lock"
    lock.write_text(held(process.pid, start_time(process.pid)))
    with runner.single_instance(lock):
        assert process.wait() == -signal.SIGKILL
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path, started: Started) -> None:
    process, lock = started(WAITING), tmp_path / ".train.lock"
    lock.write_text(held(process.pid, "1"))
    with runner.single_instance(lock):
        assert process.poll() is None
    process.communicate(b"")
    assert process.returncode == 0


@pytest.mark.parametrize("content", ["", "half of a li", held(2**22 + 1, None), held(2**22 + 1, "5"), "[]", "{}"])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path, content: str) -> None:
    lock = tmp_path / ".train.lock"
    lock.write_text(content)
    with runner.single_instance(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_the_whole_group_of_a_leader_is_ended(started: Started) -> None:
    process = started(LEADER, start_new_session=True)
    runner.end(process.pid)
    assert closed(process), "the child, which holds the other end, is there still"
    assert process.wait() == -signal.SIGKILL


def test_ending_what_is_gone_is_no_error(started: Started) -> None:
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
    assert not Path("elsewhere").exists(), "made for the lock alone, and left behind"


def test_a_refusal_is_a_sentence_and_exit_code_2(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any) -> dict[str, Any]:
        raise UserError("There is no such thing.")

    with pytest.raises(SystemExit) as ended:
        command(run)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "train: There is no such thing.\n"
    assert not Path("artifacts").exists()


def test_a_stop_by_hand_says_how_to_go_on(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command(run)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "train: stopped; start it again to go on.\n"
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
def test_quiet_silences_the_log_and_not_the_line_of_json(
    command: Any, quiet: bool, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda *_: {"level": runner.log.getEffectiveLevel()}, quiet=quiet)
    assert json.loads(capsys.readouterr().out) == {"stage": "train", "level": level}
