"""Fixtures: stages as commands, preprocessed clips that train in seconds, and parameters with a few changes."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from qamoe.data import arrow_store
from tests.fixtures.no_copies import write_no_copies

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params_file(tmp_path: Path) -> Callable[..., Path]:
    """params.yaml with small models, and with changes by dotted keys: params_file({"train.common.lr": -1})."""

    def make(changes: dict[str, Any] | None = None) -> Path:
        content = copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text()))
        content["models"]["encoders"] |= {"width": 8, "layers": 1, "heads": 2}
        content["models"]["qamoe"] |= {"experts": 3, "active": 2, "hidden": 8}
        common = content["train"]["common"]
        common |= {"epochs": 6, "batch_size": 4, "patience": 6}
        common["degrade"]["views"] = 2
        common["selection"] |= {"severities": {"missing": [0.0, 0.5], "noise": [0.5]}, "draws": 1}
        content["seeds"] = {"mean": [1], "concat": [1], "qamoe": [1]}
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            section = content
            for part in parents:
                section = section[part]
            section[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return make


@pytest.fixture
def preprocessed(tmp_path: Path, tiny_stats: dict[str, Any]) -> Path:
    """Write the output of preprocess without a test split, and return the output folder."""
    schema = pa.schema(
        [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64()), ("text", pa.list_(pa.int32()))]
        + [(m, arrow_store.frames_type(2)) for m in ("audio", "vision")]
    )
    out = tmp_path / "out"
    for number, (split, count) in enumerate({"train": 12, "valid": 6, "gate": 0}.items()):
        draws = np.random.default_rng(number)
        rows = [
            {
                "clip_id": f"{split}-{i}",
                "source": f"{split}-source-{i % 3}",
                "label": float(draws.uniform(-3, 3)),
                "text": np.array([101, *draws.integers(2000, 9000, i % 4), 102], np.int32),
                "audio": draws.standard_normal((i % 5, 2)).astype(np.float32),
                "vision": draws.standard_normal((4, 2)).astype(np.float32),
            }
            for i in range(count)
        ]
        arrow_store.write(out / "preprocess" / f"{split}.arrow", schema, rows, {"split": split})
    write_no_copies(out / "preprocess")
    (out / "preprocess" / "stats.json").write_text(json.dumps(tiny_stats))
    return out


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Set one worker and no tracking, and remove the settings of this machine."""
    for name in list(os.environ):
        if name.startswith(("QAMOE_", "MLFLOW_", "DVC_")):
            monkeypatch.delenv(name)
    settings = {"QAMOE_TRACKING": "off", "QAMOE_WORKERS": "1", "QAMOE_DEVICE": "cpu"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def stage(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `qamoe run` in the test's folder: stage("extract", "--params", path)."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qamoe", "run", name, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run
