"""scripts/same_numbers.py: what is equal passes, and each difference is named by its place."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/same_numbers.py"


def written(folder: Path, mae: float = 0.5, prediction: float = 1.0, routing: float = 0.75) -> Path:
    """An artifacts folder of one model with two clips."""
    place = folder / "evaluate/qamoe/1"
    place.mkdir(parents=True)
    (folder / "report").mkdir()
    (folder / "report/summary.json").write_text(json.dumps({"qamoe.clean.mae": mae, "qamoe.clean.corr": None}))
    rows = {"clip_id": ["a", "b"], "prediction": [0.25, prediction], "variance": [1.0, np.nan]}
    routes = [[0.25, 0.75], [1 - routing, routing]]
    pd.DataFrame({**rows, "routing": routes}).to_parquet(place / "predictions.parquet")
    return folder


def compared(old: Path, new: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), old, new], capture_output=True, text=True, check=False)


def test_the_same_numbers_are_the_same(tmp_path: Path) -> None:
    done = compared(written(tmp_path / "old"), written(tmp_path / "new"))
    assert (done.returncode, done.stdout.split()[0]) == (0, "2"), done.stdout + done.stderr
    assert "2 rows" in done.stdout


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"mae": 0.5000001}, "qamoe.clean.mae"), ({"prediction": 1.0000001}, "prediction"), ({"routing": 0.5}, "routing")],
)
def test_a_difference_is_named(tmp_path: Path, changed: dict[str, float], named: str) -> None:
    done = compared(written(tmp_path / "old"), written(tmp_path / "new", **changed))
    assert done.returncode == 1
    assert named in done.stdout


def test_a_model_that_is_gone_is_named(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old"), written(tmp_path / "new")
    (new / "evaluate/qamoe/1/predictions.parquet").unlink()
    assert "evaluate/qamoe/1/predictions.parquet is only in the old one" in compared(old, new).stdout
