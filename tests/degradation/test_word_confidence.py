"""Simulated word confidences: damaged words look like a recogniser's wrong ones, the others like its right ones."""

from typing import Any

import pytest
import torch

from qamoe.data.batch import Batch
from qamoe.degradation import word_confidence
from qamoe.degradation.views import View, apply, references_from_stats, uniform_view
from qamoe.degradation.word_confidence import RIGHT, WRONG
from qamoe.rng import clip_key

STATS: Any = {"text": {"unk": 100, "special": [0, 101, 102], "vocabulary": 4000, "frequencies": [[2000, 3], [3000, 1]]}}
CLIPS, WORDS = 400, 12


def batch_of(confidence: torch.Tensor | None = None) -> Batch:
    ids = torch.arange(1000, 1000 + CLIPS * (WORDS + 3)).view(CLIPS, WORDS + 3) % 900 + 1000
    ids[:, 0], ids[:, -2], ids[:, -1] = 101, 102, 0
    mask = ids != 0
    keys = torch.tensor([clip_key(f"clip-{i}") for i in range(CLIPS)])
    return Batch(keys, {"text": ids}, {"text": mask}, None, confidence)


def under(view: View, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the confidence of the words (B, T) and which of them are damaged."""
    degraded, _, _ = apply(batch, view, references_from_stats(STATS))
    assert degraded.confidence is not None
    special = degraded.confidence[:, [0, -2, -1]]
    assert torch.equal(special, torch.ones_like(special)), "CLS, SEP and padding have no confidence of their own"
    words = slice(1, 1 + WORDS)
    return degraded.confidence[:, words], (degraded.x["text"] != batch.x["text"])[:, words]


def test_the_table_ranks_right_words_above_wrong_ones() -> None:
    right, wrong = map(torch.tensor, (RIGHT, WRONG))
    assert len(right) == len(wrong) > 10
    for table in (right, wrong):
        assert bool((table.diff() >= 0).all())
        assert 0 <= float(table[0]) <= float(table[-1]) <= 1
    assert bool((right >= wrong).all())


def test_typed_words_of_a_split_have_no_confidence_unless_a_view_simulates_it() -> None:
    degraded, _, _ = apply(batch_of(), View(1, 0), references_from_stats(STATS))
    assert degraded.confidence is None


@pytest.mark.parametrize("kind", ["missing", "noise", "burst"])
def test_damaged_words_draw_from_the_wrong_and_others_from_the_right(kind: str) -> None:
    view = View(1, 0, (kind,) * 3, (0.5,) * 3, recognised_share=1.0)
    confidence, damaged = under(view, batch_of())
    assert 0.4 < damaged.float().mean() < 0.6
    for table, drawn in zip(
        map(torch.tensor, (RIGHT, WRONG)), (confidence[~damaged], confidence[damaged]), strict=True
    ):
        shares = torch.linspace(0, 1, len(table))
        torch.testing.assert_close(drawn.quantile(shares[2:-2]), table[2:-2], atol=0.05, rtol=0)


def test_a_share_of_the_clips_is_recognised_and_the_others_are_typed() -> None:
    confidence, _ = under(View(1, 0, ("missing",) * 3, (0.0,) * 3, recognised_share=0.25), batch_of())
    recognised = (confidence < 1).any(1)
    assert 0.18 < recognised.float().mean() < 0.32
    typed = confidence[~recognised]
    assert torch.equal(typed, torch.ones_like(typed))


def test_words_that_a_recogniser_heard_keep_its_confidence_until_they_are_damaged() -> None:
    heard = torch.full((CLIPS, WORDS + 3), 0.875)
    heard[:, [0, -2, -1]] = 1.0
    batch = batch_of(heard)
    confidence, damaged = under(uniform_view("noise", 0.5, 1, 0), batch)
    assert bool((confidence[~damaged] == 0.875).all())
    assert float(confidence[damaged].median()) == pytest.approx(float(torch.tensor(WRONG).median()), abs=0.05)
    assert torch.equal(batch.confidence, heard), "the input is not changed"  # type: ignore[arg-type]


def test_swapped_words_count_as_right_ones() -> None:
    batch = batch_of()
    partner = (batch.x["text"].roll(1, 0), batch.mask["text"].roll(1, 0))
    view = View(1, 0, ("swap",) * 3, (1.0,) * 3, recognised_share=1.0)
    degraded, _, _ = apply(batch, view, references_from_stats(STATS), lambda *_: partner)
    words: Any = degraded.confidence
    drawn = words[:, 1 : 1 + WORDS]
    assert float(drawn.median()) == pytest.approx(float(torch.tensor(RIGHT).median()), abs=0.05)


def test_a_number_between_two_quantiles_is_between_their_values() -> None:
    table = torch.tensor([0.0, 0.5, 1.0])
    shares = torch.tensor([[0.0, 0.25, 0.5, 0.999999]])
    torch.testing.assert_close(word_confidence._at(table, shares), shares)
