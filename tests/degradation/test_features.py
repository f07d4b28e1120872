"""Degradations of frames and token ids: exact at severity 0, nested, and complete at severity 1."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from qamoe.degradation.features import (
    DRAWN,
    FRAMES,
    KINDS,
    TOKENS,
    Degraded,
    Reference,
    degrade,
    drawn_state,
    fixed_state,
)
from qamoe.rng import MODALITIES, Draws, clip_key

PAD, UNK, CLS, SEP = 0, 100, 101, 102
WORDS = (1000, 2000, 3000)  # of the training split, which has them three times, once and four times
SEVERITIES = [round(0.1 * step, 1) for step in range(11)]


def cumulative() -> Tensor:
    counts = torch.zeros(4000, dtype=torch.float64)
    counts[list(WORDS)] = torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64)
    return (counts.cumsum(0) / counts.sum()).float()


LENGTHS = (40, 7, 1, 0)  # of four clips; padding follows
PARTNERS = (3, 50, 2, 4)  # lengths of their swap partners


def partner(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return partner clips in which every valid frame is x."""
    valid = torch.arange(max(PARTNERS)) < torch.tensor(PARTNERS)[:, None]
    return x.expand(*valid.shape, *x.shape[1:]) * valid.view(*valid.shape, *[1] * (x.ndim - 1)), valid


REFERENCE = {
    "audio": Reference(
        mean=torch.tensor([5.0, -1.0, 0.0]),
        deviation=torch.tensor([2.0, 0.5, 1.0]),
        rate=10.0,
        partner=partner(torch.full((1, 3), 77.0)),
    ),
    "text": Reference(
        frequencies=cumulative(), unk=UNK, special=(PAD, CLS, SEP), partner=partner(torch.full((1,), 3999))
    ),
}
KEYS = torch.tensor([clip_key(f"clip-{i}") for i in range(len(LENGTHS))])


def mask() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def frames() -> Tensor:
    """Return frames (4, 40, 3) with a negative zero, a denormal, and padding that is not zero."""
    x = torch.randn(len(LENGTHS), max(LENGTHS), 3, generator=torch.Generator().manual_seed(0))
    x[0, 0] = torch.tensor([-0.0, 1e-42, 0.0])
    return x.masked_fill(~mask()[..., None], 99.0)


def tokens() -> Tensor:
    """Return ids (4, 40): CLS, words that the training split does not have, SEP, padding."""
    ids = torch.randint(3100, 3900, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = PAD
        if length > 1:
            ids[row, 0], ids[row, length - 1] = CLS, SEP
        elif length:
            ids[row, 0] = CLS  # a clip without words
    return ids


def words() -> Tensor:
    """Return which tokens are words."""
    return mask() & (tokens() != CLS) & (tokens() != SEP) & (tokens() != PAD)


INPUTS: dict[str, Callable[[], Tensor]] = {"audio": frames, "text": tokens}
TABLES = {"audio": FRAMES, "text": TOKENS}
CASES = [(modality, kind) for modality, table in TABLES.items() for kind in table]
every_case = pytest.mark.parametrize(("modality", "kind"), CASES)


def degraded(modality: str, kind: str, severity: float, x: Tensor | None = None, number: int = 0) -> Degraded:
    level = torch.full((len(LENGTHS),), severity)
    draws = Draws(7, KEYS, modality, kind, number)
    return TABLES[modality][kind](INPUTS[modality]() if x is None else x, mask(), level, draws, REFERENCE[modality])


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32) if x.is_floating_point() else x


@every_case
def test_severity_0_is_the_input_bit_for_bit(modality: str, kind: str) -> None:
    result = degraded(modality, kind, 0.0)
    assert torch.equal(bits(result.x), bits(INPUTS[modality]()))
    assert (result.lost == 0).all()


@every_case
@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0])
def test_the_input_is_never_changed(modality: str, kind: str, severity: float) -> None:
    x = INPUTS[modality]()
    changed = degraded(modality, kind, severity, x)
    assert torch.equal(bits(x), bits(INPUTS[modality]()))
    assert (severity > 0) == (not torch.equal(changed.x, x))


@every_case
def test_another_draw_gives_another_degradation(modality: str, kind: str) -> None:
    assert not torch.equal(degraded(modality, kind, 0.5).x, degraded(modality, kind, 0.5, number=1).x)


