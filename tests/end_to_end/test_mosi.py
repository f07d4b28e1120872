"""CMU-MOSI by the documented steps, with few epochs: from its pickle to the evaluation of a model."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from qamoe.config.overlay import overlaid
from qamoe.pipeline.experiment import STAGES
from qamoe.weights.store import place
from tests.fixtures.research_data import shared_data

ROOT = Path(__file__).parent.parent.parent
SHORT = {
    "train": {
        "common": {
            "epochs": 4,
            "degrade": {"views": 2},
            "selection": {"severities": {"missing": [0.0, 0.5]}, "draws": 1},
        }
    },
    "evaluate": {"draws": 1, "slices": ["clean", "missing"]},
}


@pytest.mark.slow
@pytest.mark.real_data
def test_mosi_runs_as_documented(tmp_path: Path) -> None:
    """The official split has 1284 / 229 / 686 clips and no vision."""
    pickle = (ROOT / shared_data() / "mosi/mosi_official.pkl").resolve()
    if not pickle.exists():
        pytest.skip(f"needs {pickle.name} (set QAMOE_SHARED_DATA)")
    if place("bge-small") is None:
        pytest.skip("needs qamoe weights fetch bge-small")
    (tmp_path / "data-mosi").mkdir()
    (tmp_path / "data-mosi/mosi.pkl").symlink_to(pickle)
    content = overlaid(yaml.safe_load((ROOT / "params.yaml").read_text()), SHORT)
    content = overlaid(content, yaml.safe_load((ROOT / "experiments/mosi.yaml").read_text()))
    content["train"]["common"]["epochs"] = SHORT["train"]["common"]["epochs"]  # type: ignore[index]
    content["train"]["common"]["selection"]["severities"].pop("noise")
    content["seeds"] = {"mean": [1], "concat": [1], "qamoe": [1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    for stage in STAGES:
        command = [sys.executable, "-m", "qamoe", "run", stage, "-q"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "QAMOE_TRACKING": "off"}
        )
        assert done.returncode == 0, f"{stage}: {done.stderr}"

    clips = pd.read_parquet(tmp_path / "artifacts/extract/clips.parquet")
    assert clips["split"].value_counts().to_dict() == {"train": 1284, "valid": 229, "test": 686}
    predictions = {
        m: pd.read_parquet(tmp_path / f"artifacts/evaluate/{m}/1/predictions.parquet") for m in content["seeds"]
    }
    mae = {}
    for model, rows in predictions.items():
        assert rows["clip_id"].nunique() == 686
        clean = rows[rows["slice"] == "clean"]
        mae[model] = (clean["prediction"] - clean["target"]).abs().mean()
    assert mae["qamoe"] < 0.9 * mae["mean"], "ridge regression on mean-pooled text reaches two thirds"
    trust = predictions["qamoe"][["trust_text", "trust_audio", "trust_vision"]]
    assert trust["trust_vision"].isna().all(), "a modality that the corpus does not have has no trust"
    assert trust["trust_text"].between(0, 1).all()
