"""The text cache: right states for each clip and view, each sequence once, repaired after an interruption."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.data.batch import collate
from qamoe.dataset import text_cache
from qamoe.dataset.degraded_split import open_views
from qamoe.degradation.views import View, apply, references_from_stats, uniform_view
from qamoe.models import text_encoder_frozen

pytestmark = pytest.mark.integration

MODALITIES = ("text", "audio", "vision")
SWAP = View(7, 0, ("swap", "swap", "clean"), (0.6, 1.0, 0.0))
GONE = View(7, 0, ("missing",) * 3, (1.0, 0.0, 0.0), announced=True)
ALONE = View(7, 2, ("clean", "noise", "burst"), (0.0, 0.5, 0.5))
VIEWS = (uniform_view("clean", 0.0, 7, 0), uniform_view("missing", 0.5, 7, 0), ALONE, SWAP, GONE, View(3, 1, swap=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    draws = np.random.default_rng(0)
    rows = [
        {
            "clip_id": f"clip-{i}",
            "source": f"source-{i % 2}",
            "label": float(i),
            "text": np.array([101, *draws.integers(2000, 9000, 2 * i), 102], np.int32),
            "audio": draws.standard_normal((3 + i, 2)).astype(np.float32),
            "vision": draws.standard_normal((4, 2)).astype(np.float32),
        }
        for i in range(5)
    ]
    columns = [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64())]
    columns += [("text", pa.list_(pa.int32())), *((m, frames_type(2)) for m in ("audio", "vision"))]
    path = tmp_path_factory.mktemp("states") / "test.arrow"
    write(path, pa.schema(columns), rows, {})
    return Store(path)


@pytest.fixture(scope="module")
def split(store: Store, tiny_stats: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("encoded")
    return open_views(store, VIEWS, MODALITIES, references_from_stats(tiny_stats), folder, "data", "cpu")


def test_a_clip_has_the_encoded_ids_of_its_view(split: Any, store: Store) -> None:
    for number, view in enumerate(VIEWS):
        for row in range(5):
            batch, _, _ = split.degraded(number, [row])
            if view == GONE:
                assert not batch.mask["text"].any()
                continue
            if view in (VIEWS[0], ALONE):
                ids = torch.from_numpy(store.sequence("text", row).astype(np.int64))[None]
            elif view == VIEWS[1]:
                ids = apply(collate(store, [row], ("text",)), view, split.references)[0].x["text"]
            else:
                continue
            expected = text_encoder_frozen.encode(ids, torch.ones_like(ids, dtype=torch.bool))
            torch.testing.assert_close(batch.x["text"], expected, atol=1e-5, rtol=0)
            assert batch.mask["text"].all()


def test_a_swapped_clip_has_its_partners_text_and_frames(split: Any, store: Store) -> None:
    batch, lost, _ = split.degraded(3, list(range(5)))
    clean, _, _ = split.degraded(0, list(range(5)))
    for column, modality in enumerate(("text", "audio")):
        assert 0 < lost[:, column].sum() <= 5
        for row in range(5):
            frames = batch.x[modality][row][batch.mask[modality][row]]
            matches = [
                other
                for other in range(5)
                if torch.equal(frames, clean.x[modality][other][clean.mask[modality][other]])
            ]
            assert len(matches) == 1
            if lost[row, column]:
                assert store.sources[matches[0]] != store.sources[row]
            else:
                assert matches == [row]
    assert lost[:, 1].tolist() == [1] * 5
    assert not lost[:, 2].any()


def test_a_view_is_the_same_in_every_batch(split: Any) -> None:
    for number in range(len(VIEWS)):
        together, lost, _ = split.degraded(number, [4, 2, 0, 3, 1])
        for i, row in enumerate([4, 2, 0, 3, 1]):
            alone, own_lost, _ = split.degraded(number, [row])
            assert torch.equal(own_lost[0], lost[i])
            for m in MODALITIES:
                assert torch.equal(alone.x[m][0][alone.mask[m][0]], together.x[m][i][together.mask[m][i]])


def test_views_share_the_sequences_that_they_do_not_change(split: Any, store: Store) -> None:
    index = split.states.index
    assert (index[2] == index[0]).all()
    assert set(index[3]) <= set(index[0]), "a swapped text is already in the cache"
    assert len(set(index[4])) == 1, "announced: no text at all"
    count = len(split.states.offsets) - 1
    assert count == len(np.unique(index))
    assert len(split.states.states) == split.states.offsets[-1]
    assert count < index.size / 2


def test_a_split_without_text_has_no_states(store: Store, tiny_stats: Any, tmp_path: Path) -> None:
    opened = open_views(store, VIEWS, ("audio",), references_from_stats(tiny_stats), tmp_path / "none", "data", "cpu")
    assert opened.states is None
    assert set(opened.batch(3, [0, 1]).x) == {"audio"}
    assert not (tmp_path / "none").exists()


def test_an_incomplete_cache_is_written_again_and_a_complete_one_is_reused(
    store: Store, split: Any, tiny_stats: Any, tmp_path: Path
) -> None:
    def opened(views: tuple[View, ...] = VIEWS) -> tuple[bytes, Path]:
        open_views(store, views, MODALITIES, references_from_stats(tiny_stats), tmp_path, "data", "cpu")
        (path,) = tmp_path.glob("text-*.npy")
        return path.read_bytes(), path

    bits, path = opened()
    modified = path.stat().st_mtime_ns
    assert opened() == (bits, path)
    assert path.stat().st_mtime_ns == modified
    path.with_suffix(".npz").unlink()
    path.write_bytes(bits[: len(bits) // 2])
    assert opened() == (bits, path)
    assert opened(VIEWS[:2])[1] != path, "other views have another file"
    assert len(list(tmp_path.iterdir())) == 2, "the old file is deleted"


def test_sequences_differ_by_length_or_content() -> None:
    a, b, empty = np.array([1, 2]), np.array([1]), np.zeros(0, np.int64)
    sequences, index = text_cache.distinct([[a, b, empty], [b, b, np.array([1, 3])]])
    assert [s.tolist() for s in sequences] == [[], [1], [1, 2], [1, 3]]
    assert index.tolist() == [[2, 1, 0], [1, 1, 3]]
