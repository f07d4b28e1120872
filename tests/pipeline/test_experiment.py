"""Experiments: overlays on params.yaml, run into folders of their own next to the results of the main pipeline."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from qamoe.config import params as parameters
from qamoe.config.overlay import experiment_content, overlaid
from qamoe.errors import UserError
from qamoe.pipeline import experiment, report
from qamoe.pipeline.experiment import SEARCH, STAGES

ROOT = Path(__file__).parents[2]


def test_mappings_are_merged_null_removes_and_other_values_replace() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": {"z": 3, "w": 4}}
    above = {"a": {"y": [9]}, "b": {"new": True}, "c": {"w": None}}
    assert overlaid(below, above) == {"a": {"x": 1, "y": [9]}, "b": {"new": True}, "c": {"z": 3}}
    assert below == {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": {"z": 3, "w": 4}}


@pytest.fixture
def commands(tmp_path: Path, params_file: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the commands that an experiment would run, without running them, in a folder of the test."""
    params_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    run: list[list[str]] = []

    def record_command(command: list[str], **_: Any) -> SimpleNamespace:
        run.append(command)
        return SimpleNamespace(returncode=int("failing" in str(command)))

    monkeypatch.setattr(experiment.subprocess, "run", record_command)
    return run


def write(name: str, text: str) -> None:
    Path(f"experiments/{name}.yaml").write_text(text)


def test_an_experiment_is_a_pipeline_on_the_overlaid_parameters_in_its_own_folder(commands: list[list[str]]) -> None:
    before = Path("params.yaml").read_bytes()
    write("fast", "train: {common: {lr: 0.5}}\nextract: {corpus: {path: data-fast}}\nseeds: {qamoe: null}\n")
    experiment.run("fast")
    assert [command[1:] for command in commands] == [["-m", "dvc", "repro", "artifacts-fast/dvc.yaml:report"]]
    params = parameters.load(Path("artifacts-fast/params.yaml"))
    assert params.train.common.lr == 0.5
    assert params.train.common.epochs == parameters.load(Path("params.yaml")).train.common.epochs
    stages = yaml.safe_load(Path("artifacts-fast/dvc.yaml").read_text())["stages"]
    assert tuple(stages) == STAGES
    assert stages["extract"]["deps"] == ["artifacts/code/extract.json", "data-fast"]
    assert stages["train"]["matrix"] == {"model": list(params.seeds)}
    for name, stage in stages.items():
        assert stage["wdir"] == ".."
        assert stage["cmd"].endswith(" --params artifacts-fast/params.yaml --out artifacts-fast")
        assert f" run {name} " in stage["cmd"]
        assert [list(source) for source in stage["params"]] == [["artifacts-fast/params.yaml"]]
        outs = [
            next(iter(out)) if isinstance(out, dict) else out
            for kind in ("outs", "metrics", "plots")
            for out in stage.get(kind, [])
        ]
        assert outs
        assert all(out.startswith("artifacts-fast/") for out in outs)
    assert Path("params.yaml").read_bytes() == before
    assert not Path("artifacts").exists()


@pytest.mark.usefixtures("commands")
def test_a_search_that_is_asked_for_is_in_the_pipeline_with_its_own_record() -> None:
    write("searched", "tune: {trials: 41}\n")
    experiment.write("searched", search=True)
    stages = yaml.safe_load(Path("artifacts-searched/dvc.yaml").read_text())["stages"]
    assert tuple(stages) == (*STAGES, *SEARCH)
    record = "artifacts-searched/code/tune-parameters.json"
    assert stages["tune-parameters"]["outs"] == [record]
    assert stages["tune"]["deps"][:2] == ["artifacts/code/tune.json", record]
    assert stages["tune"]["params"] == [{"artifacts-searched/params.yaml": ["tune"]}]


def test_a_search_that_never_ran_is_not_in_the_pipeline(commands: list[list[str]]) -> None:
    """DVC once called it stale for ever, also in a clone that had pulled all results."""
    write("searched", "tune: {trials: 41}\n")
    out = Path("artifacts-searched")
    experiment.run("searched", search=True)
    assert commands[-1][3:] == ["repro", "artifacts-searched/dvc.yaml:tune"]
    experiment.run("searched")
    assert tuple(yaml.safe_load((out / "dvc.yaml").read_text())["stages"]) == STAGES
    assert commands[-1][3:] == ["repro", "artifacts-searched/dvc.yaml:report"]
    (out / "dvc.lock").write_text("stages: {extract: {}, tune: {}}\n")  # as DVC writes it after a search
    experiment.run("searched")
    assert tuple(yaml.safe_load((out / "dvc.yaml").read_text())["stages"]) == (*STAGES, *SEARCH)
    targets = ["artifacts-searched/dvc.yaml:tune-parameters", "artifacts-searched/dvc.yaml:report"]
    assert commands[-1][3:] == ["repro", *targets], "accepting a result changes the record's parameters, not the record"


