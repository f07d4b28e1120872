"""A degraded clip has the same bits in every batch, order, padding and process."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.data.batch import Batch, collate
from qamoe.degradation.features import KINDS
from qamoe.degradation.swap_partners import SwapPartners
from qamoe.degradation.views import View, apply, references_from_stats, uniform_view
from qamoe.rng import MODALITIES, Draws

CLIPS = 9
ALL = ("missing",) * 3
VIEWS = (
    View(2026, 3, clean_share=0.2, full_severity_share=0.5, mask_revealed_share=0.5, swap=True, recognised_share=0.5),
    View(7, 0),
    uniform_view("missing", 0.4, 7, 1),
    uniform_view("noise", 0.7, 7, 2),
    uniform_view("burst", 0.4, 7, 1),
    uniform_view("swap", 0.6, 7, 1),
    uniform_view("additive", 0.4, 7, 1),
    uniform_view("desync", 0.4, 7, 1),
    View(7, 1, ("noise",) * 3, (0.5,) * 3, then=(ALL, (0.25,) * 3)),
    View(7, 0, ALL, (1.0, 0.0, 1.0), announced=True),
)
STATS: Any = {
    "text": {"unk": 100, "special": [0, 101, 102], "vocabulary": 4000, "frequencies": [[2000, 3], [3000, 1]]},
    "audio": {"dimension": 3, "rate": 20.0},
    "vision": {"dimension": 2, "rate": 5.0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return clips of different lengths, some without frames."""
    draws = np.random.default_rng(0)
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("source", pa.string()),
            ("label", pa.float64()),
            ("text", pa.list_(pa.int32())),
            ("audio", frames_type(3)),
            ("vision", frames_type(2)),
        ]
    )
    rows = [
        {
            "clip_id": f"clip-{i}",
            "source": f"source-{i % 3}",
            "label": float(i),
            "text": np.array([101, *draws.integers(2000, 4000, 3 * i), 102][: 0 if i == 4 else None], np.int32),
            "audio": draws.standard_normal((7 * i, 3)).astype(np.float32),
            "vision": draws.standard_normal((20 - 2 * i, 2)).astype(np.float32),
        }
        for i in range(CLIPS)
    ]
    path = tmp_path_factory.mktemp("views") / "clips.arrow"
    write(path, schema, rows, {})
    return Store(path)


Bits = dict[tuple[str, int], bytes]


def partner(store: Store, rows: list[int]) -> Callable[[str, Draws], tuple[torch.Tensor, torch.Tensor]]:
    def load(modality: str, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        batch = collate(store, SwapPartners(store.clip_ids, store.sources).of(rows, draws), (modality,))
        return batch.x[modality], batch.mask[modality]

    return load


def degraded_bits(path: Path, rows: list[int], padding: int = 0) -> Bits:
    """Return the bytes of each clip's valid frames, lost shares and state under every view."""
    opened = Store(path)
    batch = _padded(collate(opened, rows, MODALITIES), padding)
    bits: Bits = {}
    for number, view in enumerate(VIEWS):
        changed, lost, state = apply(batch, view, references_from_stats(STATS), partner(opened, rows))
        for i, row in enumerate(rows):
            frames = [changed.x[m][i][changed.mask[m][i]].numpy().tobytes() for m in MODALITIES]
            details = [lost[i], state.kind[i], state.severity[i]]
            if changed.confidence is not None:
                details.append(changed.confidence[i][changed.mask["text"][i]])
            bits[opened.clip_ids[row], number] = b"|".join([*frames, *(t.numpy().tobytes() for t in details)])
    return bits


def _padded(batch: Batch, by: int) -> Batch:
    def longer(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.zeros(x.shape[0], by, *x.shape[2:], dtype=x.dtype)], 1)

    x, mask = ({m: longer(t) for m, t in tensors.items()} for tensors in (batch.x, batch.mask))
    return Batch(batch.keys, x, mask, batch.target)


@pytest.mark.integration
def test_a_clip_is_degraded_the_same_way_in_every_batch(store: Store) -> None:
    rows = list(range(CLIPS))
    together = degraded_bits(store.path, rows)
    assert degraded_bits(store.path, rows[::-1]) == together
    assert degraded_bits(store.path, rows, padding=13) == together
    for size in (1, 2, 4):
        parts = [degraded_bits(store.path, rows[start : start + size]) for start in range(0, CLIPS, size)]
        assert {key: value for part in parts for key, value in part.items()} == together


@pytest.mark.integration
@pytest.mark.slow
def test_a_clip_is_degraded_the_same_way_in_another_process(store: Store) -> None:
    together = degraded_bits(store.path, list(range(CLIPS)))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        in_process = pool.submit(degraded_bits, store.path, [8, 1, 2, 4])
        parts = [degraded_bits(store.path, [7, 6, 5, 3, 0]), in_process.result()]
    assert {key: value for part in parts for key, value in part.items()} == together