@pytest.mark.parametrize(("modality", "kind"), [case for case in CASES if case[1] != "swap"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_padding_and_special_tokens_are_never_touched(modality: str, kind: str, severity: float) -> None:
    outside = ~mask() if modality == "audio" else ~words()
    result = degraded(modality, kind, severity)
    assert torch.equal(result.x[outside], INPUTS[modality]()[outside])
    assert torch.equal(result.mask, mask()), "the mask does not reveal the loss"


NESTING = [(m, k) for m, k in CASES if k in DRAWN and (m, k) != ("audio", "noise")]


@pytest.mark.parametrize(("modality", "kind"), NESTING)
def test_losses_nest_as_the_severity_rises(modality: str, kind: str) -> None:
    before, changes = torch.zeros_like(mask()), []
    for severity in SEVERITIES:
        x = degraded(modality, kind, severity).x
        gone = x != INPUTS[modality]()
        gone = gone.any(-1) if modality == "audio" else gone
        assert (gone | ~before).all(), f"a loss below severity {severity} is undone"
        changes.append(int(gone.sum()))
        before = gone
    assert changes[0] == 0
    assert len(set(changes)) > 8
    if kind == "noise":  # a word is replaced by the same word at every severity
        half, full = degraded(modality, kind, 0.5).x, degraded(modality, kind, 1.0).x
        gone = half != INPUTS[modality]()
        assert torch.equal(half[gone], full[gone])


@pytest.mark.parametrize("kind", ["missing", "burst"])
def test_severity_1_loses_every_frame_and_every_word(kind: str) -> None:
    audio = degraded("audio", kind, 1.0)
    assert (audio.x[mask()] == 0).all()
    assert audio.lost.tolist() == [1, 1, 1, 0]
    text = degraded("text", kind, 1.0)
    assert (text.x[words()] == UNK).all()
    assert text.lost.tolist() == [1, 1, 0, 0], "CLS and SEP are not counted; a clip without words loses none"


@pytest.mark.parametrize("kind", ["missing", "burst"])
@pytest.mark.parametrize("modality", INPUTS)
@pytest.mark.parametrize("severity", [0.2, 0.5, 0.9])
def test_the_lost_share_counts_valid_frames_only(modality: str, kind: str, severity: float) -> None:
    result = degraded(modality, kind, severity)
    valid = mask() if modality == "audio" else words()
    gone = (result.x == 0).all(-1) if modality == "audio" else result.x == UNK
    expected = (gone & valid).sum(1) / valid.sum(1).clamp(min=1)
    assert torch.equal(result.lost, expected)


@pytest.mark.parametrize("severity", [0.1, 0.5, 0.9])
def test_the_severity_is_the_probability_of_losing_a_frame(severity: float) -> None:
    x, level = torch.ones(1, 20_000, 1), torch.tensor([severity])
    draws = Draws(7, KEYS[:1], "audio", "missing", 0)
    lost = FRAMES["missing"](x, torch.ones(1, 20_000, dtype=torch.bool), level, draws, Reference()).lost
    assert lost.item() == pytest.approx(severity, abs=0.015)


def test_noise_at_severity_1_does_not_depend_on_its_input() -> None:
    others = degraded("audio", "noise", 1.0, frames() * -3 + 8).x
    assert torch.equal(bits(degraded("audio", "noise", 1.0).x[mask()]), bits(others[mask()]))
    other_words = torch.where(words(), 3999, tokens())
    assert torch.equal(degraded("text", "noise", 1.0).x, degraded("text", "noise", 1.0, other_words).x)


def test_noise_has_the_mean_and_deviation_of_the_training_columns() -> None:
    noise = degraded("audio", "noise", 1.0).x
    expected = 0.7 * frames() + 0.3 * noise
    assert torch.allclose(degraded("audio", "noise", 0.3).x[mask()], expected[mask()], atol=1e-6)
    long = torch.zeros(1, 20_000, 3)
    draws = Draws(7, KEYS[:1], "audio", "noise", 0)
    valid = torch.ones(1, 20_000, dtype=torch.bool)
    drawn = FRAMES["noise"](long, valid, torch.ones(1), draws, REFERENCE["audio"]).x[0]
    assert drawn.mean(0).tolist() == pytest.approx([5.0, -1.0, 0.0], abs=0.06)
    assert drawn.std(0).tolist() == pytest.approx([2.0, 0.5, 1.0], rel=0.03)


def test_noise_reports_its_severity_as_lost() -> None:
    assert degraded("audio", "noise", 0.3).lost.tolist() == pytest.approx([0.3] * 4)
    assert degraded("text", "noise", 0.3).lost.tolist() == pytest.approx([0.3] * 4)


def test_replacement_words_have_the_training_frequencies() -> None:
    ids = torch.full((1, 20_000), 3500)
    draws = Draws(7, KEYS[:1], "text", "noise", 0)
    valid = torch.ones_like(ids, dtype=torch.bool)
    drawn = TOKENS["noise"](ids, valid, torch.ones(1), draws, REFERENCE["text"]).x
    assert set(drawn.unique().tolist()) == set(WORDS)
    shares = [(drawn == word).float().mean().item() for word in WORDS]
    assert shares == pytest.approx([3 / 8, 1 / 8, 4 / 8], abs=0.015)


@pytest.mark.parametrize(("number", "word"), [(0.0, WORDS[0]), (1 - 2**-24, WORDS[-1])])
def test_extreme_draws_give_words_of_the_training_split(number: float, word: int) -> None:
    class Fixed:
        def uniform(self, elements: int) -> Tensor:
            numbers = torch.zeros(1, elements)
            numbers[:, 1::2] = number  # every second number chooses the word
            return numbers

    ids, valid = torch.full((1, 3), 3500), torch.ones(1, 3, dtype=torch.bool)
    drawn = TOKENS["noise"](ids, valid, torch.ones(1), Fixed(), REFERENCE["text"]).x  # type: ignore[arg-type]
    assert drawn.tolist() == [[word] * 3]


def runs(gone: Tensor) -> int:
    """Count the runs of True in (T,)."""
    return int((torch.cat([gone[:1], gone[1:] & ~gone[:-1]])).sum())


@pytest.mark.parametrize("modality", INPUTS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_burst_is_one_block_of_its_share_of_the_frames(modality: str, severity: float) -> None:
    x = degraded(modality, "burst", severity).x
    gone = (x != INPUTS[modality]()) if modality == "text" else (x == 0).all(-1) & mask()
    valid = words() if modality == "text" else mask()
    counts = valid.sum(1)
    assert gone.sum(1).tolist() == [round(severity * n) for n in counts.tolist()]
    assert all(runs(row) <= 1 for row in gone)


def test_a_longer_burst_contains_every_shorter_one_of_its_draw() -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(500)])
    valid = torch.arange(60) < torch.arange(500)[:, None] % 61
    draws = Draws(7, keys, "audio", "burst", 0)
    before = torch.zeros_like(valid)
    for step in range(101):
        severity = torch.full((500,), step / 100)
        gone = FRAMES["burst"](torch.ones(500, 60, 1), valid, severity, draws, Reference()).x[..., 0] == 0
        assert (gone | ~before).all()
        before = gone
    assert torch.equal(before, valid)


def test_bursts_start_anywhere_in_a_clip() -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(3000)])
    x, valid = torch.ones(3000, 10, 1), torch.ones(3000, 10, dtype=torch.bool)
    draws = Draws(7, keys, "audio", "burst", 0)
    gone = FRAMES["burst"](x, valid, torch.full((3000,), 0.5), draws, Reference()).x[..., 0] == 0
    starts = torch.bincount(gone.long().argmax(1), minlength=6) / 3000
    assert starts.tolist() == pytest.approx([1 / 6] * 6, abs=0.03)


