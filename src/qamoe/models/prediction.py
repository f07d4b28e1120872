"""What a model returns, the head that all models share, and the loss of that head."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LOG_VARIANCE = 5.0


@dataclass(frozen=True)
class Prediction:
    """Per clip, in label units: value (B,) and variance (B,). `losses` are unweighted scalars by name.

    Where a model has them: reliability r (B, M), fusion weights (B, M), routing weights (B, M or 1, E), and in
    classification probabilities (B, C).
    """

    value: Tensor
    variance: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    r: Tensor | None = None
    fusion: Tensor | None = None
    routing: Tensor | None = None
    probabilities: Tensor | None = None


class Target(nn.Module):
    """Standardises targets inside a model; predictions leave it in label units."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def standard(self, target: Tensor) -> Tensor:
        return (target - self.mean) / self.deviation

    def prediction(self, value: Tensor, log_variance: Tensor, target: Tensor | None, **rest: Any) -> Prediction:
        """A Prediction from standardised outputs (B,), with the losses of the head where a target is given.

        Our decision: the value is fitted by absolute error; the variance by the Gaussian likelihood of that value,
        without a gradient into it, so that clips declared uncertain still teach the value.
        """
        losses = {}
        if target is not None:
            y = self.standard(target)
            losses["task"] = (value - y).abs().mean()
            losses["variance"] = gaussian_nll(value.detach(), log_variance, y)
        variance = log_variance.exp() * self.deviation**2
        return Prediction(value * self.deviation + self.mean, variance, losses, **rest)


def gaussian_nll(value: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Mean heteroscedastic negative log-likelihood, without its constant (Kendall & Gal 2017, equation 5)."""
    return 0.5 * (log_variance + (value - target) ** 2 * (-log_variance).exp()).mean()


class Head(nn.Module):
    """A fused vector (B, D) -> standardised value and its log variance, each (B,)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, 2)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        value, log_variance = self.out(self.body(fused)).unbind(-1)
        return value, _LOG_VARIANCE * F.softsign(log_variance / _LOG_VARIANCE)