def test_the_last_line_adds_the_files_of_an_experiment_to_git(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line was DVC's, which names dvc.lock alone."""
    write("mine", "extract: {corpus: {path: data of mine/corpus.pkl}}\n")
    for file in ("data of mine/corpus.pkl", "data of mine/corpus.pkl.dvc", "artifacts-mine/dvc.lock", "dvc.lock"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("stages: {}\n")
    experiment.run("mine")
    *_, last = capsys.readouterr().out.splitlines()
    assert shlex.split(last.partition(": ")[2]) == [
        "git",
        "add",
        "experiments/mine.yaml",
        "artifacts-mine/params.yaml",
        "artifacts-mine/dvc.yaml",
        "artifacts-mine/dvc.lock",
        "dvc.lock",
        "data of mine/corpus.pkl.dvc",
    ]


def test_a_corpus_that_dvc_does_not_track_is_added(commands: list[list[str]]) -> None:
    write("mine", "extract: {corpus: {path: data-mine/corpus.pkl}}\n")
    Path("data-mine").mkdir()
    Path("data-mine/corpus.pkl").touch()
    experiment.run("mine")
    assert commands[0][1:] == ["-m", "dvc", "add", "--quiet", "data-mine/corpus.pkl"]
    Path("data-mine/corpus.pkl.dvc").touch()
    experiment.run("mine")
    assert [command[3] for command in commands] == ["add", "repro", "repro"]


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("path", ["data ${b} é", "${item.model}", "a\\${b}"])
def test_dvc_reads_the_path_of_a_corpus_as_it_is(path: str) -> None:
    """A ${...} in it once was a template, and one such experiment failed every command of dvc in the checkout."""
    from dvc.parsing import DataResolver
    from dvc.repo import Repo

    write("odd", yaml.safe_dump({"extract": {"corpus": {"path": path}}}))
    experiment.write("odd")
    plan = yaml.safe_load(Path("artifacts-odd/dvc.yaml").read_text())
    shutil.rmtree(".dvc")
    with Repo.init(no_scm=True) as repo:
        resolver = DataResolver(repo, str(Path.cwd()), plan)
        assert resolver.resolve_one("extract")["extract"]["deps"][1] == path


def test_a_failed_stage_fails_the_experiment(commands: list[list[str]]) -> None:
    write("failing", "train: {common: {lr: 0.5}}\n")
    with pytest.raises(UserError, match=r"failing .*dvc repro artifacts-failing/dvc\.yaml"):
        experiment.run("failing")


def test_an_experiment_needs_a_checkout(commands: list[list[str]]) -> None:
    Path(".dvc").rmdir()
    write("fast", "train: {common: {lr: 0.5}}\n")
    with pytest.raises(UserError, match=r"\.dvc"):
        experiment.run("fast")
    assert not Path("artifacts-fast").exists()


def test_an_unknown_experiment_is_refused_with_the_known_ones(commands: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"experiments/x\.yaml"):
        experiment.run("x")
    write("b", "{}")
    write("a", "{}")
    with pytest.raises(UserError, match=r"experiments/x\.yaml.*\ba, b\b"):
        experiment.run("x")


@pytest.mark.parametrize(
    ("overlay", "values"),
    [
        ("train: {common: {learning_rate: 0.5}}\n", ["train.common.learning_rate"]),
        ("train: {common: {lr: -1}}\n", ["train.common.lr", "-1"]),
        ("train: [", ["wrong.yaml"]),
        ("- train\n", ["wrong.yaml", "['train']"]),
        ("extract: {corpus: {kind: web}}\n", ["wrong.yaml", "extract.corpus.kind", "'web'"]),
        ("models: {qamo: {}}\n", ["wrong.yaml", "models.qamo", "qamoe"]),
        ("evaluate: {slices: [fog]}\n", ["wrong.yaml", "evaluate.slices.0", "'fog'"]),
        ("extends: nowhere\n", ["experiments/nowhere.yaml", "wrong.yaml"]),
        ("extends: wrong\n", ["experiments/wrong.yaml", "extends", "wrong -> wrong"]),
    ],
)
def test_a_wrong_overlay_is_refused_before_anything_is_written(
    commands: list[list[str]], overlay: str, values: list[str]
) -> None:
    write("wrong", overlay)
    with pytest.raises(UserError) as refused:
        experiment.run("wrong")
    assert [value for value in values if value not in str(refused.value)] == []
    assert commands == []
    assert not Path("artifacts-wrong").exists()


def test_an_overlay_changes_the_overlays_that_it_extends(commands: list[list[str]]) -> None:
    write("first", "train: {common: {lr: 0.5, patience: 9, selection: {severities: {noise: null, missing: [0.5]}}}}\n")
    write("second", "extends: first\ntrain: {common: {patience: 8}}\n")
    write("third", "extends: second\ntrain: {common: {selection: {severities: {missing: null, burst: [0.2]}}}}\n")
    experiment.run("third")
    common = parameters.load(Path("artifacts-third/params.yaml")).train.common
    assert (common.lr, common.patience) == (0.5, 8)
    assert common.selection.severities == {"burst": (0.2,)}, "a kind that the first overlay removes stays removed"


def test_an_overlay_of_comments_changes_nothing(commands: list[list[str]]) -> None:
    write("same", "# to be filled\n")
    experiment.run("same")
    assert parameters.load(Path("artifacts-same/params.yaml")) == parameters.load(Path("params.yaml"))


def test_an_unknown_experiment_ends_the_command_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qamoe", "experiment", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "experiments/nothing.yaml" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../params", "a/b", "..", "", ["few"], 3])
def test_an_overlay_extends_only_overlays_in_its_folder(tmp_path: Path, name: Any) -> None:
    (tmp_path / "params.yaml").write_text("seeds: {mean: [1]}\n")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/far.yaml").write_text(yaml.safe_dump({"extends": name}))
    with pytest.raises(UserError) as refused:
        experiment_content("far", tmp_path / "params.yaml", tmp_path / "experiments")
    assert repr(name) in str(refused.value)


def test_a_report_needs_an_evaluation_of_every_model_in_seeds(tmp_path: Path, params_file: Any) -> None:
    with pytest.raises(UserError, match=r"\bconcat\b.* seeds .*evaluate"):
        report.run(parameters.load(params_file({"seeds": {"concat": [1]}})), tmp_path)
    assert not (tmp_path / "report").exists()