@pytest.mark.parametrize("modality", INPUTS)
def test_a_swap_gives_the_partners_frames_and_leaves_other_clips_unchanged(modality: str) -> None:
    before, swapped_before = INPUTS[modality](), torch.zeros(len(LENGTHS), dtype=torch.bool)
    other, other_mask = REFERENCE[modality].partner  # type: ignore[misc]
    for severity in SEVERITIES:
        result = degraded(modality, "swap", severity)
        swapped = result.lost == 1
        assert ((result.lost == 0) | swapped).all()
        assert (swapped | ~swapped_before).all(), "a clip swapped at one severity is swapped at every higher one"
        swapped_before = swapped
        for row, (own_length, partner_length) in enumerate(zip(LENGTHS, PARTNERS, strict=True)):
            x, valid = result.x[row], result.mask[row]
            if swapped[row]:
                assert valid.sum() == partner_length
                assert torch.equal(x[valid], other[row][other_mask[row]])
            else:
                assert torch.equal(bits(x[: before.shape[1]]), bits(before[row]))
                assert valid.sum() == own_length
    assert swapped_before.all()


def test_additive_noise_keeps_the_signals_strength() -> None:
    added = degraded("audio", "additive", 1.0).x - frames()
    half = degraded("audio", "additive", 0.5).x - frames()
    assert torch.allclose(half[mask()], 0.5 * added[mask()], atol=1e-5), "the same noise, half as strong"
    long = torch.zeros(1, 20_000, 3)
    draws = Draws(7, KEYS[:1], "audio", "additive", 0)
    valid = torch.ones(1, 20_000, dtype=torch.bool)
    drawn = FRAMES["additive"](long, valid, torch.ones(1), draws, REFERENCE["audio"]).x[0]
    assert drawn.mean(0).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=0.06)
    assert drawn.std(0).tolist() == pytest.approx([4.0, 1.0, 2.0], rel=0.03)
    assert degraded("audio", "additive", 0.3).lost.tolist() == pytest.approx([0.3] * 4)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_desync_shifts_by_its_share_of_a_second_and_fills_with_zeros(severity: float) -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(40)])
    x = torch.arange(1.0, 16.0).repeat(40, 1)[..., None]
    valid = (torch.arange(15) < 12).expand(40, -1)
    draws = Draws(7, keys, "audio", "desync", 0)
    result = FRAMES["desync"](x, valid, torch.full((40,), severity), draws, REFERENCE["audio"])
    shift = round(10 * severity)
    late = [*[0.0] * shift, *range(1, 13 - shift), 13, 14, 15]
    early = [*range(1 + shift, 13), *[0.0] * shift, 13, 14, 15]
    shifted = {tuple(row) for row in result.x[..., 0].tolist()}
    assert shifted == {tuple(map(float, late)), tuple(map(float, early))}, "each clip is shifted late or early"
    assert result.lost.tolist() == pytest.approx([shift / 12] * 40)


