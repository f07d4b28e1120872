"""Degradations of feature sequences and of token ids: pure functions of (x, mask, severity, draws, reference).

A degradation returns new frames, which of them are valid, and how much was lost; the input is never changed, and
severity 0 gives it back bit for bit. A new one is one function and one line in FRAMES, and one in TOKENS where words
have it too: training may then draw it, a checkpoint be chosen by it, and a slice of its name measures it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qamoe.rng import MODALITIES, Draws

DRAWN = ("missing", "noise", "burst")  # the kinds that clips draw in training and in slice mixed
HELD_OUT = ("additive", "desync")  # of frames, on the test side alone
FEATURES = "missing_features"  # missing, of a corpus whose text is stored vectors: frames that are lost and no words


@dataclass(frozen=True)
class Reference:
    """What a kind needs beside the clip: from the training split, and from the partner clips of a swap.

    Frames: `mean` and `deviation` (D,), `rate` in Hz where it is known. Tokens: `frequencies` (V,) cumulative shares of
    token ids, `unk` and the `special` ids that are never touched nor counted. `partner`: x (B, T', ...) and mask
    (B, T') of another clip for each clip.
    """

    mean: Tensor | None = None
    deviation: Tensor | None = None
    rate: float | None = None
    frequencies: Tensor | None = None
    unk: int = 0
    special: tuple[int, ...] = ()
    partner: tuple[Tensor, Tensor] | None = None

    def to(self, device: str) -> "Reference":
        """The same on a device; a partner is made where it is asked for."""
        parts = {name: getattr(self, name) for name in ("mean", "deviation", "frequencies")}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class Degraded:
    """Frames (B, T, D) or ids (B, T), which of them are valid (B, T), and how much was lost (B,).

    That is the realised share of valid frames (missing, burst, desync), the severity (noise, additive), or 1 where a
    clip was swapped.
    """

    x: Tensor
    mask: Tensor
    lost: Tensor


Degradation = Callable[[Tensor, Tensor, Tensor, Draws, Reference], Degraded]


def valid_tokens(ids: Tensor, mask: Tensor, special: tuple[int, ...]) -> Tensor:
    """(B, T) bool: tokens that a degradation may touch; CLS and SEP are not."""
    valid = mask.clone()
    for token in special:
        valid &= ids != token
    return valid


def _share(gone: Tensor, valid: Tensor) -> Tensor:
    return gone.sum(1) / valid.sum(1).clamp(min=1)


def missing_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Each valid frame is lost (zero) independently with probability severity. x (B, T, D), severity (B,)."""
    gone = (draws.uniform(x.shape[1]) < severity[:, None]) & mask
    return Degraded(x.masked_fill(gone[..., None], 0.0), mask, _share(gone, mask))


def missing_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Each word piece becomes [UNK] independently with probability severity. x (B, T) int64, severity (B,)."""
    valid = valid_tokens(x, mask, reference.special)
    gone = (draws.uniform(x.shape[1]) < severity[:, None]) & valid
    return Degraded(x.masked_fill(gone, reference.unk), mask, _share(gone, valid))


def noise_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """(1 - severity) x + severity eps, eps Gaussian with the training mean and deviation of each column."""
    assert reference.mean is not None
    assert reference.deviation is not None
    batch, frames, columns = x.shape
    level = severity[:, None, None]
    eps = draws.normal(frames * columns).view(batch, frames, columns) * reference.deviation + reference.mean
    # Adding 0 * eps would turn -0.0 into 0.0, so untouched frames are chosen, not computed.
    touched = (level > 0) & mask[..., None]
    return Degraded(torch.where(touched, (1 - level) * x + level * eps, x), mask, severity)


def noise_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Each word piece is replaced, with probability severity, by one drawn from the training frequencies."""
    assert reference.frequencies is not None
    valid = valid_tokens(x, mask, reference.special)
    numbers = draws.uniform(2 * x.shape[1]).view(x.shape[0], x.shape[1], 2)
    gone = (numbers[..., 0] < severity[:, None]) & valid
    other = torch.searchsorted(reference.frequencies, numbers[..., 1].contiguous(), right=True)
    return Degraded(torch.where(gone, other.clamp(max=len(reference.frequencies) - 1), x), mask, severity)


def _block(valid: Tensor, severity: Tensor, draws: Draws) -> Tensor:
    """(B, T) bool: one run of round(severity n) of each clip's n valid frames, somewhere among them.

    A longer run of the same draw holds every shorter one: with one frame more, the start moves back by one at most.
    """
    count = valid.sum(1)
    length = (severity * count).round().long()
    start = (draws.words(1)[:, 0] * (count - length + 1)) >> 32
    place = valid.cumsum(1) - 1
    return valid & (place >= start[:, None]) & (place < (start + length)[:, None])


def burst_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """One contiguous block of a share severity of the valid frames is lost (zero). x (B, T, D), severity (B,)."""
    gone = _block(mask, severity, draws)
    return Degraded(x.masked_fill(gone[..., None], 0.0), mask, _share(gone, mask))


def burst_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """One contiguous block of a share severity of the word pieces becomes [UNK]. x (B, T) int64, severity (B,)."""
    valid = valid_tokens(x, mask, reference.special)
    gone = _block(valid, severity, draws)
    return Degraded(x.masked_fill(gone, reference.unk), mask, _share(gone, valid))


def swap(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """With probability severity the whole modality is that of the partner clip, with its length. Frames or ids."""
    assert reference.partner is not None
    other, other_mask = reference.partner
    swapped = draws.uniform(1)[:, 0] < severity
    if not bool(swapped.any()):
        return Degraded(x, mask, torch.zeros_like(severity))
    length = max(x.shape[1], other.shape[1])
    chosen = swapped.view(-1, *[1] * (x.ndim - 1))
    x = torch.where(chosen, _padded(other, length), _padded(x, length))
    mask = torch.where(swapped[:, None], _padded(other_mask, length), _padded(mask, length))
    return Degraded(x, mask, swapped.to(severity.dtype))


def _padded(x: Tensor, length: int) -> Tensor:
    """(B, T, ...) -> (B, length, ...), zeros behind."""
    return F.pad(x, (*[0] * (2 * (x.ndim - 2)), 0, length - x.shape[1]))


def additive_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """x + severity 2 deviation eps, eps standard normal: the signal stays as strong as it was. Held out."""
    assert reference.deviation is not None
    batch, frames, columns = x.shape
    level = severity[:, None, None]
    eps = draws.normal(frames * columns).view(batch, frames, columns) * (2 * reference.deviation)
    return Degraded(torch.where((level > 0) & mask[..., None], x + level * eps, x), mask, severity)


def desync_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """The frames come severity x 1 s too late or too early (drawn a clip); the freed ones are zero. Held out.

    Valid frames are the first n of a clip, and stay so. What is shifted beyond its ends is gone.
    """
    assert reference.rate is not None
    count = mask.sum(1)
    shift = torch.minimum((severity * reference.rate).round().long(), count)
    late = draws.uniform(1)[:, 0] < 0.5
    place = torch.arange(x.shape[1], device=x.device)
    origin = place - torch.where(late, shift, -shift)[:, None]
    freed = mask & ((origin < 0) | (origin >= count[:, None]))
    origin = torch.where(mask, origin, place).clamp(0, x.shape[1] - 1)
    moved = x.gather(1, origin[..., None].expand(x.shape))
    return Degraded(moved.masked_fill(freed[..., None], 0.0), mask, _share(freed, mask))


FRAMES: dict[str, Degradation] = {
    "missing": missing_frames,
    "noise": noise_frames,
    "burst": burst_frames,
    "swap": swap,
    "additive": additive_frames,
    "desync": desync_frames,
    FEATURES: missing_frames,
}
TOKENS: dict[str, Degradation] = {
    "missing": missing_tokens,
    "noise": noise_tokens,
    "burst": burst_tokens,
    "swap": swap,
}
KINDS = tuple(FRAMES)


def trainable_kinds() -> tuple[str, ...]:
    """The kinds that params.yaml may name for training, for the choice of a checkpoint, for specialists and slices.

    Swaps are switched on by a key of their own, and what is held out is on the test side alone.
    """
    return tuple(kind for kind in FRAMES if kind not in ("swap", *HELD_OUT))


def degrade(
    x: Tensor,
    mask: Tensor,
    kind: Tensor,
    severity: Tensor,
    draws: Callable[[str], Draws],
    reference: Reference,
) -> Degraded:
    """Apply to each clip its own kind (B,) int64 (index into KINDS, -1 for none) at its own severity (B,).

    Tokens and frames are told apart by dtype; a kind that tokens do not have leaves them as they are. `draws(kind)`
    gives the random numbers of a kind's stream. After a swap T may be larger.
    """
    table = FRAMES if x.is_floating_point() else TOKENS
    undegraded, lost = x, torch.zeros_like(severity)
    for index, name in enumerate(KINDS):
        rows = ((kind == index) & (severity > 0)).nonzero()[:, 0]
        if name not in table or not len(rows):
            continue
        if name == "swap" or len(rows) == len(x):
            here = torch.where(kind == index, severity, torch.zeros_like(severity))
            result = table[name](x, mask, here, draws(name), reference)
            x, mask, lost = result.x, result.mask, torch.where(kind == index, result.lost, lost)
        else:  # its numbers are drawn for its own clips alone, which is most of the work
            result = table[name](x[rows], mask[rows], severity[rows], draws(name).select(rows), reference)
            x = (x.clone() if x is undegraded else x).index_copy_(0, rows, result.x)
            lost = lost.index_copy(0, rows, result.lost)
    return Degraded(x, mask, lost)


@dataclass(frozen=True)
class State:
    """How each clip of a batch is degraded, each (B, M).

    kind int64 (-1 clean), severity float32, and whether the model is told that the modality is gone (its mask is
    emptied then).
    """

    kind: Tensor
    severity: Tensor
    announced: Tensor

    def with_realised_swaps(self, lost: Tensor) -> "State":
        """The same, the severity of a swap, which is its chance, made 1 or 0 by what was `lost` (B, M)."""
        swap = self.kind == KINDS.index("swap")
        return replace(self, severity=torch.where(swap, lost.to(self.severity), self.severity))


def _whole(kind: Tensor, severity: Tensor) -> Tensor:
    """Which modalities are wholly missing."""
    return ((kind == KINDS.index("missing")) | (kind == KINDS.index(FEATURES))) & (severity >= 1)


def fixed_state(kinds: tuple[str, ...], severities: tuple[float, ...], batch: int, *, announced: bool = False) -> State:
    """The same degradation for every clip; kind "clean" or severity 0 leaves a modality alone.

    With `announced` the model is told of the modalities that are wholly missing.
    """
    numbers = [KINDS.index(k) if k in KINDS and s > 0 else -1 for k, s in zip(kinds, severities, strict=True)]
    kind, severity = torch.tensor(numbers).expand(batch, -1), torch.tensor(severities).expand(batch, -1)
    return State(kind, severity, _whole(kind, severity) & announced)


def drawn_state(
    seed: int,
    clips: Tensor,
    number: int | Tensor,
    clean_share: float = 0.0,
    shared_draw_share: float = 0.0,
    full_severity_share: float = 0.0,
    mask_revealed_share: float = 0.0,
    kinds: tuple[str, ...] = DRAWN,
) -> State:
    """Each clip and modality draws its own kind and severity ~ U(0, 1); a share of the draws stays clean.

    A share of the clips draws once for all its modalities, and a share of the severities is 1, so that a clip that
    lost everything is not a rarity. Of the modalities that are wholly missing, a share is announced.
    """
    own = {m: Draws(seed, clips, m, "state", number).uniform(5) for m in MODALITIES}
    alike = own[MODALITIES[0]][:, 3:4] < shared_draw_share
    places = torch.tensor([KINDS.index(kind) for kind in kinds], device=clips.device)
    graded = torch.tensor(
        1 - full_severity_share, device=clips.device
    )  # a GPU divides by a number otherwise than by a tensor
    states = []
    for modality in MODALITIES:
        u = torch.where(alike, own[MODALITIES[0]], own[modality])
        clean = u[:, 0] < clean_share
        kind = places[(u[:, 1] * len(kinds)).long().clamp(max=len(kinds) - 1)]
        severity = (u[:, 2] / graded).clamp(max=1.0)
        kind, severity = torch.where(clean, -1, kind), torch.where(clean, 0.0, severity)
        states.append((kind, severity, _whole(kind, severity) & (u[:, 4] < mask_revealed_share)))
    return State(*(torch.stack(part, 1) for part in zip(*states, strict=True)))
