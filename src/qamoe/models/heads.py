"""What a model returns, the head that all models share, and what a task makes of its outputs: numbers, or classes.

The task lives here. A model asks its target how many outputs there are, what knowing nothing is, and for a Prediction;
it never asks which task it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config.task import is_classification
from qamoe.models.checkpoint_config import CheckpointConfig, UntrainedConfig
from qamoe.models.training_step import Step

_LOG_VARIANCE = 5.0
_SAMPLES = 8  # of perturbed logits
LEAST_SHARE = 1e-4  # of a class; one that training lacks is unlikely, not impossible
_SPREAD = 2.0  # deviation over classes of a probe's logits


@dataclass(frozen=True)
class Prediction:
    """Per clip: in a regression task value and variance (B,) in label units, of classes probabilities (B, C).

    `losses` are unweighted scalars by name. Where a model has them: reliability r (B, M), fusion weights (B, M),
    routing weights (B, M + 1 or 1, E).
    """

    value: Tensor | None = None
    variance: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    r: Tensor | None = None
    fusion: Tensor | None = None
    routing: Tensor | None = None
    probabilities: Tensor | None = None


def prediction_columns(prediction: Prediction, config: CheckpointConfig, trust: Tensor | None) -> dict[str, Tensor]:
    """What a model says of B clips by the names of columns, (B,) each, as it comes from the model of this model.json.

    score and variance, or p_<class>; where the model has them r_<modality>, trust_<modality> (`trust` (B, M)) and
    routing, the mean share of each expert (B, E).
    """
    columns = {}
    if prediction.probabilities is not None:
        columns = {f"p_{name}": prediction.probabilities[:, i] for i, name in enumerate(config["task"]["classes"])}
    elif prediction.value is not None and prediction.variance is not None:
        columns = {"score": prediction.value, "variance": prediction.variance}
    for name, values in (("r", prediction.r), ("trust", trust)):
        if values is not None:
            columns |= {f"{name}_{m}": values[:, place] for place, m in enumerate(config["modalities"])}
    if prediction.routing is not None:
        columns["routing"] = prediction.routing.mean(1)
    return columns


class Target(nn.Module):
    """Standardises targets inside a model; predictions leave it in label units."""

    outputs = 1  # of a head, beside its log variance
    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def standard(self, target: Tensor) -> Tensor:
        return (target - self.mean) / self.deviation

    def nothing(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The guess and log variance, each (B,), of who knows the training targets and nothing of the clip."""
        nothing = torch.zeros(clips, device=device)
        return nothing, nothing

    def probe_loss(self, guess: Tensor, log_variance: Tensor, standard: Tensor, step: Step | None = None) -> Tensor:
        """What teaches a modality's variance: guesses and log variances (B, M) of standardised targets (B,)."""
        return gaussian_nll(guess, log_variance, standard[:, None].expand_as(guess))

    def prediction(
        self, guess: Tensor, log_variance: Tensor, target: Tensor | None, step: Step | None = None, **rest: Any
    ) -> Prediction:
        """A Prediction from standardised outputs (B,), with the losses of the head where a target is given.

        Our decision: the value is fitted by absolute error; the variance by the Gaussian likelihood of that value,
        without a gradient into it, so that clips declared uncertain still teach the value.
        """
        losses = {}
        if target is not None:
            y = self.standard(target)
            losses["task"] = (guess - y).abs().mean()
            losses["variance"] = gaussian_nll(guess.detach(), log_variance, y)
        variance = log_variance.exp() * self.deviation**2
        return Prediction(guess * self.deviation + self.mean, variance, losses, **rest)


