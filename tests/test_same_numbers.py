"""Test scripts/same_numbers.py: equal folders pass, and each difference is printed with its place."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/same_numbers.py"


def written(folder: Path, mae: float = 0.5, prediction: float = 1.0, routing: float = 0.75) -> Path:
    """Write an artifacts folder of one model with two clips."""
    evaluated = folder / "evaluate/qamoe/1"
    evaluated.mkdir(parents=True)
    (folder / "report").mkdir()
    (folder / "report/summary.json").write_text(json.dumps({"qamoe.clean.mae": mae, "qamoe.clean.corr": None}))
    rows = {"clip_id": ["a", "b"], "prediction": [0.25, prediction], "variance": [1.0, np.nan]}
    weights = [[0.25, 0.75], [1 - routing, routing]]
    pd.DataFrame({**rows, "routing": weights}).to_parquet(evaluated / "predictions.parquet")
    return folder


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.integration
def test_equal_folders_pass(tmp_path: Path) -> None:
    process = run(written(tmp_path / "old"), written(tmp_path / "new"))
    assert (process.returncode, process.stdout.split()[0]) == (0, "2"), process.stdout + process.stderr
    assert "2 rows" in process.stdout


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changed", "named"),
    [({"mae": 0.5000001}, "qamoe.clean.mae"), ({"prediction": 1.0000001}, "prediction"), ({"routing": 0.5}, "routing")],
)
def test_a_difference_is_named(tmp_path: Path, changed: dict[str, float], named: str) -> None:
    process = run(written(tmp_path / "old"), written(tmp_path / "new", **changed))
    assert process.returncode == 1
    assert named in process.stdout


@pytest.mark.integration
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old"), written(tmp_path / "new")
    (new / "evaluate/qamoe/1/predictions.parquet").unlink()
    assert "evaluate/qamoe/1/predictions.parquet is only in the old one" in run(old, new).stdout


@pytest.mark.integration
def test_help_wrong_arguments_and_a_missing_folder(tmp_path: Path) -> None:
    assert run("--help").returncode == 0
    assert (run("one").returncode, "usage: " in run("one").stderr) == (2, True)
    process = run(tmp_path / "absent", tmp_path)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert str(tmp_path / "absent") in line
