"""The six emotions of CMU-MOSEI: a pickle in its layout goes through every stage, and the model predicts and serves."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score, f1_score

from qamoe.config.task import label_names
from qamoe.data.readers.mmsa import EMOTIONS
from qamoe.pipeline.experiment import STAGES
from qamoe.serving.model_loader import open_model
from tests.end_to_end.conftest import small_params
from tests.fixtures.served import running

pytestmark = [pytest.mark.integration, pytest.mark.slow]
COUNTS = {"train": 60, "valid": 24, "test": 24}
WORDS = ("lovely", "gloomy", "furious", "astonished", "revolting", "scared")


def write_mosei(path: Path) -> None:
    """Write splits with labels (N, 1, 7), the sentiment and six intensities, and a word for each emotion."""
    draws = np.random.default_rng(1)
    content = {}
    for split, count in COUNTS.items():
        intensities = draws.integers(0, 4, (count, 6)) * (draws.random((count, 6)) < 0.35) / 1.0
        sentiment = (intensities[:, :1] - intensities[:, 1:2]).clip(-3, 3)
        content[split] = {
            "id": np.array([[f"{split}{i // 3}".encode(), b"%d.0" % i, b"%d.0" % (i + 1)] for i in range(count)]),
            "labels": np.concatenate([sentiment, intensities], 1)[:, None],
            "raw_text": [" ".join(w for w, x in zip(WORDS, row, strict=True) if x) or "well" for row in intensities],
            "audio": draws.standard_normal((count, 12, 5)) + intensities[:, None, :5],
            "vision": draws.standard_normal((count, 12, 4)),
        }
    path.write_bytes(pickle.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mosei")
    write_mosei(folder / "mosei.pkl")
    params = small_params()
    params["extract"] |= {"corpus": {"kind": "mmsa", "path": "mosei.pkl"}}
    params["extract"]["task"] = {"kind": "multilabel", "classes": list(EMOTIONS)}
    params["registry"] |= {"calibration_error": 1.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage in STAGES:
        run(folder, "run", stage, "-q")
    return folder


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "qamoe", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "QAMOE_TRACKING": "off"}
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_corpus_is_clean(folder: Path) -> None:
    printed = run(folder, "check", "mosei.pkl")
    assert "0 errors" in printed
    assert all(f"\n{name} " in printed for name in EMOTIONS)


def test_the_metrics_are_those_of_scikit_learn(folder: Path) -> None:
    rows = pd.read_parquet(folder / "artifacts/evaluate/qamoe/1/predictions.parquet")
    clean = rows[rows["slice"] == "clean"]
    cells = pd.read_parquet(folder / "artifacts/evaluate/qamoe/1/cells.parquet").query("slice == 'clean'")
    measured = cells.set_index("metric")["value"]
    for index, name in enumerate(EMOTIONS):
        has = [name in label_names(number, EMOTIONS) for number in clean["target"]]
        predicted = clean[f"has_{name}"] >= 0.5
        assert measured[f"f1_{name}"] == pytest.approx(f1_score(has, predicted, zero_division=0))
        assert measured[f"balanced_acc_{name}"] == pytest.approx(balanced_accuracy_score(has, predicted))
        np.testing.assert_array_equal(np.array(clean["prediction"], np.int64) >> index & 1, predicted)
    mean = pd.read_parquet(folder / "artifacts/evaluate/mean/1/cells.parquet").query("slice == 'clean'")
    assert measured["nll"] < float(mean.set_index("metric")["value"]["nll"]), "each emotion has a word"


def test_the_model_predicts_and_serves(folder: Path) -> None:
    trained = folder / "artifacts/train/qamoe/1"
    line = json.loads(run(folder, "predict", "--folder", str(trained), "--text", "lovely lovely", "--json"))
    assert list(line["probabilities"]) == list(EMOTIONS)
    assert line["labels"] == [name for name, p in line["probabilities"].items() if p >= 0.5]
    assert "labels" in run(folder, "predict", "--folder", str(trained), "--text", "lovely lovely")
    with running(lambda: open_model("", trained)) as server:
        status, body = server.ask("POST", "/predict", {"clips": [{"text": "lovely lovely"}]})
        assert server.ask("GET", "/model")[1]["classes"] == list(EMOTIONS)
    assert status == 200
    (answer,) = body["clips"]
    assert answer["labels"] == line["labels"]
    assert answer["probabilities"] == pytest.approx(line["probabilities"], abs=1e-6)


def test_the_report_and_the_table_have_its_metrics(folder: Path) -> None:
    printed = run(folder, "table", "--slice", "clean")
    assert "F1, mean of labels" in printed
    page = (folder / "artifacts/report/index.html").read_text()
    assert "any number of the labels happy, sad" in page
