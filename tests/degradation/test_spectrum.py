"""The paper's spectrum: one lambda and one eta a batch, noise in every modality, whole modalities lost."""

from collections import Counter
from typing import Any

import pytest
import torch

from qamoe.data.batch import Batch
from qamoe.degradation.features import KINDS, PAPER_NOISE, Reference
from qamoe.degradation.spectrum import Spectrum, batch_keys, spectrum_states
from qamoe.degradation.views import View, apply
from qamoe.rng import MODALITIES, clip_key

CLIPS = 400
KEYS = torch.tensor([clip_key(f"clip-{number}") for number in range(CLIPS)])
WHOLE = Spectrum((0.0, 1.0), (0.0, 1.0))


def fixed(noise: float, missing: float, **further: Any) -> Spectrum:
    return Spectrum((noise, noise), (missing, missing), **further)


def test_a_batch_shares_one_strength_and_one_rate() -> None:
    sharing = batch_keys(1, KEYS, 3, 32)
    assert sorted(Counter(sharing[:, 0].tolist()).values()) == [16, *[32] * 12]
    noise, missing = spectrum_states(WHOLE, 1, KEYS, 3, sharing, 0.0)
    strengths = []
    for batch in sharing[:, 0].unique():
        rows = sharing[:, 0] == batch
        strengths.append(noise.severity[rows][missing.kind[rows] < 0].unique())
        assert len(strengths[-1]) == 1
    assert len(torch.cat(strengths).unique()) == 13
    assert sharing.tolist() != batch_keys(1, KEYS, 4, 32).tolist(), "another view has other batches"
    reversed_keys = batch_keys(1, KEYS.flip(0), 3, 32).flip(0)
    assert torch.equal(sharing, reversed_keys), "batches do not depend on the order of the clips"


def test_clips_that_share_nothing_draw_their_own_strength() -> None:
    noise, missing = spectrum_states(WHOLE, 1, KEYS, 3, KEYS, 0.0)
    strengths = noise.severity.amax(1)[(missing.kind < 0).any(1)]
    assert len(strengths.unique()) > 300
    assert strengths.min() < 0.05
    assert strengths.max() > 0.95


def test_each_modality_is_lost_by_itself_with_probability_eta() -> None:
    _, missing = spectrum_states(fixed(0.5, 0.3), 1, KEYS, 0, KEYS, 0.0)
    lost = missing.kind >= 0
    assert lost.float().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.07)
    assert torch.equal(missing.severity, lost.float())
    assert lost.all(1).any(), "all three may be lost"
    _, more = spectrum_states(fixed(0.5, 0.6), 1, KEYS, 0, KEYS, 0.0)
    assert not (lost & (more.kind < 0)).any(), "a larger eta loses what a smaller one loses"


def test_the_public_code_loses_one_of_six_subsets() -> None:
    _, missing = spectrum_states(fixed(0.5, 0.6, dropped="subset"), 1, KEYS, 0, KEYS, 0.0)
    subsets = Counter(tuple(row) for row in (missing.kind >= 0).tolist())
    assert subsets.pop((False,) * 3) / CLIPS == pytest.approx(0.4, abs=0.07)
    assert len(subsets) == 6
    assert (True,) * 3 not in subsets
    assert min(subsets.values()) / CLIPS == pytest.approx(0.1, abs=0.05)


def test_what_is_lost_has_no_noise_and_is_announced_as_often_as_asked() -> None:
    for share in (0.0, 0.5, 1.0):
        noise, missing = spectrum_states(fixed(0.4, 0.5), 1, KEYS, 0, KEYS, share)
        lost = missing.kind >= 0
        assert torch.equal(noise.kind == KINDS.index(PAPER_NOISE), ~lost)
        assert (noise.severity[~lost] == torch.tensor(0.4)).all()
        assert (noise.severity[lost] == 0).all()
        assert not (missing.announced & ~lost).any()
        assert missing.announced[lost].float().mean().item() == pytest.approx(share, abs=0.06)


def test_frames_get_noise_of_their_deviation_and_words_become_id_0() -> None:
    frames = {m: torch.randn(CLIPS, 50, 2) for m in ("audio", "vision")}
    words = torch.full((CLIPS, 20), 2000)
    words[:, 0], words[:, -1] = 101, 102
    masks = {"text": torch.ones(CLIPS, 20, dtype=torch.bool)}
    masks |= {m: torch.ones(CLIPS, 50, dtype=torch.bool) for m in frames}
    batch = Batch(KEYS, {"text": words, **frames}, masks, None)
    deviation = torch.tensor([1.0, 3.0])
    references = {m: Reference(mean=torch.ones(2), deviation=deviation) for m in frames}
    references["text"] = Reference(frequencies=torch.ones(4000).cumsum(0) / 4000, unk=100, special=(0, 101, 102))
    degraded, _, state = apply(batch, View(1, 0, spectrum=fixed(0.5, 0.0)), references)
    difference = degraded.x["audio"] - frames["audio"]
    assert difference.mean().item() == pytest.approx(0, abs=0.05)
    assert difference.std((0, 1)).tolist() == pytest.approx([0.5, 1.5], rel=0.05)
    changed = degraded.x["text"] != words
    assert set(degraded.x["text"].unique().tolist()) == {0, 101, 102, 2000}
    assert changed[:, 1:-1].float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not changed[:, [0, -1]].any()
    assert torch.equal(degraded.mask["text"], masks["text"]), "the mask stays as it was"
    assert (state.severity == 0.5).all()

    degraded, lost, state = apply(batch, View(1, 0, spectrum=fixed(0.5, 1.0), mask_revealed_share=1.0), references)
    assert (degraded.x["vision"] == 0).all()
    assert (degraded.x["text"][:, 1:-1] == 100).all(), "a lost text has [UNK] only"
    assert not any(mask.any() for mask in degraded.mask.values())
    assert (lost == 1).all()
    assert (state.severity == 1).all()


def test_lost_modalities_and_noise_are_views_of_their_own() -> None:
    view = View(7, 2, spectrum=fixed(0.3, 0.2), mask_revealed_share=1.0)
    parts = view.parts()
    assert parts is not None
    noise, lost = parts
    assert (noise.number, noise.kinds, noise.severities) == (2, (PAPER_NOISE,) * 3, (0.3,) * 3)
    assert (lost.kinds, lost.severities, lost.announced) == (("missing",) * 3, (1.0,) * 3, True)
    assert View(7, 2, spectrum=WHOLE).parts() is None
    assert View(7, 2).parts() is None
    assert len(MODALITIES) == 3
