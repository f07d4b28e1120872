"""Which stages run, what a failure says, and when a command is tried again."""

import graphlib
from pathlib import Path

import pytest
import yaml
import zc.lockfile
from prefect import State, flow

from flows import _dvc
from flows import extract as extract_flow

DVC_YAML = Path(_dvc.__file__).parent.parent / "dvc.yaml"


def test_stages_are_those_of_dvc_yaml_and_in_an_order_in_which_they_can_run() -> None:
    stages = yaml.safe_load(DVC_YAML.read_text())["stages"]
    assert {*_dvc.STAGES, *(f"code-{name}" for name in _dvc.STAGES)} == set(stages)
    makers = {}
    for name, stage in stages.items():
        for out in (*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())):
            path = next(iter(out)) if isinstance(out, dict) else out
            makers["/".join(path.split("/")[:2])] = name
    del makers["artifacts/code"]  # each stage's is run with it
    needs = {
        name: {makers.get("/".join(dep.split("/")[:2])) for dep in stage["deps"]} - {None}
        for name, stage in stages.items()
    }
    graphlib.TopologicalSorter(needs).prepare()
    for position, name in enumerate(_dvc.STAGES):
        assert f"artifacts/code/{name}.json" in stages[name]["deps"]
        assert needs[name] <= set(_dvc.STAGES[:position]), name


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("{}", ()),
        ('{"data.dvc": [{"changed outs": {"data": "modified"}}]}', ()),
        ('{"tune": ["changed command"]}', ("tune", "report")),
        ('{"evaluate@mean": ["changed command"]}', ("evaluate", "tune", "report")),
        ('{"report": [], "preprocess": []}', ("preprocess", "train", "evaluate", "tune", "report")),
    ],
)
def test_the_first_stale_stage_and_all_after_it_run(status: str, expected: tuple[str, ...]) -> None:
    assert _dvc.stale(status) == expected


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ((), "ended with exit code 255 and said nothing"),
        (
            ("train: seed 9 is none.", "ERROR: failed to reproduce 'train@a': failed to run: python x, exited with 2"),
            "train: seed 9 is none.",
        ),
        (
            ("a log line", "ERROR: failed to reproduce 'train': [Errno 2] No such file or directory: 'one.txt'"),
            "ERROR: failed to reproduce 'train': [Errno 2] No such file or directory: 'one.txt'",
        ),
        (
            ("ERROR: failed to reproduce 'train': failed to run: false, exited with 1", ""),
            "ERROR: failed to reproduce 'train': failed to run: false, exited with 1",
        ),
        (("ERROR: Unable to acquire lock. Most likely another DVC process", "is running"), None),
    ],
)
def test_a_failure_is_one_sentence(stderr: tuple[str, ...], expected: str | None) -> None:
    assert _dvc.sentence(stderr, 255) == (expected or stderr[0])


def test_what_a_stage_printed_is_told_from_what_dvc_printed() -> None:
    stdout = """Running stage 'train@mean':
> python stage.py train mean
| a | table |

| of | two |
Updating lock file 'dvc.lock'

Running stage 'train@qamoe':
> python stage.py train qamoe
hello
Updating lock file 'dvc.lock'

To track the changes with git, run:

\tgit add dvc.lock
Use `dvc push` to send your updates to remote storage."""
    assert _dvc.stage_output(stdout.splitlines()) == "| a | table |\n\n| of | two |\nhello"
    assert _dvc.stage_output(["Stage 'train@mean' didn't change, skipping", "Data and pipelines are up to date."]) == ""


@flow
def command_flow(module: str) -> "State[object]":
    return _dvc.command("thing", module)


@pytest.mark.usefixtures("server")
def test_a_locked_repository_is_tried_again_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_dvc, "_command", _dvc._command.with_options(retry_delay_seconds=0))
    program = (
        "import sys, pathlib\n"
        "tries = pathlib.Path('tries'); tries.write_text(tries.read_text() + '.' if tries.exists() else '.')\n"
        "said = {1: 'ERROR: Unable to acquire lock.', 2: 'thing: it is broken.'}\n"
        "sys.exit(said[len(tries.read_text())])\n"
    )
    (tmp_path / "thing.py").write_text(program)
    state = command_flow("thing", return_state=True)
    assert (state.is_failed(), state.message) == (True, "thing: it is broken.")
    assert (tmp_path / "tries").read_text() == ".."


@flow
def extract_alone() -> "State[object]":
    return _dvc.run_stage("extract")


@pytest.mark.usefixtures("server")
def test_the_lock_of_another_dvc_is_waited_for(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = zc.lockfile.LockFile(str(repository / ".dvc/tmp/lock"))
    verdicts = []

    def releasing(task: object, run: object, state: "State[object]") -> bool:
        lock.close()
        verdicts.append(_dvc.locked(task, run, state))
        return verdicts[-1]

    again = _dvc._command.with_options(retry_delay_seconds=0, retry_condition_fn=releasing)
    monkeypatch.setattr(_dvc, "_command", again)
    assert extract_alone(return_state=True).is_completed()
    assert verdicts == [True]
    assert (repository / "ran.txt").read_text() == "extract\n"


@pytest.mark.usefixtures("server")
def test_a_stage_runs_once_and_its_refusal_is_the_flows(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _dvc.start(extract_flow.extract)
    assert capsys.readouterr().out == "extract says hello\n"
    _dvc.start(extract_flow.extract)  # nothing has changed
    assert (repository / "ran.txt").read_text() == "extract\n"
    (repository / "corpus.txt").write_text("bad")
    with pytest.raises(SystemExit) as left:
        _dvc.start(extract_flow.extract)
    assert left.value.code == "extract: corpus.txt is bad; it may hold anything else."