def test_the_batch_is_not_changed(store: Store) -> None:
    batch, untouched = (collate(store, range(CLIPS), MODALITIES) for _ in range(2))
    for view in VIEWS:
        changed, _, _ = apply(batch, view, references_from_stats(STATS), partner(store, list(range(CLIPS))))
        assert any(not torch.equal(changed.x[m], batch.x[m]) for m in MODALITIES)
    for m in MODALITIES:
        assert torch.equal(batch.x[m], untouched.x[m])
        assert torch.equal(batch.mask[m], untouched.mask[m])


def test_a_uniform_view_degrades_every_modality_and_clean_none(store: Store) -> None:
    batch = collate(store, range(CLIPS), MODALITIES)
    changed, lost, state = apply(batch, uniform_view("missing", 1.0, 7, 0), references_from_stats(STATS))
    assert (state.kind == KINDS.index("missing")).all()
    assert lost[1:4].min() == 1
    assert all((changed.x[m] == 0).all() for m in ("audio", "vision"))
    same, lost, state = apply(batch, uniform_view("clean", 0.0, 7, 0), references_from_stats(STATS))
    assert (state.kind == -1).all()
    assert (lost == 0).all()
    assert all(torch.equal(same.x[m], batch.x[m]) for m in MODALITIES)


def test_one_modality_can_be_degraded_alone(store: Store) -> None:
    batch = collate(store, range(CLIPS), MODALITIES)
    view = View(7, 0, ("clean", "missing", "clean"), (0.0, 1.0, 0.0))
    changed, lost, _ = apply(batch, view, references_from_stats(STATS))
    assert (changed.x["audio"] == 0).all()
    assert torch.equal(changed.x["text"], batch.x["text"])
    assert torch.equal(changed.x["vision"], batch.x["vision"])
    assert lost[:, [0, 2]].abs().sum() == 0


def test_a_missing_modality_does_not_change_the_others(store: Store) -> None:
    whole, all_lost, _ = apply(collate(store, range(CLIPS), MODALITIES), VIEWS[1], references_from_stats(STATS))
    without, lost, state = apply(
        collate(store, range(CLIPS), ("text", "audio")), VIEWS[1], references_from_stats(STATS)
    )
    assert torch.equal(without.x["audio"], whole.x["audio"])
    assert torch.equal(lost[:, :2], all_lost[:, :2])
    assert (lost[:, 2] == 0).all()
    assert state.kind.shape == (CLIPS, 3)


def test_noise_then_missing_equals_two_views_in_turn(store: Store) -> None:
    batch = collate(store, range(CLIPS), MODALITIES)
    noise, missing = uniform_view("noise", 0.5, 7, 1), uniform_view("missing", 0.25, 7, 1)
    both = View(7, 1, noise.kinds, noise.severities, then=(ALL, (0.25,) * 3))
    noisy, _, _ = apply(batch, noise, references_from_stats(STATS))
    expected, share, _ = apply(noisy, missing, references_from_stats(STATS))
    changed, lost, state = apply(batch, both, references_from_stats(STATS))
    assert all(torch.equal(changed.x[m], expected.x[m]) for m in MODALITIES)
    assert torch.equal(lost, share)
    assert state.severity.unique().tolist() == [1 - 0.5 * 0.75], "the joint severity"
    assert (state.kind == KINDS.index("noise")).all()
    half = View(7, 1, noise.kinds, (0.0,) * 3, then=(ALL, (0.25,) * 3))
    assert (apply(batch, half, references_from_stats(STATS))[2].kind == KINDS.index("missing")).all()


def test_a_modality_announced_as_missing_has_an_empty_mask(store: Store) -> None:
    batch = collate(store, range(CLIPS), MODALITIES)
    announced_view, blind_view = (View(7, 0, ALL, (1.0, 0.0, 1.0), announced=announced) for announced in (True, False))
    changed, lost, _ = apply(batch, announced_view, references_from_stats(STATS))
    unannounced, unannounced_lost, _ = apply(batch, blind_view, references_from_stats(STATS))
    assert torch.equal(lost, unannounced_lost)
    assert not changed.mask["text"].any()
    assert not changed.mask["vision"].any()
    assert torch.equal(changed.mask["audio"], batch.mask["audio"])
    assert all(torch.equal(unannounced.mask[m], batch.mask[m]) for m in MODALITIES)


def test_references_come_from_the_training_statistics() -> None:
    references = references_from_stats(STATS)
    shares = references["text"].frequencies
    assert shares is not None
    assert [shares[i].item() for i in (1999, 2000, 2999, 3000, 3999)] == [0, 0.75, 0.75, 1, 1]
    assert (references["text"].unk, references["text"].special) == (100, (0, 101, 102))
    assert references["audio"].mean.tolist() == [0, 0, 0]  # type: ignore[union-attr]
    assert references["vision"].deviation.tolist() == [1, 1]  # type: ignore[union-attr]
    assert (references["audio"].rate, references["vision"].rate) == (20.0, 5.0)
    without_vision: Any = {k: v for k, v in STATS.items() if k != "vision"}
    assert "vision" not in references_from_stats(without_vision)
