"""The base class of all models: encoders, and a fusion of their vectors that can be called separately."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from qamoe.config import block
from qamoe.data.batch import Batch
from qamoe.models.encoders import ModalityEncoders
from qamoe.models.heads import Prediction
from qamoe.models.training_step import Step


class Model(nn.Module, ABC):
    """A model that encodes and fuses in two steps: several cells can then share a clip's encoded vectors.

    Shapes: B batch, M modalities that the model reads, D width.
    """

    Block: ClassVar[type[block.Block]]  # the class of its params.yaml block
    estimates_reliability: ClassVar[bool] = False  # whether its predictions have r
    loss_weights: Mapping[str, float] = MappingProxyType({})  # of losses with a weight other than train.common.loss has
    encode: ModalityEncoders

    @abstractmethod
    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        """Predict from vectors, with losses if a target (B,) is given. `quality` (B, M) overrides r.

        Without a `step`, random numbers come from torch's global generator.
        """

    def forward(self, batch: Batch, quality: Tensor | None = None, step: Step | None = None) -> Prediction:
        """Predict a batch, with losses if it has targets."""
        return self.fuse(self.encode(batch), batch.target, quality, step)
