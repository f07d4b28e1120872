"""Golden metrics of the sample corpus: those of the committed report, and those of a short run from the media on.

A change that moves a figure out of its tolerance is wrong, or is meant: then its commit also changes
tests/fixtures/golden_metrics.json, to the values that the failing test prints.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from qamoe.config.overlay import overlaid
from qamoe.evaluation.summary import summarise
from tests.end_to_end.conftest import dvc

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/fixtures/golden_metrics.json").read_text())
SHORT = {
    "train": {
        "common": {
            "epochs": 15,
            "patience": 15,
            "degrade": {"views": 3},
            "selection": {"severities": {"missing": [0.0, 0.5], "noise": [0.5]}, "draws": 1},
        }
    },
    "evaluate": {"draws": 1, "slices": ["clean", "missing", "noise"], "quality_permutations": 1},
}
STAGES = ("extract", "preprocess", "train", "evaluate")
Metrics = dict[str, dict[str, dict[str, float]]]  # model -> slice -> metric


def flat(metrics: Metrics) -> dict[str, float]:
    return {
        f"{model}.{name}.{metric}": value
        for model, slices in metrics.items()
        for name, figures in slices.items()
        for metric, value in figures.items()
    }


def outside(measured: Metrics, golden: dict[str, Any]) -> list[str]:
    """The figures that are further from their golden value than the model's tolerance, or that only one side has."""
    found, expected = flat(measured), flat(golden["values"])
    lines = [f"{name} is only in one of the two" for name in sorted(found.keys() ^ expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        tolerance = golden["tolerance"][name.partition(".")[0]]
        if not abs(found[name] - expected[name]) <= tolerance:
            lines.append(f"{name} is {found[name]:.6f}; golden is {expected[name]:.6f} within {tolerance:g}")
    return lines


def test_a_figure_outside_its_tolerance_is_named() -> None:
    golden = {"tolerance": {"concat": 0.05}, "values": {"concat": {"clean": {"mae": 0.7, "corr": 0.8}}}}
    assert outside({"concat": {"clean": {"mae": 0.74, "corr": 0.76}}}, golden) == []
    (line,) = outside({"concat": {"clean": {"mae": 0.76, "corr": 0.8}}}, golden)
    assert line.startswith("concat.clean.mae is 0.760000")
    assert len(outside({"concat": {"clean": {"mae": float("nan"), "corr": 0.8}}}, golden)) == 1
    assert len(outside({"concat": {"clean": {"mae": 0.7}}, "mean": {"clean": {"mae": 1.0}}}, golden)) == 2


def reported(folder: Path) -> Metrics:
    """The metrics of DVC, and per model and curve the mean of its points."""
    measured: Metrics = {"headline": json.loads((folder / "metrics.json").read_text())}
    for (model, name), points in pd.read_csv(folder / "curves.csv").groupby(["model", "slice"]):
        means = points[["mae", "corr"]].mean().round(6)
        measured.setdefault(str(model), {})[str(name)] = {metric: float(means[metric]) for metric in means.index}
    return measured


def test_the_committed_metrics_are_the_golden_ones() -> None:
    measured = reported(ROOT / "artifacts/report")
    assert outside(measured, GOLDEN["report"]) == [], json.dumps(measured)


def sample_corpus(folder: Path) -> None:
    """Fetch data/ as data.dvc has it, from the files in the repository."""
    shutil.copytree(ROOT / ".dvcstore", folder / ".dvcstore")
    shutil.copy(ROOT / "data.dvc", folder)
    dvc(folder, "init", "--no-scm")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    dvc(folder, "config", "core.no_scm", "true")
    dvc(folder, "pull", "data.dvc")


@pytest.mark.slow
def test_a_short_run_from_the_media_on_has_the_golden_metrics(tmp_path: Path) -> None:
    """Real extraction of the 240 clips, models mean and concat of one seed. About two minutes on two cores."""
    sample_corpus(tmp_path)
    content = overlaid(yaml.safe_load((ROOT / "params.yaml").read_text()), SHORT)
    content["seeds"] = {"mean": [1], "concat": [1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QAMOE_", "MLFLOW_"))}
    environment = kept | {"QAMOE_TRACKING": "off", "QAMOE_DEVICE": "cpu"}
    for stage in STAGES:
        command = [sys.executable, "-m", "qamoe", "run", stage, "--quiet"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{stage}: {done.stderr}"
    measured: Metrics = {}
    for model in content["seeds"]:
        table = summarise(pd.read_parquet(tmp_path / f"artifacts/evaluate/{model}/1/cells.parquet"))
        for name, metric, area in table[["slice", "metric", "area"]].itertuples(index=False):
            if metric in ("mae", "corr"):
                measured.setdefault(model, {}).setdefault(name, {})[metric] = round(float(area), 6)
    assert outside(measured, GOLDEN["short_run"]) == [], json.dumps(measured)
