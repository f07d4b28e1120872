"""What a speech recogniser says about its own words: how sure it is of right and of wrong ones.

A recognised word comes with a confidence, and a typed one counts as 1. Words that training damages get the confidence
of wrong words, so that trust in text learns to follow it. The distributions are those that `benchmarks/confidence.py`
measured; that training draws from them is our decision.
"""

import torch
from torch import Tensor

from qamoe.rng import Draws

STREAM = "confidence"
# Quantiles of the confidence of right and of wrong words, at equal steps from 0 to 1.
RIGHT = (0.05, 0.55, 0.7, 0.8, 0.86, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 1.0)
WRONG = (0.01, 0.08, 0.13, 0.18, 0.23, 0.28, 0.33, 0.38, 0.43, 0.49, 0.55, 0.61, 0.67, 0.74, 0.82, 0.9, 0.99)


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
