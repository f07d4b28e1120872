"""Degradations of feature sequences and of token ids: pure functions of (x, mask, severity, draws, reference).

A degradation returns new frames and which of them were lost; the input is never changed, and severity 0
gives it back bit for bit. A new one is one function and one line in FRAMES or TOKENS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qamoe.degradation.draws import MODALITIES, Draws


@dataclass(frozen=True)
class Reference:
    """What a kind needs beside the clip, from the training split alone.

    Frames: `mean` and `deviation` (D,). Tokens: `frequencies` (V,) cumulative shares of token ids, `unk` and the
    `special` ids that are never touched nor counted.
    """

    mean: Tensor | None = None
    deviation: Tensor | None = None
    frequencies: Tensor | None = None
    unk: int = 0
    special: tuple[int, ...] = ()


@dataclass(frozen=True)
class Degraded:
    """Frames (B, T, D) or ids (B, T), and the share of valid frames that was lost (B,); noise: lambda."""

    x: Tensor
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
    return Degraded(x.masked_fill(gone[..., None], 0.0), _share(gone, mask))


def missing_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Each word piece becomes [UNK] independently with probability severity. x (B, T) int64, severity (B,)."""
    valid = valid_tokens(x, mask, reference.special)
    gone = (draws.uniform(x.shape[1]) < severity[:, None]) & valid
    return Degraded(x.masked_fill(gone, reference.unk), _share(gone, valid))


def noise_frames(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """(1 - severity) x + severity eps, eps Gaussian with the training mean and deviation of each column."""
    assert reference.mean is not None
    assert reference.deviation is not None
    batch, frames, columns = x.shape
    level = severity[:, None, None]
    eps = draws.normal(frames * columns).view(batch, frames, columns) * reference.deviation + reference.mean
    # Adding 0 * eps would turn -0.0 into 0.0, so untouched frames are chosen, not computed.
    touched = (level > 0) & mask[..., None]
    return Degraded(torch.where(touched, (1 - level) * x + level * eps, x), severity)


def noise_tokens(x: Tensor, mask: Tensor, severity: Tensor, draws: Draws, reference: Reference) -> Degraded:
    """Each word piece is replaced, with probability severity, by one drawn from the training frequencies."""
    assert reference.frequencies is not None
    valid = valid_tokens(x, mask, reference.special)
    numbers = draws.uniform(2 * x.shape[1]).view(x.shape[0], x.shape[1], 2)
    gone = (numbers[..., 0] < severity[:, None]) & valid
    other = torch.searchsorted(reference.frequencies, numbers[..., 1].contiguous(), right=True)
    return Degraded(torch.where(gone, other.clamp(max=len(reference.frequencies) - 1), x), severity)


FRAMES: dict[str, Degradation] = {"missing": missing_frames, "noise": noise_frames}
TOKENS: dict[str, Degradation] = {"missing": missing_tokens, "noise": noise_tokens}
KINDS = tuple(FRAMES)


def degrade(
    x: Tensor,
    mask: Tensor,
    kind: Tensor,
    severity: Tensor,
    draws: Callable[[str], Draws],
    reference: Reference,
) -> Degraded:
    """Apply to each clip its own kind (B,) int64 (index into KINDS, -1 for none) at its own severity (B,).

    Tokens and frames are told apart by dtype. `draws(kind)` gives the random numbers of a kind's stream.
    """
    table = FRAMES if x.is_floating_point() else TOKENS
    lost = torch.zeros_like(severity)
    for index, name in enumerate(KINDS):
        here = torch.where(kind == index, severity, torch.zeros_like(severity))
        if bool((here > 0).any()):
            result = table[name](x, mask, here, draws(name), reference)
            x, lost = result.x, torch.where(kind == index, result.lost, lost)
    return Degraded(x, lost)


@dataclass(frozen=True)
class State:
    """How each clip of a batch is degraded: kind (B, M) int64 (-1 clean) and severity (B, M) float32."""

    kind: Tensor
    severity: Tensor


def fixed_state(kinds: tuple[str, ...], severities: tuple[float, ...], batch: int) -> State:
    """The same degradation for every clip; kind "clean" or severity 0 leaves a modality alone."""
    kind = [KINDS.index(k) if k in KINDS and s > 0 else -1 for k, s in zip(kinds, severities, strict=True)]
    return State(torch.tensor(kind).expand(batch, -1), torch.tensor(severities).expand(batch, -1))


def drawn_state(
    seed: int,
    clips: Tensor,
    number: int | Tensor,
    clean_share: float = 0.0,
    alike_share: float = 0.0,
    whole_share: float = 0.0,
) -> State:
    """Each clip and modality draws its own kind and severity ~ U(0, 1); a share of the draws stays clean.

    A share of the clips draws once for all its modalities, and a share of the severities is 1, so that a clip that
    lost everything is not a rarity.
    """
    kinds, severities = [], []
    own = {m: Draws(seed, clips, m, "state", number).uniform(4) for m in MODALITIES}
    alike = own[MODALITIES[0]][:, 3:] < alike_share
    for modality in MODALITIES:
        u = torch.where(alike, own[MODALITIES[0]], own[modality])
        clean = u[:, 0] < clean_share
        kind = (u[:, 1] * len(KINDS)).long().clamp(max=len(KINDS) - 1)
        kinds.append(torch.where(clean, -1, kind))
        severity = (u[:, 2] / (1 - whole_share)).clamp(max=1.0)
        severities.append(torch.where(clean, 0.0, severity))
    return State(torch.stack(kinds, 1), torch.stack(severities, 1))
