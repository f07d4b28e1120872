"""A searched value makes neither the stage tune stale nor another study; any other parameter of a trial does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qamoe.config.params import load
from qamoe.pipeline.accept_tuned import accept
from qamoe.pipeline.tune import study_name
from qamoe.pipeline.tune_parameters import fixed

ROOT = Path(__file__).parents[2]
SEARCHED = {"train.common.lr": 0.0021, "train.common.weight_decay": 0.02, "models.encoders.dropout": 0.3}
IRRELEVANT = {"train.common.epochs": 7, "models.concat.hidden": 8, "evaluate.draws": 1, "registry.draws": 1}
RELEVANT = {
    "train.common.batch_size": 8,
    "models.qamoe.hidden": 4,
    "models.encoders.width": 16,
    "tune.seed": 9,
    "tune.space": {"train.common.lr": {"low": 0.001, "high": 0.1}},
}


@pytest.mark.parametrize(("key", "value"), [*SEARCHED.items(), *IRRELEVANT.items(), *RELEVANT.items()])
def test_the_name_of_a_study_depends_on_what_its_trials_depend_on(
    params_file: Callable[..., Path], key: str, value: Any
) -> None:
    before = study_name(load(params_file()), "data")
    assert before.startswith("qamoe-lr-weight_decay-dropout-"), "in the order of the file"
    after = study_name(load(params_file({key: value})), "data")
    assert (after != before) == (key in RELEVANT)
    assert study_name(load(params_file()), "other data") != before


def test_an_ablation_has_the_block_of_its_model(params_file: Callable[..., Path]) -> None:
    params = load(params_file({"tune.model": "ablation-gate", "tune.space": {"models.qamoe.hidden": {"choices": [8]}}}))
    kept = fixed(params)
    assert set(kept["models"]) == {"encoders", "qamoe"}
    assert "hidden" not in kept["models"]["qamoe"]
    assert "lr" in kept["train"]["common"]


@pytest.fixture
def _repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write params.yaml, and the stages tune, whose command only writes its outputs, and tune-parameters."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "src").symlink_to(ROOT / "src")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    parameters, tune = stages["tune-parameters"], stages["tune"]
    del parameters["deps"]
    parameters["cmd"] = parameters["cmd"].replace("python", sys.executable)
    tune["deps"] = ["artifacts/code/tune-parameters.json"]
    tune["cmd"] = "mkdir -p artifacts/tune/plots && touch artifacts/tune/best_params.yaml artifacts/tune/trials.csv"
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"tune-parameters": parameters, "tune": tune}}))
    dvc("init", "--no-scm")
    dvc("config", "core.analytics", "false")


def dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran() -> set[str]:
    """Return the stages that `dvc repro` runs."""
    return {line.split("'")[1] for line in dvc("repro").splitlines() if line.startswith("Running stage '")}


@pytest.mark.slow
@pytest.mark.usefixtures("_repository")
def test_accepting_the_result_of_a_search_does_not_make_it_stale(tmp_path: Path) -> None:
    assert ran() == {"tune-parameters", "tune"}
    best = tmp_path / "best.yaml"
    best.write_text("train: {common: {lr: 0.0021, weight_decay: 0.02}}\nmodels: {encoders: {dropout: 0.3}}\n")
    assert accept(best, Path("params.yaml"))
    assert set(json.loads(dvc("status", "--json"))) == {"tune-parameters"}
    assert ran() == {"tune-parameters"}
    assert json.loads(dvc("status", "--json")) == {}
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("batch_size: 32", "batch_size: 16"))
    assert ran() == {"tune-parameters", "tune"}
