"""An experiment is an overlay on params.yaml whose results lie beside the main line's."""

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
from qamoe.pipeline.experiment import STAGES


def test_mappings_are_merged_null_takes_away_and_anything_else_is_replaced() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": {"z": 3, "w": 4}}
    above = {"a": {"y": [9]}, "b": {"new": True}, "c": {"w": None}}
    assert overlaid(below, above) == {"a": {"x": 1, "y": [9]}, "b": {"new": True}, "c": {"z": 3}}
    assert below == {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": {"z": 3, "w": 4}}


@pytest.fixture
def commands(tmp_path: Path, params_file: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that an experiment runs, none of them for real; the working folder is the test's."""
    params_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    run: list[list[str]] = []

    def pretended(command: list[str], **_: Any) -> SimpleNamespace:
        run.append(command)
        return SimpleNamespace(returncode=int("evaluate" in command and "failing" in str(command)))

    monkeypatch.setattr(experiment.subprocess, "run", pretended)
    return run


def write(name: str, text: str) -> None:
    Path(f"experiments/{name}.yaml").write_text(text)


def test_every_stage_runs_on_the_overlaid_parameters_into_its_own_folder(commands: list[list[str]]) -> None:
    before = Path("params.yaml").read_bytes()
    write("fast", "train: {common: {lr: 0.5}}\n")
    experiment.run("fast")
    assert [command[1:5] for command in commands] == [["-m", "qamoe", "run", stage] for stage in STAGES]
    for command in commands:
        assert command[0] == sys.executable
        assert command[5:] == ["--params", "artifacts-fast/params.yaml", "--out", "artifacts-fast"]
    params = parameters.load(Path("artifacts-fast/params.yaml"))
    assert params.train.common.lr == 0.5
    assert params.train.common.epochs == parameters.load(Path("params.yaml")).train.common.epochs
    assert Path("params.yaml").read_bytes() == before
    assert not Path("artifacts").exists()


def test_an_experiment_ends_at_the_stage_that_fails(commands: list[list[str]]) -> None:
    write("failing", "train: {common: {lr: 0.5}}\n")
    with pytest.raises(UserError, match=r"Experiment failing ended in stage evaluate\."):
        experiment.run("failing")
    assert [command[4] for command in commands][-1] == "evaluate"


def test_an_unknown_experiment_is_refused_with_those_there_are(commands: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"There is no experiment experiments/x\.yaml; those there are: none\."):
        experiment.run("x")
    write("b", "{}")
    write("a", "{}")
    with pytest.raises(UserError, match=r"those there are: a, b\."):
        experiment.run("x")


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ("train: {common: {learning_rate: 0.5}}\n", r"unknown key train\.common\.learning_rate"),
        ("train: {common: {lr: -1}}\n", r"train\.common\.lr is -1"),
        ("train: [", r"wrong\.yaml is not YAML"),
        ("- train\n", r"wrong\.yaml is \['train'\]; an overlay is a mapping"),
        ("extract: {corpus: {kind: web}}\n", r"wrong\.yaml: extract\.corpus\.kind is 'web'"),
        ("models: {qamo: {}}\n", r"wrong\.yaml: unknown key models\.qamo;"),
        ("evaluate: {slices: [fog]}\n", r"wrong\.yaml: evaluate\.slices\.0 is 'fog'"),
        ("extends: nowhere\n", r"no experiment experiments/nowhere\.yaml, which wrong\.yaml extends; .* are: wrong\."),
        ("extends: wrong\n", r"experiments/wrong\.yaml: extends goes round in a circle: wrong -> wrong\."),
    ],
)
def test_a_wrong_overlay_is_refused_before_anything_is_written(
    commands: list[list[str]], overlay: str, sentence: str
) -> None:
    write("wrong", overlay)
    with pytest.raises(UserError, match=sentence):
        experiment.run("wrong")
    assert commands == []
    assert not Path("artifacts-wrong").exists()


def test_an_overlay_lies_on_those_that_it_extends(commands: list[list[str]]) -> None:
    write("first", "train: {common: {lr: 0.5, patience: 9, selection: {severities: {noise: null, missing: [0.5]}}}}\n")
    write("second", "extends: first\ntrain: {common: {patience: 8}}\n")
    write("third", "extends: second\ntrain: {common: {selection: {severities: {missing: null, burst: [0.2]}}}}\n")
    experiment.run("third")
    common = parameters.load(Path("artifacts-third/params.yaml")).train.common
    assert (common.lr, common.patience) == (0.5, 8)
    assert common.selection.severities == {"burst": (0.2,)}, "what the first takes away stays away"


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
def test_an_overlay_extends_none_but_its_neighbours(tmp_path: Path, name: Any) -> None:
    (tmp_path / "params.yaml").write_text("seeds: {mean: [1]}\n")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/far.yaml").write_text(yaml.safe_dump({"extends": name}))
    with pytest.raises(UserError) as refused:
        experiment_content("far", tmp_path / "params.yaml", tmp_path / "experiments")
    assert repr(name) in str(refused.value)


def test_a_report_is_about_every_model_of_seeds(tmp_path: Path, params_file: Any) -> None:
    with pytest.raises(UserError, match=r"seeds names \w+, which has no cells in .*evaluate"):
        report.run(parameters.load(params_file()), tmp_path)
    assert not (tmp_path / "report").exists()
