"""The exported file answers as the model does, for any number of clips, any lengths, and whatever is missing."""

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

COLUMNS = {"audio": 3, "vision": 2}  # raw ones, of which one of audio is dropped
NAMES = {"text": "tokens", "audio": "audio", "vision": "vision"}


def clip(draws: np.random.Generator, missing: float, limits: dict[str, int]) -> dict[str, Any]:
    """A random clip; each modality is missing with that probability, and some frames are not finite."""
    given: dict[str, Any] = {}
    for modality, name in NAMES.items():
        if draws.random() < missing:
            continue
        length = int(draws.integers(1, min(30, limits[modality]) + 1))
        if modality == "text":
            given[name] = [101, *draws.integers(1000, 20_000, length).tolist(), 102][: limits["text"]]
        else:
            frames = draws.normal(0, 5, (length, COLUMNS[modality])).astype(np.float32)
            frames[draws.random(frames.shape) < 0.02] = np.nan
            given[name] = frames
    return given


def padded(clips: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a caller of the exported file makes of clips, by torch alone."""
    x, mask = {}, {}
    for modality, name in NAMES.items():
        longest = max(1, *(len(given.get(name, ())) for given in clips))
        shape = (len(clips), longest) if modality == "text" else (len(clips), longest, COLUMNS[modality])
        x[modality] = torch.zeros(shape, dtype=torch.int64 if modality == "text" else torch.float32)
        mask[modality] = torch.zeros(len(clips), longest, dtype=torch.bool)
        for row, given in enumerate(clips):
            if name in given:
                x[modality][row, : len(given[name])] = torch.as_tensor(given[name])
                mask[modality][row, : len(given[name])] = True
    return x, mask


def assert_alike(trained: Trained, path: Path, batches: int) -> None:
    model = torch.export.load(path).module()
    draws = np.random.default_rng(14)
    limits = trained.config["max_frames"]
    seen = set()
    for number in range(batches):
        missing = (0.0, 0.4, 1.0)[number % 3]
        clips = [clip(draws, missing, limits) for _ in range(int(draws.integers(1, 9)))]
        seen |= {frozenset(given) for given in clips}
        rows = {name: pd.Series([given.get(name) for given in clips], dtype=object) for name in NAMES.values()}
        expected, found = predict(trained, pd.DataFrame(rows)), model(*padded(clips))
        for name in expected.columns.drop(["class", "routing"], errors="ignore"):
            if expected[name].notna().any():
                np.testing.assert_allclose(found[name].numpy(), expected[name], atol=1e-5, err_msg=name)
        if expected["routing"].notna().any():
            np.testing.assert_allclose(found["routing"].numpy(), np.stack(expected["routing"]), atol=1e-5)
    assert len(seen) == 8, "every subset of the modalities was there"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qamoe", "concat"])
def test_the_file_answers_as_the_model_with_its_frozen_encoder(
    model: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint", model=model))
    export(trained, tmp_path / "model.pt2")
    assert_alike(trained, tmp_path / "model.pt2", 24)


@pytest.mark.slow
def test_the_file_holds_a_text_encoder_that_was_trained_too(
    tiny_checkpoint: Callable[..., Path], tiny_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint", encoder=tiny_encoder(tmp_path / "encoder")))
    export(trained, tmp_path / "model.pt2")
    assert_alike(trained, tmp_path / "model.pt2", 24)


def test_a_model_of_stored_text_vectors_is_refused(
    tiny_checkpoint: Callable[..., Path], tiny_stats: dict[str, Any], tmp_path: Path
) -> None:
    stats = tiny_stats | {"text": {k: v for k, v in tiny_stats["text"].items() if k != "vocabulary"}}
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint", stats=stats))
    with pytest.raises(UserError, match="reads stored text vectors"):
        export(trained, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_another_name_is_refused_and_nothing_is_written(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(
        UserError, match=r"model\.onnx is no name of an exported model; allowed is one that ends in \.pt2"
    ):
        export(trained, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
