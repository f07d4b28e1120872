"""Swap partners: another clip, from another source if possible, independent of the order of the split."""

from collections import Counter

import pytest
import torch

from qamoe.degradation.swap_partners import SwapPartners
from qamoe.rng import Draws, clip_key

CLIPS = [f"clip-{i}" for i in range(10)]
SOURCES = ["a"] * 4 + ["b"] * 3 + ["a", "c", "c"]


def partners(clip_ids: list[str], sources: list[str], rows: list[int], number: int = 0) -> list[str]:
    keys = torch.tensor([clip_key(clip_ids[row]) for row in rows])
    partner_rows = SwapPartners(clip_ids, sources).of(rows, Draws(7, keys, "audio", "swap", number))
    return [clip_ids[row] for row in partner_rows]


@pytest.mark.integration
def test_every_clip_of_another_source_is_equally_likely() -> None:
    for row in (0, 5, 9):
        counts = Counter(partners(CLIPS, SOURCES, [row], number)[0] for number in range(1500))
        others = {c for c, s in zip(CLIPS, SOURCES, strict=True) if s != SOURCES[row]}
        assert set(counts) == others
        assert min(counts.values()) > 0.75 * 1500 / len(others)


def test_a_partner_does_not_depend_on_the_batch_or_the_order_of_the_split() -> None:
    rows = list(range(len(CLIPS)))
    together = dict(zip(CLIPS, partners(CLIPS, SOURCES, rows), strict=True))
    assert {CLIPS[row]: partners(CLIPS, SOURCES, [row])[0] for row in rows} == together
    backwards = partners(CLIPS[::-1], SOURCES[::-1], rows)
    assert dict(zip(CLIPS[::-1], backwards, strict=True)) == together


def test_each_draw_and_modality_has_its_own_partners() -> None:
    rows = list(range(len(CLIPS)))
    keys = torch.tensor([clip_key(c) for c in CLIPS])
    partner_lists = {
        tuple(SwapPartners(CLIPS, SOURCES).of(rows, Draws(7, keys, modality, "swap", number)))
        for modality in ("text", "audio")
        for number in (0, 1)
    }
    assert len(partner_lists) == 4


def test_the_partner_within_one_source_is_another_clip() -> None:
    for number in range(50):
        chosen = partners(CLIPS, ["a"] * 10, list(range(10)), number)
        assert all(other != own for other, own in zip(chosen, CLIPS, strict=True))
    assert {partners(CLIPS[:2], ["a"] * 2, [0], number)[0] for number in range(9)} == {"clip-1"}


def test_the_only_clip_of_a_split_is_its_own_partner() -> None:
    assert partners(["only"], ["a"], [0]) == ["only"]
