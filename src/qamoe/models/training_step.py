"""What a training step gives to a model beside its clips."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qamoe.rng import Draws


@dataclass(frozen=True)
class Step:
    """Random numbers by clip, and sums over the whole batch, so that a batch in parts has the losses of the whole.

    A batch may be spread over processes or computed one part after the other. What a model draws is a function of
    seed, epoch and clip, and not of the place in a stream; what it counts goes through `summed`, which takes the sum
    over one part (any shape) and gives that over all parts. `keys` (B, 2) are those of the part's clips, `severity`
    (B, M) is what was injected into each modality that the model has, 0 where it is clean.
    """

    seed: int
    epoch: int
    keys: Tensor
    summed: Callable[[Tensor], Tensor]
    severity: Tensor

    def normal(self, stream: str, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal; `stream` is one of rng.TRAINING_STREAMS."""
        drawn = Draws(self.seed, self.keys, None, stream, self.epoch).normal(math.prod(shape))
        return drawn.view(len(self.keys), *shape)