def test_a_shift_longer_than_a_clip_leaves_zeros() -> None:
    result = degraded("audio", "desync", 1.0)
    assert (result.x[1:][mask()[1:]] == 0).all()
    assert result.lost.tolist() == [0.25, 1, 1, 0]


def test_tokens_stay_unchanged_under_kinds_of_frames() -> None:
    kind = torch.full((len(LENGTHS),), KINDS.index("desync"))
    result = degrade(tokens(), mask(), kind, torch.ones(len(LENGTHS)), lambda k: None, REFERENCE["text"])  # type: ignore[arg-type,return-value]
    assert torch.equal(result.x, tokens())
    assert (result.lost == 0).all()


@pytest.mark.parametrize("modality", INPUTS)
def test_each_clip_gets_its_own_kind_and_severity(modality: str) -> None:
    kind = torch.tensor([KINDS.index("noise"), KINDS.index("missing"), -1, KINDS.index("missing")])
    severity = torch.tensor([0.5, 0.8, 0.9, 1.0])
    draws = partial(Draws, 7, KEYS, modality, number=0)
    result = degrade(INPUTS[modality](), mask(), kind, severity, draws, REFERENCE[modality])
    for row, (name, level) in enumerate([("noise", 0.5), ("missing", 0.8), ("missing", 0.0), ("missing", 1.0)]):
        alone = degraded(modality, name, level)
        assert torch.equal(bits(result.x[row]), bits(alone.x[row]))
        assert result.lost[row] == alone.lost[row]


def test_a_fixed_state_leaves_clean_modalities_unchanged() -> None:
    state = fixed_state(("missing", "clean", "noise"), (0.5, 0.0, 0.0), 2)
    assert state.kind.tolist() == [[KINDS.index("missing"), -1, -1]] * 2
    assert state.severity.tolist() == [[0.5, 0.0, 0.0]] * 2


