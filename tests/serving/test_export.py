"""Test that the exported file predicts as the model does, for any number, length and missing modalities of clips."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.errors import UserError
from qamoe.inference.predict import predict
from qamoe.models import checkpoint
from qamoe.models.checkpoint import Trained
from qamoe.serving.export import export

COLUMNS = {"audio": 3, "vision": 2}  # raw columns; standardisation drops one of audio
NAMES = {"text": "tokens", "audio": "audio", "vision": "vision"}


def clip(draws: np.random.Generator, missing: float, limits: dict[str, int]) -> dict[str, Any]:
    """Return a random clip; a modality is missing with probability `missing`; some values and frames are unknown."""
    values: dict[str, Any] = {}
    for modality, name in NAMES.items():
        if draws.random() < missing:
            continue
        length = int(draws.integers(1, min(30, limits[modality]) + 1))
        if modality == "text":
            values[name] = [101, *draws.integers(1000, 20_000, length).tolist(), 102][: limits["text"]]
            values["confidence"] = draws.random(len(values[name])).astype(np.float32)
        else:
            frames = draws.normal(0, 5, (length, COLUMNS[modality])).astype(np.float32)
            frames[draws.random(frames.shape) < 0.02] = np.nan
            frames[draws.random(length) < 0.1] = 0  # as of a picture without a face
            values[name] = frames
    return values


def padded(clips: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Pad clips with torch only, as a caller of the exported file does: frames, masks and the words' confidence."""
    x, mask = {}, {}
    for modality, name in NAMES.items():
        longest = max(1, *(len(values.get(name, ())) for values in clips))
        shape = (len(clips), longest) if modality == "text" else (len(clips), longest, COLUMNS[modality])
        x[modality] = torch.zeros(shape, dtype=torch.int64 if modality == "text" else torch.float32)
        mask[modality] = torch.zeros(len(clips), longest, dtype=torch.bool)
        for row, values in enumerate(clips):
            if name in values:
                x[modality][row, : len(values[name])] = torch.as_tensor(values[name])
                mask[modality][row, : len(values[name])] = True
    confidence = torch.ones(x["text"].shape)
    for row, values in enumerate(clips):
        known = values.get("confidence", ())
        confidence[row, : len(known)] = torch.as_tensor(known)
    return x, mask, confidence


def assert_same_predictions(trained: Trained, path: Path, batches: int) -> None:
    model = torch.export.load(path).module()
    draws = np.random.default_rng(14)
    limits = trained.config["max_frames"]
    subsets = set()
    for number in range(batches):
        missing = (0.0, 0.4, 1.0)[number % 3]
        clips = [clip(draws, missing, limits) for _ in range(int(draws.integers(1, 9)))]
        subsets |= {frozenset(values) for values in clips}
        rows = {
            name: pd.Series([values.get(name) for values in clips], dtype=object)
            for name in (*NAMES.values(), "confidence")
        }
        expected, outputs = predict(trained, pd.DataFrame(rows)), model(*padded(clips))
        for name in expected.columns.drop(["class", "labels", "routing"], errors="ignore"):
            if expected[name].notna().any():
                np.testing.assert_allclose(outputs[name].numpy(), expected[name], atol=1e-5, err_msg=name)
        if expected["routing"].notna().any():
            np.testing.assert_allclose(outputs["routing"].numpy(), np.stack(list(expected["routing"])), atol=1e-5)
    assert len(subsets) == 8, "every subset of the modalities occurs"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qamoe", "concat", "paper-public", "paper--no-gate"])
def test_the_file_predicts_as_the_model_with_its_frozen_encoder(
    model: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint", model=model))
    export(trained, tmp_path / "model.pt2")
    assert_same_predictions(trained, tmp_path / "model.pt2", 24)


@pytest.mark.slow
def test_the_file_includes_a_trained_text_encoder(
    tiny_checkpoint: Callable[..., Path], tiny_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint", encoder=tiny_encoder(tmp_path / "encoder")))
    export(trained, tmp_path / "model.pt2")
    assert_same_predictions(trained, tmp_path / "model.pt2", 24)


@pytest.mark.slow
def test_the_file_of_a_multilabel_model_has_the_calibrated_labels(
    tiny_multilabel: Callable[[Path], Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_multilabel(tmp_path / "checkpoint"))
    export(trained, tmp_path / "model.pt2")
    assert_same_predictions(trained, tmp_path / "model.pt2", 24)


def test_a_model_of_stored_text_vectors_is_refused(
    tiny_checkpoint: Callable[..., Path], tiny_stats: dict[str, Any], tmp_path: Path
) -> None:
    columns: dict[str, Any] = {"kept": list(range(384)), "mean": [0.0] * 384, "deviation": [1.0] * 384}
    stats = tiny_stats | {"text": columns | {"unfit": 0, "dimension": 384, "rate": None}}
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint", stats=stats))
    with pytest.raises(UserError, match="stored text vectors"):
        export(trained, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_another_suffix_is_refused_and_nothing_is_written(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(UserError, match=r"model\.onnx.*\.pt2"):
        export(trained, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
