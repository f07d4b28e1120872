"""Degradations of frames and token ids: exact at severity 0, nested as it rises, nothing left at severity 1."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from qamoe.degradation.draws import MODALITIES, Draws, clip_key
from qamoe.degradation.frames import (
    FRAMES,
    KINDS,
    TOKENS,
    Degraded,
    Reference,
    degrade,
    drawn_state,
    fixed_state,
)

PAD, UNK, CLS, SEP = 0, 100, 101, 102
WORDS = (1000, 2000, 3000)  # what the training split says, three times, once and four times
SEVERITIES = [round(0.1 * step, 1) for step in range(11)]


def cumulative() -> Tensor:
    counts = torch.zeros(4000, dtype=torch.float64)
    counts[list(WORDS)] = torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64)
    return (counts.cumsum(0) / counts.sum()).float()


REFERENCE = {
    "audio": Reference(mean=torch.tensor([5.0, -1.0, 0.0]), deviation=torch.tensor([2.0, 0.5, 1.0])),
    "text": Reference(frequencies=cumulative(), unk=UNK, special=(PAD, CLS, SEP)),
}
LENGTHS = (40, 7, 1, 0)  # of four clips; behind them is padding
KEYS = torch.tensor([clip_key(f"clip-{i}") for i in range(len(LENGTHS))])


def mask() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def frames() -> Tensor:
    """(4, 40, 3) with a negative zero and a denormal in it, and padding that is not zero."""
    x = torch.randn(len(LENGTHS), max(LENGTHS), 3, generator=torch.Generator().manual_seed(0))
    x[0, 0] = torch.tensor([-0.0, 1e-42, 0.0])
    return x.masked_fill(~mask()[..., None], 99.0)


def tokens() -> Tensor:
    """(4, 40) ids: CLS, words that the training split does not know, SEP, padding."""
    ids = torch.randint(3100, 3900, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = PAD
        if length > 1:
            ids[row, 0], ids[row, length - 1] = CLS, SEP
        elif length:
            ids[row, 0] = CLS  # a clip without a word
    return ids


def words() -> Tensor:
    """Which tokens are words."""
    return mask() & (tokens() != CLS) & (tokens() != SEP) & (tokens() != PAD)


INPUTS: dict[str, Callable[[], Tensor]] = {"audio": frames, "text": tokens}
TABLES = {"audio": FRAMES, "text": TOKENS}
CASES = [(modality, kind) for modality in INPUTS for kind in KINDS]
every_case = pytest.mark.parametrize(("modality", "kind"), CASES)


def made(modality: str, kind: str, severity: float, x: Tensor | None = None, number: int = 0) -> Degraded:
    level = torch.full((len(LENGTHS),), severity)
    draws = Draws(7, KEYS, modality, kind, number)
    return TABLES[modality][kind](INPUTS[modality]() if x is None else x, mask(), level, draws, REFERENCE[modality])


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32) if x.is_floating_point() else x


@every_case
def test_severity_0_is_the_input_bit_for_bit(modality: str, kind: str) -> None:
    result = made(modality, kind, 0.0)
    assert torch.equal(bits(result.x), bits(INPUTS[modality]()))
    assert (result.lost == 0).all()


@every_case
@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0])
def test_the_input_is_never_changed(modality: str, kind: str, severity: float) -> None:
    x = INPUTS[modality]()
    changed = made(modality, kind, severity, x)
    assert torch.equal(bits(x), bits(INPUTS[modality]()))
    assert (severity > 0) == (not torch.equal(changed.x, x))


@every_case
def test_another_draw_is_another_degradation(modality: str, kind: str) -> None:
    assert not torch.equal(made(modality, kind, 0.5).x, made(modality, kind, 0.5, number=1).x)


@every_case
@pytest.mark.parametrize("severity", SEVERITIES)
def test_padding_and_special_tokens_are_never_touched(modality: str, kind: str, severity: float) -> None:
    outside = ~mask() if modality == "audio" else ~words()
    assert torch.equal(made(modality, kind, severity).x[outside], INPUTS[modality]()[outside])


@pytest.mark.parametrize(("modality", "kind"), [case for case in CASES if case != ("audio", "noise")])
def test_what_is_lost_nests_as_the_severity_rises(modality: str, kind: str) -> None:
    before, changes = torch.zeros_like(mask()), []
    for severity in SEVERITIES:
        x = made(modality, kind, severity).x
        gone = x != INPUTS[modality]()
        gone = gone.any(-1) if modality == "audio" else gone
        assert (gone | ~before).all(), f"something lost below severity {severity} is back"
        changes.append(int(gone.sum()))
        before = gone
    assert changes[0] == 0
    assert len(set(changes)) > 8
    if kind == "noise":  # and a wrong word stays the same wrong word
        half, all_of_it = made(modality, kind, 0.5).x, made(modality, kind, 1.0).x
        gone = half != INPUTS[modality]()
        assert torch.equal(half[gone], all_of_it[gone])


def test_severity_1_loses_every_frame_and_every_word() -> None:
    sound = made("audio", "missing", 1.0)
    assert (sound.x[mask()] == 0).all()
    assert sound.lost.tolist() == [1, 1, 1, 0]
    text = made("text", "missing", 1.0)
    assert (text.x[words()] == UNK).all()
    assert text.lost.tolist() == [1, 1, 0, 0], "CLS and SEP are not counted, and a clip without words loses none"


@pytest.mark.parametrize("modality", INPUTS)
@pytest.mark.parametrize("severity", [0.2, 0.5, 0.9])
def test_the_share_lost_is_counted_over_valid_frames_alone(modality: str, severity: float) -> None:
    result = made(modality, "missing", severity)
    valid = mask() if modality == "audio" else words()
    gone = (result.x == 0).all(-1) if modality == "audio" else result.x == UNK
    expected = (gone & valid).sum(1) / valid.sum(1).clamp(min=1)
    assert torch.equal(result.lost, expected)


@pytest.mark.parametrize("severity", [0.1, 0.5, 0.9])
def test_frames_are_lost_with_the_probability_that_severity_says(severity: float) -> None:
    x, level = torch.ones(1, 20_000, 1), torch.tensor([severity])
    draws = Draws(7, KEYS[:1], "audio", "missing", 0)
    lost = FRAMES["missing"](x, torch.ones(1, 20_000, dtype=torch.bool), level, draws, Reference()).lost
    assert lost.item() == pytest.approx(severity, abs=0.015)


def test_noise_at_severity_1_knows_nothing_of_its_input() -> None:
    others = made("audio", "noise", 1.0, frames() * -3 + 8).x
    assert torch.equal(bits(made("audio", "noise", 1.0).x[mask()]), bits(others[mask()]))
    other_words = torch.where(words(), 3999, tokens())
    assert torch.equal(made("text", "noise", 1.0).x, made("text", "noise", 1.0, other_words).x)


def test_noise_mixes_the_input_with_noise_of_the_training_columns() -> None:
    noise = made("audio", "noise", 1.0).x
    expected = 0.7 * frames() + 0.3 * noise
    assert torch.allclose(made("audio", "noise", 0.3).x[mask()], expected[mask()], atol=1e-6)
    long = torch.zeros(1, 20_000, 3)
    draws = Draws(7, KEYS[:1], "audio", "noise", 0)
    valid = torch.ones(1, 20_000, dtype=torch.bool)
    drawn = FRAMES["noise"](long, valid, torch.ones(1), draws, REFERENCE["audio"]).x[0]
    assert drawn.mean(0).tolist() == pytest.approx([5.0, -1.0, 0.0], abs=0.06)
    assert drawn.std(0).tolist() == pytest.approx([2.0, 0.5, 1.0], rel=0.03)


def test_noise_reports_its_severity_as_lost() -> None:
    assert made("audio", "noise", 0.3).lost.tolist() == pytest.approx([0.3] * 4)
    assert made("text", "noise", 0.3).lost.tolist() == pytest.approx([0.3] * 4)


def test_wrong_words_come_with_the_frequencies_of_the_training_split() -> None:
    ids = torch.full((1, 20_000), 3500)
    draws = Draws(7, KEYS[:1], "text", "noise", 0)
    valid = torch.ones_like(ids, dtype=torch.bool)
    drawn = TOKENS["noise"](ids, valid, torch.ones(1), draws, REFERENCE["text"]).x
    assert set(drawn.unique().tolist()) == set(WORDS)
    shares = [(drawn == word).float().mean().item() for word in WORDS]
    assert shares == pytest.approx([3 / 8, 1 / 8, 4 / 8], abs=0.015)


@pytest.mark.parametrize(("number", "word"), [(0.0, WORDS[0]), (1 - 2**-24, WORDS[-1])])
def test_the_outermost_draws_give_words_that_the_training_split_has(number: float, word: int) -> None:
    class Fixed:
        def uniform(self, elements: int) -> Tensor:
            numbers = torch.zeros(1, elements)
            numbers[:, 1::2] = number  # every other one chooses the word
            return numbers

    ids, valid = torch.full((1, 3), 3500), torch.ones(1, 3, dtype=torch.bool)
    drawn = TOKENS["noise"](ids, valid, torch.ones(1), Fixed(), REFERENCE["text"]).x  # type: ignore[arg-type]
    assert drawn.tolist() == [[word] * 3]


@pytest.mark.parametrize("modality", INPUTS)
def test_each_clip_gets_its_own_kind_and_severity(modality: str) -> None:
    kind = torch.tensor([KINDS.index("noise"), KINDS.index("missing"), -1, KINDS.index("missing")])
    severity = torch.tensor([0.5, 0.8, 0.9, 1.0])
    draws = partial(Draws, 7, KEYS, modality, number=0)
    result = degrade(INPUTS[modality](), mask(), kind, severity, draws, REFERENCE[modality])
    for row, (name, level) in enumerate([("noise", 0.5), ("missing", 0.8), ("missing", 0.0), ("missing", 1.0)]):
        alone = made(modality, name, level)
        assert torch.equal(bits(result.x[row]), bits(alone.x[row]))
        assert result.lost[row] == alone.lost[row]


def test_a_fixed_state_leaves_clean_modalities_alone() -> None:
    state = fixed_state(("missing", "clean", "noise"), (0.5, 0.0, 0.0), 2)
    assert state.kind.tolist() == [[KINDS.index("missing"), -1, -1]] * 2
    assert state.severity.tolist() == [[0.5, 0.0, 0.0]] * 2


def test_a_drawn_state_has_its_clean_share_and_even_kinds_and_severities() -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(6000)])
    state = drawn_state(2026, keys, 3, 0.3)
    clean = state.kind == -1
    assert clean.float().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.025)
    assert (state.severity[clean] == 0).all()
    for kind in range(len(KINDS)):
        share = (state.kind[~clean] == kind).float().mean().item()
        assert share == pytest.approx(1 / len(KINDS), abs=0.03)
        drawn = state.severity[state.kind == kind]
        assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((0.5, 12**-0.5), abs=0.02)
    between = torch.corrcoef(state.severity.T)[~torch.eye(3, dtype=torch.bool)]
    assert between.abs().max() < 0.05, "each modality draws for itself"


@pytest.mark.parametrize(("share", "clean"), [(0.0, False), (1.0, True)])
def test_a_clean_share_of_nothing_or_all_is_exact(share: float, clean: bool) -> None:
    state = drawn_state(2026, torch.tensor([clip_key(str(i)) for i in range(500)]), 0, share)
    assert ((state.kind == -1) == clean).all()
    assert state.kind.shape == (500, len(MODALITIES))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_clips_draws_once_for_all_its_modalities(share: float) -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(4000)])
    state = drawn_state(2026, keys, 3, 0.2, alike_share=share)
    alike = (state.severity == state.severity[:, :1]).all(1) & (state.kind == state.kind[:, :1]).all(1)
    by_chance = 0.2**3  # all of them clean
    assert alike.float().mean().item() == pytest.approx(share + (1 - share) * by_chance, abs=0.02)
    assert (state.kind == -1).float().mean().item() == pytest.approx(0.2, abs=0.02)
    own = drawn_state(2026, keys, 3, 0.2)
    assert torch.equal(state.severity[~alike], own.severity[~alike]), "the others draw what they always drew"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_severities_is_the_whole(share: float) -> None:
    keys = torch.tensor([clip_key(str(i)) for i in range(4000)])
    state = drawn_state(2026, keys, 3, 0.2, whole_share=share)
    drawn = state.severity[state.kind != -1]
    assert (drawn == 1).float().mean().item() == pytest.approx(share, abs=0.02)
    rest = drawn[drawn < 1]
    assert (rest.mean().item(), rest.std().item()) == pytest.approx((0.5, 12**-0.5), abs=0.02)


def test_a_drawn_state_is_each_clips_own() -> None:
    together = drawn_state(2026, KEYS, 1, 0.3)
    for row in range(len(KEYS)):
        alone = drawn_state(2026, KEYS[row : row + 1], 1, 0.3)
        assert torch.equal(alone.kind[0], together.kind[row])
        assert torch.equal(alone.severity[0], together.severity[row])
    assert not torch.equal(drawn_state(2026, KEYS, 2, 0.3).severity, together.severity)
