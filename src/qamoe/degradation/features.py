"""Degradations of feature sequences and of token ids: pure functions of (x, mask, severity, draws, reference).

A degradation returns new frames, which of them are valid, and how much was lost. It never changes its input; at
severity 0 it returns the input bit for bit. To add a kind, write one function and add one line to FRAMES (and one to
TOKENS if it also degrades token ids). Training can then draw it, selection can use it, and a slice measures it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qamoe.rng import MODALITIES, Draws

DRAWN = ("missing", "noise", "burst")  # drawn in training by default, and in slice mixed
HELD_OUT = ("additive", "desync")  # kinds of frames that only the test split has
# `missing` for frames only: a corpus whose text is stored vectors has no words to lose.
MISSING_FEATURES = "missing_features"
COPY = "copy"  # the features of a damaged copy of the clip (extract.copies) in place of its own
PAPER_NOISE = "paper_noise"  # the paper's noise of strength lambda: degradation/spectrum.py
_PAPER_WORD = 0  # id of the word that the public code writes in place of others; padding in BERT's vocabularies


@dataclass(frozen=True)
class Reference:
    """Data that a kind needs in addition to the clip: statistics of the training split, and the partners of a swap.

    Frames: `mean` and `deviation` (D,), and `rate` in Hz if it is known. Tokens: `frequencies` (V,), the cumulative
    shares of token ids, `unk`, and the `special` ids, which are neither changed nor counted. `partner`: x (B, T', ...)
    and mask (B, T') of the clip that each clip is swapped with.
    """

    mean: Tensor | None = None
    deviation: Tensor | None = None
    rate: float | None = None
    frequencies: Tensor | None = None
    unk: int = 0
    special: tuple[int, ...] = ()
    partner: tuple[Tensor, Tensor] | None = None

    def to(self, device: str) -> "Reference":
        """Return a copy on a device, without moving `partner`."""
        tensors = {name: getattr(self, name) for name in ("mean", "deviation", "frequencies")}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


@dataclass(frozen=True)
class Degraded:
    """Frames (B, T, D) or ids (B, T), which of them are valid (B, T), and how much was lost (B,).

    `lost` is the realised share of valid frames (missing, burst, desync), the severity (noise, additive), or 1 for a
    swapped clip and 0 for the others (swap).
    """

    x: Tensor
    mask: Tensor
    lost: Tensor


Degradation = Callable[[Tensor, Tensor, Tensor, Draws, Reference], Degraded]


def valid_tokens(ids: Tensor, mask: Tensor, special: tuple[int, ...]) -> Tensor:
    """Return which tokens a degradation may change, (B, T) bool: all except padding and special tokens (CLS, SEP)."""
    valid = mask.clone()
    for token in special:
        valid &= ids != token
    return valid


def _share(gone: Tensor, valid: Tensor) -> Tensor:
    return gone.sum(1) / valid.sum(1).clamp(min=1)


def missing_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Set each valid frame to zero independently with probability severity. x (B, T, D), severity (B,)."""
    gone = (draws.uniform(x.shape[1]) < severity[:, None]) & mask
    return Degraded(x.masked_fill(gone[..., None], 0.0), mask, _share(gone, mask))


def missing_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Replace each word piece by [UNK] independently with probability severity. x (B, T) int64, severity (B,)."""
    valid = valid_tokens(x, mask, reference.special)
    gone = (draws.uniform(x.shape[1]) < severity[:, None]) & valid
    return Degraded(x.masked_fill(gone, reference.unk), mask, _share(gone, valid))


def noise_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Return (1 - severity) x + severity eps; eps is Gaussian with each column's training mean and deviation."""
    assert reference.mean is not None
    assert reference.deviation is not None
    batch, frames, columns = x.shape
    level = severity[:, None, None]
    eps = draws.normal(frames * columns).view(batch, frames, columns) * reference.deviation + reference.mean
    # Select unchanged frames instead of computing them: adding 0 * eps would turn -0.0 into 0.0.
    touched = (level > 0) & mask[..., None]
    return Degraded(torch.where(touched, (1 - level) * x + level * eps, x), mask, severity)


def noise_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Replace each word piece, with probability severity, by one drawn from the training frequencies."""
    assert reference.frequencies is not None
    valid = valid_tokens(x, mask, reference.special)
    numbers = draws.uniform(2 * x.shape[1]).view(x.shape[0], x.shape[1], 2)
    gone = (numbers[..., 0] < severity[:, None]) & valid
    other = torch.searchsorted(reference.frequencies, numbers[..., 1].contiguous(), right=True)
    return Degraded(torch.where(gone, other.clamp(max=len(reference.frequencies) - 1), x), mask, severity)


def _block(valid: Tensor, severity: Tensor, draws: Draws) -> Tensor:
    """Return one run of round(severity n) of each clip's n valid frames at a random position, (B, T) bool.

    With the same draw, a longer run contains every shorter one: each additional frame moves the start back by at most
    one.
    """
    count = valid.sum(1)
    length = (severity * count).round().long()
    start = (draws.words(1)[:, 0] * (count - length + 1)) >> 32
    position = valid.cumsum(1) - 1
    return valid & (position >= start[:, None]) & (position < (start + length)[:, None])


def burst_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Set one contiguous block, a share severity of the valid frames, to zero. x (B, T, D), severity (B,)."""
    gone = _block(mask, severity, draws)
    return Degraded(x.masked_fill(gone[..., None], 0.0), mask, _share(gone, mask))


def burst_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Replace one contiguous block, a share severity of the word pieces, by [UNK]. x (B, T) int64, severity (B,)."""
    valid = valid_tokens(x, mask, reference.special)
    gone = _block(valid, severity, draws)
    return Degraded(x.masked_fill(gone, reference.unk), mask, _share(gone, valid))


def swap(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Replace the whole modality, with probability severity, by the partner clip's, with its length. Frames or ids."""
    assert reference.partner is not None
    other, other_mask = reference.partner
    swapped = draws.uniform(1)[:, 0] < severity
    if not bool(swapped.any()):
        return Degraded(x, mask, torch.zeros_like(severity))
    length = max(x.shape[1], other.shape[1])
    chosen = swapped.view(-1, *[1] * (x.ndim - 1))
    x = torch.where(chosen, padded(other, length), padded(x, length))
    mask = torch.where(swapped[:, None], padded(other_mask, length), padded(mask, length))
    return Degraded(x, mask, swapped.to(severity.dtype))


def padded(x: Tensor, length: int) -> Tensor:
    """Pad (B, T, ...) with zeros at the end to (B, length, ...)."""
    return F.pad(x, (*[0] * (2 * (x.ndim - 2)), 0, length - x.shape[1]))


def paper_noise_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Return x + severity deviation eps, eps standard normal: the paper's noise, second-hand."""
    assert reference.deviation is not None
    batch, frames, columns = x.shape
    level = severity[:, None, None]
    eps = draws.normal(frames * columns).view(batch, frames, columns) * reference.deviation
    return Degraded(torch.where((level > 0) & mask[..., None], x + level * eps, x), mask, severity)


def paper_noise_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Replace each word piece by id 0 with probability severity; the mask stays as it was (the public code)."""
    valid = valid_tokens(x, mask, reference.special)
    gone = (draws.uniform(x.shape[1]) < severity[:, None]) & valid
    return Degraded(x.masked_fill(gone, _PAPER_WORD), mask, severity)


def additive_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Return x + severity 2 deviation eps, eps standard normal; the signal keeps its strength. Held out."""
    assert reference.deviation is not None
    batch, frames, columns = x.shape
    level = severity[:, None, None]
    eps = draws.normal(frames * columns).view(batch, frames, columns) * (2 * reference.deviation)
    return Degraded(torch.where((level > 0) & mask[..., None], x + level * eps, x), mask, severity)


def desync_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Shift the frames by severity x 1 s, late or early (drawn per clip), and fill with zeros. Held out.

    Valid frames are the first n of a clip, before and after. Frames shifted past either end are dropped.
    """
    assert reference.rate is not None
    count = mask.sum(1)
    shift = torch.minimum((severity * reference.rate).round().long(), count)
    late = draws.uniform(1)[:, 0] < 0.5
    position = torch.arange(x.shape[1], device=x.device)
    origin = position - torch.where(late, shift, -shift)[:, None]
    freed = mask & ((origin < 0) | (origin >= count[:, None]))
    origin = torch.where(mask, origin, position).clamp(0, x.shape[1] - 1)
    moved = x.gather(1, origin[..., None].expand(x.shape))
    return Degraded(moved.masked_fill(freed[..., None], 0.0), mask, _share(freed, mask))


FRAMES: dict[str, Degradation] = {
    "missing": missing_frames,
    "noise": noise_frames,
    "burst": burst_frames,
    "swap": swap,
    "additive": additive_frames,
    "desync": desync_frames,
    MISSING_FEATURES: missing_frames,
    PAPER_NOISE: paper_noise_frames,
}
TOKENS: dict[str, Degradation] = {
    "missing": missing_tokens,
    "noise": noise_tokens,
    "burst": burst_tokens,
    "swap": swap,
    PAPER_NOISE: paper_noise_tokens,
}
KINDS = (*FRAMES, COPY)


def trainable_kinds() -> tuple[str, ...]:
    """Return the kinds that params.yaml may name for training, selection, specialists and slices.

    Swaps have a key of their own, and held-out kinds are for the test split only.
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

    The dtype distinguishes token ids (int64) from frames (float). Token ids stay unchanged under a kind that is not in
    TOKENS. `draws(kind)` returns the random numbers of a kind's stream. A swap may increase T.
    """
    table = FRAMES if x.is_floating_point() else TOKENS
    undegraded, lost = x, torch.zeros_like(severity)
    for index, name in enumerate(KINDS):
        rows = ((kind == index) & (severity > 0)).nonzero()[:, 0]
        if name not in table or not len(rows):
            continue
        if name == "swap" or len(rows) == len(x):
            severity_of_kind = torch.where(kind == index, severity, torch.zeros_like(severity))
            result = table[name](x, mask, severity_of_kind, draws(name), reference)
            x, mask, lost = result.x, result.mask, torch.where(kind == index, result.lost, lost)
        else:  # drawing random numbers is most of the work, so draw only for these clips
            result = table[name](x[rows], mask[rows], severity[rows], draws(name).select(rows), reference)
            x = (x.clone() if x is undegraded else x).index_copy_(0, rows, result.x)
            lost = lost.index_copy(0, rows, result.lost)
    return Degraded(x, mask, lost)


@dataclass(frozen=True)
class State:
    """How each clip of a batch is degraded, each (B, M).

    kind int64 (-1 is clean), severity float32, and whether the loss of the whole modality is announced to the model by
    an empty mask. copy: the number of the clip's damaged copy for kind "copy", -1 for others; None: no clip has one.
    """

    kind: Tensor
    severity: Tensor
    announced: Tensor
    copy: Tensor | None = None

    def with_realised_swaps(self, lost: Tensor) -> "State":
        """Return a copy with the severity of a swap (its probability) replaced by its outcome `lost` (B, M), 0 or 1."""
        is_swap = self.kind == KINDS.index("swap")
        return replace(self, severity=torch.where(is_swap, lost.to(self.severity), self.severity))


def _wholly_missing(kind: Tensor, severity: Tensor) -> Tensor:
    """Return which modalities are wholly missing, (B, M) bool."""
    return ((kind == KINDS.index("missing")) | (kind == KINDS.index(MISSING_FEATURES))) & (severity >= 1)


def fixed_state(kinds: tuple[str, ...], severities: tuple[float, ...], batch: int, *, announced: bool = False) -> State:
    """Return the same degradation for every clip; kind "clean" or severity 0 leaves a modality unchanged.

    With `announced`, modalities that are wholly missing are announced to the model.
    """
    kind_indices = [KINDS.index(k) if k in KINDS and s > 0 else -1 for k, s in zip(kinds, severities, strict=True)]
    kind, severity = torch.tensor(kind_indices).expand(batch, -1), torch.tensor(severities).expand(batch, -1)
    return State(kind, severity, _wholly_missing(kind, severity) & announced)


def drawn_state(
    seed: int,
    clips: Tensor,
    number: int | Tensor,
    clean_share: float = 0.0,
    shared_draw_share: float = 0.0,
    full_severity_share: float = 0.0,
    mask_revealed_share: float = 0.0,
    kinds: tuple[str, ...] = DRAWN,
    signal_share: float = 0.0,
    copies: tuple[int, ...] = (0, 0, 0),
) -> State:
    """Draw a kind and a severity ~ U(0, 1) for each clip and modality; `clean_share` of the draws stays clean.

    `shared_draw_share` of the clips draws once for all modalities. `full_severity_share` of the severities is 1:
    clips that lose everything would otherwise be rare. `mask_revealed_share` of the wholly missing modalities is
    announced. `signal_share` of the damaged draws take one of the clip's damaged copies, of which each modality has as
    many as `copies` says; its severity is 0 here, because `apply` reads it with the copy.
    """
    uniform = {m: Draws(seed, clips, m, "state", number).uniform(5) for m in MODALITIES}
    shared = uniform[MODALITIES[0]][:, 3:4] < shared_draw_share
    kind_indices = torch.tensor([KINDS.index(kind) for kind in kinds], device=clips.device)
    # A tensor, because a GPU divides by a Python number with another rounding.
    partial_share = torch.tensor(1 - full_severity_share, device=clips.device)
    states = []
    for modality in MODALITIES:
        u = torch.where(shared, uniform[MODALITIES[0]], uniform[modality])
        clean = u[:, 0] < clean_share
        kind = kind_indices[(u[:, 1] * len(kinds)).long().clamp(max=len(kinds) - 1)]
        severity = (u[:, 2] / partial_share).clamp(max=1.0)
        kind, severity = torch.where(clean, -1, kind), torch.where(clean, 0.0, severity)
        announced = _wholly_missing(kind, severity) & (u[:, 4] < mask_revealed_share)
        count = copies[MODALITIES.index(modality)]
        copy = torch.full_like(kind, -1)
        if signal_share and count:
            taken, which = Draws(seed, clips, modality, COPY, number).uniform(2).unbind(1)
            copied = ~clean & (taken < signal_share)
            copy = torch.where(copied, (which * count).long().clamp(max=count - 1), copy)
            kind, severity = torch.where(copied, KINDS.index(COPY), kind), torch.where(copied, 0.0, severity)
            announced &= ~copied
        states.append((kind, severity, announced, copy))
    return State(*(torch.stack(part, 1) for part in zip(*states, strict=True)))


def copied_state(number: int, copies: tuple[int, ...], batch: int) -> State:
    """Return the state of clips whose modalities are those of their copy `number`, where they have copies."""
    has = torch.tensor([count > 0 for count in copies])
    kind = torch.where(has, KINDS.index(COPY), -1).expand(batch, -1)
    nothing = torch.zeros(batch, len(copies))
    return State(kind, nothing, nothing.bool(), torch.where(has, number, -1).expand(batch, -1))
