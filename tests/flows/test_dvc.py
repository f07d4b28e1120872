"""Test which stages run, the message of a failure, and when a command is retried."""

import graphlib
import inspect
from pathlib import Path

import pytest
import yaml
import zc.lockfile
from prefect import State, flow

from flows import _dvc
from flows import extract as extract_flow
from flows import tune as tune_flow

DVC_YAML = Path(_dvc.__file__).parent.parent / "dvc.yaml"


def test_stages_are_those_of_dvc_yaml_in_a_valid_order() -> None:
    stages = yaml.safe_load(DVC_YAML.read_text())["stages"]
    assert {*_dvc.STAGES, *(f"code-{name}" for name in _dvc.STAGES), "tune-parameters"} == set(stages)
    producers = {}
    for name, stage in stages.items():
        for out in (*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())):
            path = next(iter(out)) if isinstance(out, dict) else out
            producers["/".join(path.split("/")[:2])] = name
    del producers["artifacts/code"]  # run_stage runs each code stage with its stage
    needs = {
        name: {producers.get("/".join(dep.split("/")[:2])) for dep in stage["deps"]} - {None}
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
        (
            ("train: seed 9: unknown", "ERROR: failed to reproduce 'train@a': failed to run: python x, exited with 2"),
            "train: seed 9: unknown",
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


def test_a_failure_without_a_message_names_the_exit_code() -> None:
    assert "255" in _dvc.sentence((), 255)


def test_the_output_of_a_stage_is_separated_from_that_of_dvc() -> None:
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


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_only_a_locked_repository_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_dvc, "_command", _dvc._command.with_options(retry_delay_seconds=0))
    program = (
        "import sys, pathlib\n"
        "tries = pathlib.Path('tries'); tries.write_text(tries.read_text() + '.' if tries.exists() else '.')\n"
        "messages = {1: 'ERROR: Unable to acquire lock.', 2: 'thing: it is broken.'}\n"
        "sys.exit(messages[len(tries.read_text())])\n"
    )
    (tmp_path / "thing.py").write_text(program)
    state = command_flow("thing", return_state=True)
    assert (state.is_failed(), state.message) == (True, "thing: it is broken.")
    assert (tmp_path / "tries").read_text() == ".."


@flow
def extract_alone() -> "State[object]":
    return _dvc.run_stage("extract")


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_flow_waits_for_the_lock_of_another_dvc(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = zc.lockfile.LockFile(str(repository / ".dvc/tmp/lock"))
    retried = []

    def release_lock(task: object, run: object, state: "State[object]") -> bool:
        lock.close()
        retried.append(_dvc.locked(task, run, state))
        return retried[-1]

    command = _dvc._command.with_options(retry_delay_seconds=0, retry_condition_fn=release_lock)
    monkeypatch.setattr(_dvc, "_command", command)
    assert extract_alone(return_state=True).is_completed()
    assert retried == [True]
    assert (repository / "ran.txt").read_text() == "extract\n"


@pytest.mark.usefixtures("server")
@pytest.mark.slow
def test_a_stage_runs_once_and_its_error_is_that_of_the_flow(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _dvc.start(extract_flow.extract)
    assert capsys.readouterr().out == "extract says hello\n"
    _dvc.start(extract_flow.extract)  # nothing has changed
    assert (repository / "ran.txt").read_text() == "extract\n"
    (repository / "corpus.txt").write_text("bad")
    with pytest.raises(SystemExit) as exit_:
        _dvc.start(extract_flow.extract)
    assert exit_.value.code == "extract: corpus.txt is bad; any other content is allowed"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_a_flow_prints_its_parameters_and_runs_nothing(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It ran: `--help` was taken for a parameter."""
    _dvc.start(tune_flow.tune, [option])
    printed = capsys.readouterr().out
    assert inspect.cleandoc(tune_flow.tune.fn.__doc__ or "") in printed
    described = dict(line.split("=VALUE  ") for line in printed.splitlines() if "=VALUE  " in line)
    assert described == {
        "  workers": "an integer, at least 1; default: none",
        "  device": "cpu or cuda; default: none",
        "  experiment": "text; default: none",
    }


@pytest.mark.parametrize(
    ("argument", "seen"),
    [
        ("foo=1", ("'foo'", "experiment=VALUE")),
        ("experiment=nix", ("experiments/nix.yaml", "mine")),
        ("experiment=é x", ("'é x'", "letters")),
        ("workers=0", ("workers", "'0'", "1")),
        ("device=tpu", ("device", "'tpu'", "'cpu' or 'cuda'")),
    ],
)
def test_a_wrong_parameter_ends_a_flow_before_prefect_starts(
    argument: str, seen: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong experiment was found by a task, after a server had started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/mine.yaml").touch()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")  # nothing answers; Prefect would say so
    with pytest.raises(SystemExit) as ended:
        _dvc.start(tune_flow.tune, [argument])
    assert [value for value in seen if value not in str(ended.value)] == [], ended.value