class Classes(nn.Module):
    """Makes class probabilities of guesses (B, C): logits beside the log of each class's share of the training clips.

    So a guess of 0 is the training frequencies, as it is the training mean in a regression task: our decision.
    """

    log_shares: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        self.outputs = len(shares)
        self.register_buffer("log_shares", torch.tensor(shares).clamp(min=LEAST_SHARE).log())

    def standard(self, target: Tensor) -> Tensor:
        return target.long()

    def nothing(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Likewise, the guess being (B, C); the training frequencies are nothing to be in doubt of."""
        return torch.zeros(clips, self.outputs, device=device), torch.full((clips,), -math.inf, device=device)

    def probe_loss(self, guess: Tensor, log_variance: Tensor, standard: Tensor, step: Step | None = None) -> Tensor:
        """What teaches a modality's variance: guesses (B, M, C), log variances (B, M), class numbers (B,).

        The perturbed cross-entropy of guesses that are brought to one spread over classes. Our decision: a probe that
        could make its logits small would say so what it does not know, and its variance would say nothing. Of two
        classes one spread would leave a sign alone, so there the guesses stay as they are.
        """
        if self.outputs > 2:
            guess = _SPREAD * F.layer_norm(guess, (self.outputs,))
        target_BM = standard[:, None].expand(guess.shape[:2])
        return perturbed_cross_entropy(guess + self.log_shares, log_variance, target_BM, _noise("probe", guess, step))

    def prediction(
        self, guess: Tensor, log_variance: Tensor, target: Tensor | None, step: Step | None = None, **rest: Any
    ) -> Prediction:
        """A Prediction from guesses (B, C) and log variances (B,), with the loss of the head where a target is given.

        Probabilities are those expected of the perturbed logits, by the probit approximation (MacKay 1992), which is
        nearly exact for two classes: nothing is drawn in evaluation.
        """
        logits = guess + self.log_shares
        losses = {}
        if target is not None:
            noise = _noise("task", logits, step)
            losses["task"] = perturbed_cross_entropy(logits, log_variance, self.standard(target), noise)
        shrunk = logits / (1 + math.pi / 4 * log_variance.exp())[:, None].sqrt()
        return Prediction(losses=losses, probabilities=shrunk.softmax(-1), **rest)


Targets = Target | Classes


def target_of(config: UntrainedConfig) -> Targets:
    """The target that a model.json describes."""
    if is_classification(config["task"]):
        return Classes(config["class_shares"])
    return Target(config["target_mean"], config["target_std"])


def gaussian_nll(value: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Mean heteroscedastic negative log-likelihood, without its constant (Kendall & Gal 2017, equation 5)."""
    return 0.5 * (log_variance + (value - target) ** 2 * (-log_variance).exp()).mean()


def _noise(stream: str, logits: Tensor, step: Step | None) -> Tensor | None:
    """What perturbs logits (B, ..., C) in a training step: (samples, B, ..., C)."""
    return None if step is None else step.normal(stream, _SAMPLES, *logits.shape[1:]).transpose(0, 1)


def perturbed_cross_entropy(
    logits: Tensor, log_variance: Tensor, target: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Mean of -log of the mean softmax of logits (..., C) with Gaussian noise (Kendall & Gal 2017, equation 12).

    log_variance and target (class numbers) are (...): the noise has one variance for all logits of a clip. `noise`
    (samples, ..., C) is standard normal, by default drawn from torch's own stream.
    """
    if noise is None:
        noise = torch.randn(_SAMPLES, *logits.shape, device=logits.device)
    drawn = logits + (log_variance / 2).exp()[..., None] * noise
    of_target = drawn.log_softmax(-1).gather(-1, target.expand(_SAMPLES, *target.shape)[..., None])
    return (math.log(_SAMPLES) - of_target.logsumexp(0)).mean()


class Head(nn.Module):
    """A fused vector (B, D) -> a guess, (B,) or (B, outputs) where there are several, and its log variance (B,)."""

    def __init__(self, width: int, dropout: float, outputs: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, outputs + 1)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        *guesses, log_variance = self.out(self.body(fused)).unbind(-1)
        guess = guesses[0] if len(guesses) == 1 else torch.stack(guesses, -1)
        return guess, _LOG_VARIANCE * F.softsign(log_variance / _LOG_VARIANCE)
