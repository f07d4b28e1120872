"""The random numbers, sums and severities that a training step passes to a model in addition to its clips."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qamoe.rng import Draws


@dataclass(frozen=True)
class Step:
    """Random numbers per clip, and sums over the whole batch: a batch computed in parts has the losses of the whole.

    Parts run on several processes or one after another. A model's random numbers depend only on seed, epoch and clip.
    `summed` takes a sum over one part (any shape) and returns the sum over all parts. `keys` (B, 2) are the keys of the
    part's clips; `severity` (B, M) is the severity injected into each modality that the model has, 0 if clean.
    """

    seed: int
    epoch: int
    keys: Tensor
    summed: Callable[[Tensor], Tensor]
    severity: Tensor

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Draw standard normal numbers, (B, *shape) float32; `stream` is one of rng.TRAINING_STREAMS."""
        drawn = Draws(self.seed, self.keys, None, stream, self.epoch).normal(math.prod(shape))
        return drawn.view(len(self.keys), *shape)
