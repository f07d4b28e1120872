"""Properties of the degradations of frames and token ids, for any batch, draws and severities."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qamoe.degradation.features import (
    DRAWN,
    FRAMES,
    KINDS,
    TOKENS,
    Degraded,
    Reference,
    State,
    degrade,
    drawn_state,
)
from qamoe.rng import Draws, clip_key

pytestmark = pytest.mark.integration

PAD, UNK, CLS, SEP = 0, 100, 101, 102
SPECIAL = (PAD, CLS, SEP)
IDS = torch.tensor([PAD, UNK, CLS, SEP, 200, 201, 202, 203])
VOCABULARY = 300
COLUMNS = 3
TABLES = {"audio": FRAMES, "text": TOKENS}
CASES = [(modality, kind) for modality, table in TABLES.items() for kind in table]
SAME_LENGTH = [case for case in CASES if case[1] != "swap"]
LOSE_FRAMES = [(m, k) for m, k in CASES if k.startswith(("missing", "burst"))]
few = settings(max_examples=20)  # for each modality and kind

severities = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)


@dataclass(frozen=True)
class Clips:
    """A batch of one modality: frames (B, T, 3) or ids (B, T), their mask, the clips' numbers, seed and draw number."""

    modality: str
    x: Tensor
    mask: Tensor
    numbers: tuple[int, ...]
    seed: int
    draw: int

    @property
    def keys(self) -> Tensor:
        return torch.tensor([clip_key(f"clip-{number}") for number in self.numbers])

    @property
    def valid(self) -> Tensor:
        """The frames or tokens that a degradation may change."""
        return self.mask if self.modality == "audio" else self.mask & ~torch.isin(self.x, torch.tensor(SPECIAL))

    def alone(self, row: int) -> "Clips":
        """One clip without padding."""
        length = max(1, int(self.mask[row].sum()))
        x, mask = self.x[row : row + 1, :length], self.mask[row : row + 1, :length]
        return Clips(self.modality, x, mask, self.numbers[row : row + 1], self.seed, self.draw)

    def reference(self) -> Reference:
        """The training split's statistics, and a partner for each clip that depends on nothing but the clip."""
        lengths = torch.tensor([number % 4 for number in self.numbers])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        fill = torch.tensor(self.numbers)[:, None].expand(mask.shape)
        if self.modality == "text":
            shares = (torch.arange(VOCABULARY) >= 210).double() / 2 + (torch.arange(VOCABULARY) >= 220).double() / 2
            return Reference(
                frequencies=shares.float(), unk=UNK, special=SPECIAL, partner=((fill + 1000) * mask.long(), mask)
            )
        frames = (fill[..., None].expand(*mask.shape, COLUMNS) + 0.5) * mask[..., None]
        mean, deviation = torch.tensor([5.0, -1.0, 0.0]), torch.tensor([2.0, 0.5, 1.0])
        return Reference(mean=mean, deviation=deviation, rate=4.0, partner=(frames, mask))

    def draws(self, kind: str) -> Draws:
        return Draws(self.seed, self.keys, self.modality, kind, self.draw)

    def degraded(self, kind: str, severity: Tensor | float) -> Degraded:
        """All clips under one kind."""
        level = torch.as_tensor(severity, dtype=torch.float32).expand(len(self.numbers))
        return TABLES[self.modality][kind](self.x, self.mask, level, self.draws(kind), self.reference())


@st.composite
def batches(draw: st.DrawFn, modality: str) -> Clips:
    """Clips of any lengths, 0 among them, with padding that is not zero; special tokens may be anywhere."""
    lengths = draw(st.lists(st.integers(0, 8), min_size=1, max_size=4))
    length = max(1, max(lengths) + draw(st.integers(0, 2)))
    numbers = draw(st.lists(st.integers(0, 99), min_size=len(lengths), max_size=len(lengths), unique=True))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    if modality == "audio":
        x = torch.randn(len(lengths), length, COLUMNS, generator=source)
        x[x.abs() < 0.2] = -0.0
    else:
        x = IDS[torch.randint(len(IDS), (len(lengths), length), generator=source)]
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    seed, number = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 1000))
    return Clips(modality, x, mask, tuple(numbers), seed, number)


@st.composite
def mixed(draw: st.DrawFn) -> tuple[Clips, list[str], Tensor]:
    """A batch whose clips have a kind (or "clean") and a severity each."""
    clips = draw(st.sampled_from(["audio", "text"]).flatmap(batches))
    count = len(clips.numbers)
    kinds = draw(st.lists(st.sampled_from(["clean", *KINDS]), min_size=count, max_size=count))
    levels = draw(st.lists(severities, min_size=count, max_size=count))
    return clips, kinds, torch.tensor(levels)


def bits(x: Tensor) -> Tensor:
    """The bits of floats: 0.0 and -0.0 differ."""
    return x.view(torch.int32) if x.is_floating_point() else x


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def of_each_kind(clips: Clips, kinds: list[str], severity: Tensor) -> Degraded:
    numbers = torch.tensor([KINDS.index(kind) if kind in KINDS else -1 for kind in kinds])
    return degrade(clips.x, clips.mask, numbers, severity, clips.draws, clips.reference())


