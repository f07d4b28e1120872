"""What a speech recogniser says about its own words: how sure it is of right and of wrong ones.

A recognised word comes with a confidence, and a typed one counts as 1. Words that training damages get the confidence
of wrong words, so that trust in text learns to follow it. `python -m scripts.word_confidences` measured the
distributions; that training draws from them is our decision.
"""

import torch
from torch import Tensor

from qamoe.rng import Draws

STREAM = "confidence"
# Quantiles of the confidence of right and of wrong words, at equal steps from 0 to 1.
RIGHT = (
    0.019,
    0.194,
    0.285,
    0.359,
    0.410,
    0.491,
    0.535,
    0.584,
    0.636,
    0.667,
    0.706,
    0.734,
    0.761,
    0.790,
    0.813,
    0.831,
    0.848,
    0.869,
    0.885,
    0.904,
    0.918,
    0.932,
    0.944,
    0.955,
    0.963,
    0.970,
    0.975,
    0.981,
    0.986,
    0.990,
    0.993,
    0.996,
    0.999,
)
WRONG = (
    0.007,
    0.094,
    0.125,
    0.154,
    0.183,
    0.218,
    0.249,
    0.271,
    0.301,
    0.328,
    0.353,
    0.383,
    0.407,
    0.433,
    0.466,
    0.499,
    0.522,
    0.548,
    0.570,
    0.597,
    0.626,
    0.651,
    0.679,
    0.718,
    0.741,
    0.773,
    0.809,
    0.842,
    0.877,
    0.909,
    0.938,
    0.971,
    0.997,
)


def simulated(confidence: Tensor, damaged: Tensor, words: Tensor, share: float, draws: Draws) -> Tensor:
    """Return the confidence (B, T) that clips would have if a recogniser had heard their words; inputs do not change.

    `share` of the clips is drawn as recognised; the others were typed and keep their `confidence` (B, T), and so do
    words of a recognised clip that are not `damaged` (B, T) and have one below 1 already. `words` (B, T) excludes
    padding and special tokens, which keep theirs.
    """
    numbers = draws.uniform(1 + confidence.shape[1])
    right, wrong = (torch.tensor(table, device=confidence.device) for table in (RIGHT, WRONG))
    drawn = torch.where(damaged, _at(wrong, numbers[:, 1:]), _at(right, numbers[:, 1:]))
    recognised = (numbers[:, :1] < share) | (words & (confidence < 1)).any(1, keepdim=True)
    return torch.where(recognised & words & (damaged | (confidence == 1)), drawn, confidence)


def _at(table: Tensor, share: Tensor) -> Tensor:
    """Return the quantiles at these shares in [0, 1), linear between the entries of the table."""
    place = share * (len(table) - 1)
    below = place.long()
    return table[below] + (place - below) * (table[below + 1] - table[below])
