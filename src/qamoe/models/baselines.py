"""Controls: trained by the same function, with the same encoders, data and augmentation as QA-MoE."""

import torch
from torch import Tensor, nn

from qamoe.features.batch import Batch
from qamoe.models.encoders import ModalityEncoders
from qamoe.models.prediction import Head, Prediction, Target
from qamoe.params import Concat as ConcatBlock
from qamoe.params import Encoders
from qamoe.params import Mean as MeanBlock


class Mean(nn.Module):
    """Predicts the training mean and the training variance, whatever it is given."""

    def __init__(self, features: dict[str, int], sizes: Encoders, block: MeanBlock, target: Target) -> None:
        super().__init__()
        self.target: Target = target

    def forward(self, batch: Batch, quality: Tensor | None = None) -> Prediction:
        nothing = torch.zeros(len(batch), device=batch.keys.device)
        return self.target.prediction(nothing, nothing, batch.target)


class Concat(nn.Module):
    """Plain concatenation of the modality vectors and one hidden layer."""

    def __init__(self, features: dict[str, int], sizes: Encoders, block: ConcatBlock, target: Target) -> None:
        super().__init__()
        self.target: Target = target
        self.encode = ModalityEncoders(features, sizes)
        self.mix = nn.Sequential(nn.Linear(sizes.width * len(features), block.hidden), nn.GELU())
        self.head = Head(block.hidden, sizes.dropout)

    def forward(self, batch: Batch, quality: Tensor | None = None) -> Prediction:
        value, log_variance = self.head(self.mix(self.encode(batch).flatten(1)))
        return self.target.prediction(value, log_variance, batch.target)
