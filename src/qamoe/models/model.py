"""What every model is: encoders, and a fusion of their vectors that can be called by itself."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from qamoe.config import block
from qamoe.data.batch import Batch
from qamoe.models.encoders import ModalityEncoders
from qamoe.models.heads import Prediction
from qamoe.models.training_step import Step


class Model(nn.Module, ABC):
    """A clip's vectors under one degradation serve every cell that holds it, so encoding and fusing are two steps.

    Shapes: B batch, M modalities that the model reads, D width.
    """

    Block: ClassVar[type[block.Block]]  # of params.yaml
    encode: ModalityEncoders

    @abstractmethod
    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        """Vectors -> a Prediction, with losses where a target (B,) is given. `quality` (B, M) overrides r.

        Without a `step`, what is drawn comes from torch's own stream.
        """

    def forward(self, batch: Batch, quality: Tensor | None = None, step: Step | None = None) -> Prediction:
        """Predict a batch, with losses where it has targets."""
        return self.fuse(self.encode(batch), batch.target, quality, step)