@pytest.mark.parametrize(("modality", "kind"), CASES)
@few
@given(data=st.data())
def test_severity_0_returns_the_input_bit_for_bit(modality: str, kind: str, data: st.DataObject) -> None:
    clips = data.draw(batches(modality))
    result = clips.degraded(kind, 0.0)
    assert same(result.x, clips.x)
    assert torch.equal(result.mask, clips.mask)
    assert (result.lost == 0).all()


@pytest.mark.parametrize(("modality", "kind"), CASES)
@few
@given(data=st.data(), severity=severities)
def test_dtype_and_shape_are_kept_and_the_input_is_not_changed(
    modality: str, kind: str, data: st.DataObject, severity: float
) -> None:
    clips = data.draw(batches(modality))
    x, mask = clips.x.clone(), clips.mask.clone()
    result = clips.degraded(kind, severity)
    assert same(clips.x, x)
    assert torch.equal(clips.mask, mask)
    assert (result.x.dtype, result.mask.dtype, result.lost.dtype) == (x.dtype, torch.bool, torch.float32)
    assert result.x.shape[:2] == result.mask.shape
    assert result.x.shape[2:] == x.shape[2:]
    assert kind == "swap" or result.x.shape == x.shape
    assert ((result.lost >= 0) & (result.lost <= 1)).all()


@pytest.mark.parametrize(("modality", "kind"), SAME_LENGTH)
@few
@given(data=st.data(), severity=severities)
def test_padding_and_special_tokens_are_never_changed(
    modality: str, kind: str, data: st.DataObject, severity: float
) -> None:
    clips = data.draw(batches(modality))
    result = clips.degraded(kind, severity)
    assert same(result.x[~clips.valid], clips.x[~clips.valid])
    assert torch.equal(result.mask, clips.mask)


@pytest.mark.parametrize(("modality", "kind"), LOSE_FRAMES)
@few
@given(data=st.data())
def test_severity_1_leaves_nothing(modality: str, kind: str, data: st.DataObject) -> None:
    clips = data.draw(batches(modality))
    result = clips.degraded(kind, 1.0)
    assert (result.x[clips.valid] == (0 if clips.modality == "audio" else UNK)).all()
    assert torch.equal(result.lost, clips.valid.any(1).float())


@pytest.mark.parametrize(("modality", "kind"), LOSE_FRAMES)
@few
@given(data=st.data(), low=severities, high=severities)
def test_what_is_lost_grows_with_the_severity(
    modality: str, kind: str, data: st.DataObject, low: float, high: float
) -> None:
    clips = data.draw(batches(modality))
    low, high = sorted([low, high])
    less, more = clips.degraded(kind, low), clips.degraded(kind, high)
    kept = bits(more.x) == bits(clips.x)
    assert same(less.x[kept], clips.x[kept])
    assert (less.lost <= more.lost).all()


@pytest.mark.parametrize(("modality", "kind"), [("audio", "desync"), ("audio", "swap"), ("text", "swap")])
@given(data=st.data(), low=severities, high=severities)
def test_the_share_lost_never_falls_as_the_severity_rises(
    modality: str, kind: str, data: st.DataObject, low: float, high: float
) -> None:
    clips = data.draw(batches(modality))
    low, high = sorted([low, high])
    assert (clips.degraded(kind, low).lost <= clips.degraded(kind, high).lost).all()


@pytest.mark.parametrize("modality", TABLES)
@few
@given(data=st.data(), severity=severities)
def test_a_swapped_clip_is_its_partner_and_the_others_stay(modality: str, data: st.DataObject, severity: float) -> None:
    clips = data.draw(batches(modality))
    result = clips.degraded("swap", severity)
    partner = clips.reference().partner
    assert partner is not None
    for row, swapped in enumerate(result.lost.tolist()):
        x, mask = partner if swapped else (clips.x, clips.mask)
        assert same(result.x[row][result.mask[row]], x[row][mask[row]])
        assert result.mask[row].sum() == mask[row].sum()
        assert swapped in (0, 1)


@given(clips=batches("audio"), severity=severities)
def test_noise_of_a_severity_is_that_share_of_the_noise_of_severity_1(clips: Clips, severity: float) -> None:
    mixture = (1 - severity) * clips.x + severity * clips.degraded("noise", 1.0).x
    result = clips.degraded("noise", severity).x
    assert torch.allclose(result[clips.valid], mixture[clips.valid], atol=1e-5)


@given(clips=batches("text"), low=severities, high=severities)
def test_a_wrong_word_is_of_the_training_split_and_stays_as_the_severity_rises(
    clips: Clips, low: float, high: float
) -> None:
    less, more = (clips.degraded("noise", level).x for level in sorted([low, high]))
    changed = less != clips.x
    assert same(more[changed], less[changed])
    assert set(more[more != clips.x].tolist()) <= {210, 220}
    assert set(clips.degraded("noise", 1.0).x[clips.valid].tolist()) <= {210, 220}