def test_a_drawn_state_has_its_clean_share_and_uniform_kinds_and_severities() -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(6000)])
    state = drawn_state(2026, keys, 3, 0.3)
    clean = state.kind == -1
    assert clean.float().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.025)
    assert (state.severity[clean] == 0).all()
    for kind in range(len(DRAWN)):
        share = (state.kind[~clean] == kind).float().mean().item()
        assert share == pytest.approx(1 / len(DRAWN), abs=0.03)
        drawn = state.severity[state.kind == kind]
        assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((0.5, 12**-0.5), abs=0.02)
    between = torch.corrcoef(state.severity.T)[~torch.eye(3, dtype=torch.bool)]
    assert between.abs().max() < 0.05, "each modality draws for itself"


@pytest.mark.parametrize(("share", "clean"), [(0.0, False), (1.0, True)])
def test_a_clean_share_of_0_or_1_is_exact(share: float, clean: bool) -> None:
    state = drawn_state(2026, torch.tensor([clip_key(str(i)) for i in range(500)]), 0, share)
    assert ((state.kind == -1) == clean).all()
    assert state.kind.shape == (500, len(MODALITIES))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_clips_draws_once_for_all_its_modalities(share: float) -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(4000)])
    state = drawn_state(2026, keys, 3, 0.2, shared_draw_share=share)
    shared = (state.severity == state.severity[:, :1]).all(1) & (state.kind == state.kind[:, :1]).all(1)
    by_chance = 0.2**3  # all of them clean
    assert shared.float().mean().item() == pytest.approx(share + (1 - share) * by_chance, abs=0.02)
    assert (state.kind == -1).float().mean().item() == pytest.approx(0.2, abs=0.02)
    own = drawn_state(2026, keys, 3, 0.2)
    assert torch.equal(state.severity[~shared], own.severity[~shared]), "the other clips draw as without sharing"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_severities_is_1(share: float) -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(4000)])
    state = drawn_state(2026, keys, 3, 0.2, full_severity_share=share)
    drawn = state.severity[state.kind != -1]
    assert (drawn == 1).float().mean().item() == pytest.approx(share, abs=0.02)
    rest = drawn[drawn < 1]
    assert (rest.mean().item(), rest.std().item()) == pytest.approx((0.5, 12**-0.5), abs=0.02)


def test_a_drawn_state_does_not_depend_on_the_batch() -> None:
    together = drawn_state(2026, KEYS, 1, 0.3)
    for row in range(len(KEYS)):
        alone = drawn_state(2026, KEYS[row : row + 1], 1, 0.3)
        assert torch.equal(alone.kind[0], together.kind[row])
        assert torch.equal(alone.severity[0], together.severity[row])
    assert not torch.equal(drawn_state(2026, KEYS, 2, 0.3).severity, together.severity)


@pytest.mark.parametrize(("announced", "whole"), [(0.0, 0.3), (0.4, 0.3), (1.0, 0.3), (1.0, 0.0)])
def test_a_share_of_the_wholly_missing_modalities_is_announced(announced: float, whole: float) -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(6000)])
    state = drawn_state(2026, keys, 3, 0.2, full_severity_share=whole, mask_revealed_share=announced)
    gone = (state.kind == KINDS.index("missing")) & (state.severity == 1)
    assert not state.announced[~gone].any()
    assert bool(gone.any()) == (whole > 0)
    if whole:
        assert state.announced[gone].float().mean().item() == pytest.approx(announced, abs=0.05)


def test_swaps_are_drawn_only_if_they_are_among_the_kinds() -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(4000)])
    swap = KINDS.index("swap")
    assert not (drawn_state(2026, keys, 0).kind >= swap).any()
    kinds = drawn_state(2026, keys, 0, kinds=(*DRAWN, "swap")).kind
    assert (kinds == swap).float().mean().item() == pytest.approx(1 / 4, abs=0.03)
    assert (kinds <= swap).all(), "held-out kinds are for the test split"


def test_a_fixed_state_announces_wholly_missing_modalities_only() -> None:
    kinds, severities = ("missing", "missing", "burst"), (1.0, 0.9, 1.0)
    assert fixed_state(kinds, severities, 2, announced=True).announced.tolist() == [[True, False, False]] * 2
    assert not fixed_state(kinds, severities, 2).announced.any()
