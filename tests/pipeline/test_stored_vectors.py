"""A corpus whose text is only stored vectors passes every stage; its text is degraded by losing frames."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from qamoe.config import params as parameters
from qamoe.config.overlay import overlaid
from qamoe.config.params import Params
from qamoe.data.arrow_store import Store
from qamoe.errors import UserError
from qamoe.inference.predict import predict
from qamoe.models import checkpoint
from qamoe.pipeline import evaluate, extract, preprocess, train

ROOT = Path(__file__).parents[2]
CLIPS = {"train": 12, "valid": 6, "test": 6}


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Write vectors.pkl: text vectors (N, 6, 5) and audio (N, 4, 5), with the label in the first column of both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        torch, "set_num_threads", lambda _: None
    )  # it would also affect the other tests of this process
    for name, value in {"QAMOE_TRACKING": "off", "QAMOE_DEVICE": "cpu", "QAMOE_WORKERS": "1"}.items():
        monkeypatch.setenv(name, value)
    draws = np.random.default_rng(1)
    splits = {}
    for split, count in CLIPS.items():
        labels = np.linspace(-3, 3, count).round(2)
        text, audio = (draws.standard_normal((count, length, 5)).astype(np.float32) for length in (6, 4))
        for column in (text, audio):
            column[:, :, 0] = labels[:, None]
        splits[split] = {"id": [f"{split}{i}$_$0" for i in range(count)], "regression_labels": labels}
        splits[split] |= {"text": text, "audio": audio}
    (tmp_path / "vectors.pkl").write_bytes(pickle.dumps(splits))
    return splits


@pytest.fixture
def params(params_file: Callable[..., Path]) -> Callable[..., Params]:
    """Return the parameters of experiments/vectors.yaml with small models, and with changes as nested mappings."""

    def make(**changes: Any) -> Params:
        path = params_file({"seeds": {"concat": [1], "qamoe": [1]}})
        merged = overlaid(parameters.read(path), parameters.read(ROOT / "experiments/vectors.yaml"))
        merged["extract"]["corpus"]["path"] = "vectors.pkl"
        path.write_text(yaml.safe_dump(overlaid(merged, changes)))
        return parameters.load(path)

    return make


def test_stored_vectors_are_read_trained_on_and_lost_frame_by_frame(
    vectors: dict[str, dict[str, Any]], params: Callable[..., Params]
) -> None:
    out = Path("out")
    for stage in (extract, preprocess, train, evaluate):
        stage.run(params(), out)
    stored = Store(out / "extract/text.arrow")
    for split, columns in vectors.items():
        for name, expected in zip(columns["id"], columns["text"], strict=True):
            np.testing.assert_array_equal(stored.sequence("frames", stored.clip_ids.index(name)), expected, split)
    training = np.concatenate(vectors["train"]["text"])
    test = Store(out / "preprocess/test.arrow")
    expected = (vectors["test"]["text"][2] - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(test.sequence("text", test.clip_ids.index("test2$_$0")), expected, atol=1e-5)

    for model in ("concat", "qamoe"):
        cells = pd.read_parquet(out / f"evaluate/{model}/1/cells.parquet")
        assert set(cells["slice"]) == {"clean", "missing_features"}
        rows = pd.read_parquet(out / f"evaluate/{model}/1/predictions.parquet")
        assert set(rows["kind_text"]) == {"clean", "missing_features"}
        assert (rows["frames_text"] == 6).all()
        curve = rows[rows["slice"] == "missing_features"]
        lost = curve.groupby("severity_text")["lost_text"].mean()
        assert lost.is_monotonic_increasing
        assert (lost.iloc[0], lost.iloc[-1]) == (0, 1)
        blind = curve[curve["severity_text"] == 1].groupby("draw")["prediction"]
        assert blind.std().max() < 1e-5, "clips without any frame get the same prediction"
        clean = rows[rows["slice"] == "clean"]
        assert clean["prediction"].std() > 0.01

    served = checkpoint.load(out / "train/qamoe/1")
    with pytest.raises(UserError, match="vectors"):
        predict(served, pd.DataFrame({"text": ["a lovely film"]}))


def test_kinds_that_remove_words_are_refused_for_stored_vectors(
    vectors: dict[str, dict[str, Any]], params: Callable[..., Params]
) -> None:
    out = Path("out")
    extract.run(params(), out)
    preprocess.run(params(), out)
    with pytest.raises(UserError, match=r"train\.common\.degrade\.kinds.*'noise'.*clean, missing_features"):
        train.run(params(train={"common": {"degrade": {"kinds": ["missing_features", "noise"]}}}), out)
    with pytest.raises(UserError, match=r"train\.common\.selection\.severities.*'missing'"):
        train.run(params(train={"common": {"selection": {"severities": {"missing": [0.5]}}}}), out)
    with pytest.raises(UserError, match=r"seeds\.specialist-missing-03.*'missing'"):
        train.run(params(seeds={"specialist-missing-03": [1]}), out)
    with pytest.raises(UserError, match=r"evaluate\.slices.*'mixed'"):
        evaluate.run(params(evaluate={"slices": ["clean", "mixed"]}), out)
    assert not (out / "train").exists()


def test_missing_features_is_refused_for_a_corpus_of_words(
    preprocessed: Path, params_file: Callable[..., Path]
) -> None:
    changed = {"train.common.degrade.kinds": ["missing_features"]}
    with pytest.raises(UserError, match=r"train\.common\.degrade\.kinds.*'missing_features'"):
        train.run(parameters.load(params_file(changed)), preprocessed)
