"""Batches: padding at the end, masks, and the keys of random draws."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.data.batch import Batch, collate, pad, present
from qamoe.rng import clip_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("label", pa.float64()),
            ("text", pa.list_(pa.int32())),
            ("audio", frames_type(2)),
            ("vision", frames_type(1)),
        ]
    )
    rows = [
        {"clip_id": "a", "label": 1.5, "text": [101, 7, 102], "audio": np.ones((2, 2)), "vision": np.zeros((0, 1))},
        {"clip_id": "b", "label": -2.0, "text": [], "audio": np.full((3, 2), 2.0), "vision": np.ones((1, 1))},
        {"clip_id": "c", "label": 0.0, "text": [101, 102], "audio": np.zeros((0, 2)), "vision": np.zeros((0, 1))},
    ]
    write(tmp_path / "s.arrow", schema, rows, {})
    return Store(tmp_path / "s.arrow")


def test_padding_is_zero_and_at_the_end() -> None:
    padded, mask = pad([np.array([[1, 2]], np.float32), np.array([[3, 4], [5, 6], [7, 8]], np.float32)])
    assert padded.tolist() == [[[1, 2], [0, 0], [0, 0]], [[3, 4], [5, 6], [7, 8]]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert padded.dtype == torch.float32


def test_clips_without_frames_are_one_masked_step() -> None:
    padded, mask = pad([np.zeros((0, 3), np.float32)] * 2)
    assert padded.shape == (2, 1, 3)
    assert not mask.any()


def test_rows_become_one_batch_in_their_order(store: Store) -> None:
    batch = collate(store, [1, 0], ("text", "audio", "vision"))
    assert len(batch) == 2
    assert batch.keys.tolist() == [list(clip_key("b")), list(clip_key("a"))]
    assert batch.target is not None
    assert batch.target.tolist() == [-2.0, 1.5]
    assert batch.x["text"].dtype == torch.int64
    assert batch.x["text"].tolist() == [[0, 0, 0], [101, 7, 102]]
    assert batch.mask["text"].tolist() == [[False] * 3, [True] * 3]
    assert batch.x["audio"].tolist() == [[[2, 2]] * 3, [[1, 1], [1, 1], [0, 0]]]
    assert batch.mask["vision"].tolist() == [[True], [False]]


def test_only_the_chosen_modalities_are_read(store: Store) -> None:
    assert set(collate(store, [0, 2], ("text",)).x) == {"text"}


def test_a_batch_owns_its_frames(store: Store) -> None:
    batch = collate(store, [0, 1], ("audio",))
    batch.x["audio"].fill_(9)
    assert store.sequence("audio", 0).tolist() == [[1, 1], [1, 1]]


def test_frames_can_be_replaced_in_a_copy(store: Store) -> None:
    batch = collate(store, [0, 1], ("text", "audio"))
    other = batch.with_x(audio=batch.x["audio"] * 0)
    assert batch.x["audio"].abs().sum() > 0
    assert other.x["audio"].abs().sum() == 0
    assert other.x["text"] is batch.x["text"]
    assert isinstance(other.to("cpu"), Batch)
    without = Batch(batch.keys, batch.x, batch.mask, None)
    assert without.to("cpu").target is None


def test_present_gives_positions_among_all_modalities() -> None:
    assert present(("text", "vision")) == (0, 2)
    assert present(("audio",)) == (1,)