@given(example=mixed())
def test_a_clip_is_degraded_alike_alone_and_in_any_batch(example: tuple[Clips, list[str], Tensor]) -> None:
    """Neither the other clips, nor their kinds, nor the length of the padding changes a clip's draws."""
    clips, kinds, severity = example
    together = of_each_kind(clips, kinds, severity)
    for row, kind in enumerate(kinds):
        alone = of_each_kind(clips.alone(row), [kind], severity[row : row + 1])
        assert same(together.x[row][together.mask[row]], alone.x[0][alone.mask[0]])
        assert together.mask[row].sum() == alone.mask.sum()
        assert torch.equal(together.lost[row], alone.lost[0])


@given(example=mixed())
def test_a_clip_of_a_mixed_batch_is_degraded_by_the_function_of_its_kind(
    example: tuple[Clips, list[str], Tensor],
) -> None:
    clips, kinds, severity = example
    result = of_each_kind(clips, kinds, severity)
    for row, kind in enumerate(kinds):
        alone = clips.alone(row)
        if kind in TABLES[clips.modality]:
            expected = alone.degraded(kind, severity[row])
        else:  # clean, or a kind that tokens do not have
            expected = Degraded(alone.x, alone.mask, torch.zeros(1))
        assert same(result.x[row][result.mask[row]], expected.x[expected.mask])
        assert torch.equal(result.lost[row], expected.lost[0])


@given(example=mixed(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_clips_does_not_matter(example: tuple[Clips, list[str], Tensor], order: object) -> None:
    clips, kinds, severity = example
    rows = list(range(len(kinds)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    numbers = tuple(clips.numbers[row] for row in rows)
    shuffled = Clips(clips.modality, clips.x[rows], clips.mask[rows], numbers, clips.seed, clips.draw)
    result = of_each_kind(clips, kinds, severity)
    expected = of_each_kind(shuffled, [kinds[row] for row in rows], severity[rows])
    assert same(result.x[rows], expected.x)
    assert torch.equal(result.mask[rows], expected.mask)
    assert torch.equal(result.lost[rows], expected.lost)


shares = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
kinds_drawn = st.sampled_from([DRAWN, (*DRAWN, "swap"), ("missing_features",), ("burst", "noise")])
clip_numbers = st.lists(st.integers(0, 999), min_size=1, max_size=6)


def keys_of(numbers: list[int]) -> Tensor:
    return torch.tensor([clip_key(f"clip-{number}") for number in numbers])


@dataclass(frozen=True)
class Shares:
    clean: float
    shared: float
    full: float
    revealed: float


all_shares = st.builds(Shares, shares, shares, st.floats(0, 0.95), shares)


def states(seed: int, numbers: list[int], some: Shares, kinds: tuple[str, ...]) -> State:
    return drawn_state(seed, keys_of(numbers), 3, some.clean, some.shared, some.full, some.revealed, kinds)


@given(seed=st.integers(0, 2**32 - 1), numbers=clip_numbers, some=all_shares, kinds=kinds_drawn)
def test_a_clip_draws_its_state_by_itself(seed: int, numbers: list[int], some: Shares, kinds: tuple[str, ...]) -> None:
    drawn = partial(states, seed, some=some, kinds=kinds)
    together = drawn(numbers)
    for row, number in enumerate(numbers):
        alone = drawn([number])
        for part in ("kind", "severity", "announced"):
            assert torch.equal(getattr(together, part)[row], getattr(alone, part)[0])


@given(seed=st.integers(0, 2**32 - 1), numbers=clip_numbers, some=all_shares, kinds=kinds_drawn)
def test_drawn_states_are_within_what_was_set(
    seed: int, numbers: list[int], some: Shares, kinds: tuple[str, ...]
) -> None:
    state = states(seed, numbers, some, kinds)
    clean = state.kind < 0
    assert {KINDS[number] for number in state.kind[~clean].tolist()} <= set(kinds)
    assert ((state.severity >= 0) & (state.severity <= 1)).all()
    assert (state.severity[clean] == 0).all()
    lost = (state.severity == 1) & (
        (state.kind == KINDS.index("missing")) | (state.kind == KINDS.index("missing_features"))
    )
    assert not (state.announced & ~lost).any()
    limits: dict[str, Callable[[], bool]] = {
        "clean": lambda: bool(clean.all()),
        "shared": lambda: all(bool((part == part[:, :1]).all()) for part in (state.kind, state.severity)),
        "revealed": lambda: torch.equal(state.announced, lost),
    }
    for name, holds in limits.items():
        assert getattr(some, name) < 1 or holds()
    assert some.clean > 0 or not clean.any()
    assert some.revealed > 0 or not state.announced.any()
    assert some.full > 0 or (state.severity < 1).all()
