"""The paper's spectrum: noise of strength lambda in every modality, and whole modalities lost with probability eta.

Zhu et al., arXiv 2604.05704; the full text could not be obtained. D is a machine-made digest of it, R is how a third
party drives the public code: u' = (1 - I) (u + lambda deviation eps), I ~ Bernoulli(eta) (D); words become id 0 with
probability lambda (R). docs/how/method.md, section 12, compares the two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qamoe.degradation.features import KINDS, PAPER_NOISE, State
from qamoe.rng import MODALITIES, Draws

# Modalities that R drops together; one of these subsets is drawn.
_SUBSETS = (("vision",), ("text",), ("audio",), ("text", "vision"), ("audio", "vision"), ("text", "audio"))
Range = tuple[float, float]


@dataclass(frozen=True)
class Spectrum:
    """The ranges that lambda (`noise`) and eta (`missing`) are drawn from, evenly; equal ends fix them.

    `dropped`: `each` modality is lost by itself with probability eta (D), or one `subset` of the modalities is (R).
    """

    noise: Range
    missing: Range
    dropped: str = "each"


def spectrum_states(
    spectrum: Spectrum, seed: int, clips: Tensor, number: int, sharing: Tensor, revealed_share: float
) -> list[State]:
    """Return the two steps, noise and then missing, of each clip (B, 2 are the keys of `clips` and `sharing`).

    Clips with the same key in `sharing` have the same lambda and eta. `revealed_share` of the lost modalities is
    announced to the model by an empty mask. With the same draws, a larger eta loses all that a smaller one loses.
    """
    uniform = Draws(seed, sharing, MODALITIES[0], "spectrum", number).uniform(2)
    level, rate = (
        low + (high - low) * uniform[:, i] for i, (low, high) in enumerate((spectrum.noise, spectrum.missing))
    )
    drawn = {m: Draws(seed, clips, m, "dropped", number).uniform(3) for m in MODALITIES}
    if spectrum.dropped == "each":
        lost = torch.stack([drawn[m][:, 0] < rate for m in MODALITIES], 1)
    else:
        one = drawn[MODALITIES[0]]
        members = torch.tensor([[m in subset for m in MODALITIES] for subset in _SUBSETS], device=clips.device)
        lost = members[(one[:, 2] * len(_SUBSETS)).long()] & (one[:, 0] < rate)[:, None]
    revealed = torch.stack([drawn[m][:, 1] < revealed_share for m in MODALITIES], 1)
    severity = torch.where(lost, 0.0, level[:, None])  # what is lost has no noise
    noise, missing = KINDS.index(PAPER_NOISE), KINDS.index("missing")
    return [
        State(torch.where(severity > 0, noise, -1), severity, torch.zeros_like(lost)),
        State(torch.where(lost, missing, -1), lost.to(severity.dtype), lost & revealed),
    ]


def batch_keys(seed: int, clips: Tensor, number: int, size: int) -> Tensor:
    """Deal the clips of a split into batches of `size` and return, for each clip, a key (N, 2) that its batch shares.

    The batches depend on seed, number and the clips' keys alone, not on their order.
    """
    place = Draws(seed, clips, MODALITIES[0], "batch", number).words(1)[:, 0]
    batch = torch.empty_like(place)
    batch[place.argsort(stable=True)] = torch.arange(len(clips)) // size
    return torch.stack((batch, torch.zeros_like(batch)), 1)
