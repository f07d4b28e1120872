"""Predictions, the head that all models share, and the targets: regression (Target), classification (Classes) and
multilabel (Labels).

Only this module depends on the task. A model gets the number of outputs, an uninformed guess and a Prediction from its
target, and never checks which task it has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config.task import is_classification, is_multilabel
from qamoe.models.checkpoint_config import CheckpointConfig, UntrainedConfig
from qamoe.models.training_step import Step

_LOG_VARIANCE = 5.0
_SAMPLES = 8  # of perturbed logits per clip
LEAST_SHARE = 1e-4  # of a class: one that training lacks is unlikely, not impossible
_SPREAD = 2.0  # standard deviation over classes of a probe's logits


@dataclass(frozen=True)
class Prediction:
    """Predictions per clip: value and variance (B,) in label units (regression), probabilities of classes (B, C), or
    presence (B, C): the probability of each label of a multilabel task.

    `losses` are unweighted scalars by name. Some models also have reliability r (B, M), fusion weights (B, M) and
    routing weights (B, M + 1, M or 1, E).
    """

    value: Tensor | None = None
    variance: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    r: Tensor | None = None
    fusion: Tensor | None = None
    routing: Tensor | None = None
    probabilities: Tensor | None = None
    presence: Tensor | None = None


def prediction_columns(prediction: Prediction, config: CheckpointConfig, trust: Tensor | None) -> dict[str, Tensor]:
    """Return the columns, (B,) each, of a prediction by the model that `config` describes, uncalibrated.

    The columns are score and variance, p_<class>, or has_<label>; and, if the model has them, r_<modality>,
    trust_<modality> (from `trust` (B, M)) and routing, the mean share of each expert (B, E).
    """
    columns = {}
    if prediction.probabilities is not None:
        columns = {f"p_{name}": prediction.probabilities[:, i] for i, name in enumerate(config["task"]["classes"])}
    elif prediction.presence is not None:
        columns = {f"has_{name}": prediction.presence[:, i] for i, name in enumerate(config["task"]["classes"])}
    elif prediction.value is not None and prediction.variance is not None:
        columns = {"score": prediction.value, "variance": prediction.variance}
    for name, values in (("r", prediction.r), ("trust", trust)):
        if values is not None:
            columns |= {f"{name}_{m}": values[:, index] for index, m in enumerate(config["modalities"])}
    if prediction.routing is not None:
        columns["routing"] = prediction.routing.mean(1)
    return columns


class Target(nn.Module):
    """The target of a regression task: standardised inside a model; predictions are in label units."""

    outputs = 1  # of a head, in addition to its log variance
    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def standard(self, target: Tensor) -> Tensor:
        return (target - self.mean) / self.deviation

    def uninformed(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the uninformed guess and log variance, each (B,): the training mean and variance."""
        zeros = torch.zeros(clips, device=device)
        return zeros, zeros

    def probe_loss(self, guess: Tensor, log_variance: Tensor, standard: Tensor, step: Step | None = None) -> Tensor:
        """Return the loss that teaches the variances, from guesses and log variances (B, M) and targets (B,)."""
        return gaussian_nll(guess, log_variance, standard[:, None].expand_as(guess))

    def likelihood(self, guess: Tensor, log_variance: Tensor, target: Tensor, step: Step | None = None) -> Tensor:
        """Return the loss that teaches value and variance together, from standardised outputs (B,)."""
        return gaussian_nll(guess, log_variance, self.standard(target))

    def prediction(
        self, guess: Tensor, log_variance: Tensor, target: Tensor | None, step: Step | None = None, **rest: Any
    ) -> Prediction:
        """Return a Prediction from standardised outputs (B,), with the losses of the head if a target is given.

        Our decision: the value is fitted by absolute error, and the variance by the Gaussian likelihood of that value,
        without a gradient into the value. Clips with a large variance therefore still teach the value.
        """
        losses = {}
        if target is not None:
            y = self.standard(target)
            losses["task"] = (guess - y).abs().mean()
            losses["variance"] = gaussian_nll(guess.detach(), log_variance, y)
        variance = log_variance.exp() * self.deviation**2
        return Prediction(guess * self.deviation + self.mean, variance, losses, **rest)


class Classes(nn.Module):
    """The target of a classification task. Logits are guesses (B, C) plus the log of each class's training share.

    A guess of 0 therefore gives the training frequencies, as it gives the training mean in regression: our decision.
    """

    log_shares: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        self.outputs = len(shares)
        self.register_buffer("log_shares", torch.tensor(shares).clamp(min=LEAST_SHARE).log())

    def standard(self, target: Tensor) -> Tensor:
        return target.long()

    def uninformed(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the uninformed guess (B, C), the training frequencies, and its log variance (B,), which is -inf."""
        return torch.zeros(clips, self.outputs, device=device), torch.full((clips,), -math.inf, device=device)

    def probe_loss(self, guess: Tensor, log_variance: Tensor, standard: Tensor, step: Step | None = None) -> Tensor:
        """Return the loss that teaches a modality's variance.

        Takes guesses (B, M, C), log variances (B, M) and class numbers (B,). The loss is the perturbed cross-entropy of
        guesses normalised to one spread over classes. Our decision: a probe could otherwise express uncertainty by
        small logits, and its variance would learn nothing. Normalising two classes would leave only the sign, so two
        classes are not normalised.
        """
        if self.outputs > 2:
            guess = _SPREAD * F.layer_norm(guess, (self.outputs,))
        target_BM = standard[:, None].expand(guess.shape[:2])
        return perturbed_cross_entropy(guess + self.log_shares, log_variance, target_BM, _noise("probe", guess, step))

    def likelihood(self, guess: Tensor, log_variance: Tensor, target: Tensor, step: Step | None = None) -> Tensor:
        """Return the loss that teaches logits and variance together, from guesses (B, C) and log variances (B,)."""
        logits = guess + self.log_shares
        return perturbed_cross_entropy(logits, log_variance, self.standard(target), _noise("task", logits, step))

    def prediction(
        self, guess: Tensor, log_variance: Tensor, target: Tensor | None, step: Step | None = None, **rest: Any
    ) -> Prediction:
        """Return a Prediction from guesses (B, C) and log variances (B,), with the head's loss if a target is given.

        Probabilities are the expectation over perturbed logits by the probit approximation (MacKay 1992), which is
        nearly exact for two classes. Evaluation draws no random numbers.
        """
        logits = guess + self.log_shares
        losses = {}
        if target is not None:
            losses["task"] = self.likelihood(guess, log_variance, target, step)
        shrunk = logits / (1 + math.pi / 4 * log_variance.exp())[:, None].sqrt()
        return Prediction(losses=losses, probabilities=shrunk.softmax(-1), **rest)


class Labels(nn.Module):
    """The target of a multilabel task: a logit for each label, guesses (B, C) plus the log odds of its training share.

    Labels are independent given the clip: our decision, and that of the field (binary cross-entropy for each label).
    """

    log_odds: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        self.outputs = len(shares)
        self.register_buffer("log_odds", torch.tensor(shares).clamp(LEAST_SHARE, 1 - LEAST_SHARE).logit())

    def standard(self, target: Tensor) -> Tensor:
        """Return which labels a clip has, (B, C) of 0 and 1, from their numbers (B,)."""
        return (target.long()[:, None] >> torch.arange(self.outputs, device=target.device) & 1).float()

    def uninformed(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the uninformed guess (B, C), the training shares, and its log variance (B,), which is -inf."""
        return torch.zeros(clips, self.outputs, device=device), torch.full((clips,), -math.inf, device=device)

    def probe_loss(self, guess: Tensor, log_variance: Tensor, standard: Tensor, step: Step | None = None) -> Tensor:
        """Return the loss that teaches a modality's variance, from guesses (B, M, C), log variances (B, M), labels
        (B, C). Guesses are not normalised, as those of two classes are not."""
        logits = guess + self.log_odds
        return perturbed_binary_cross_entropy(
            logits, log_variance, standard[:, None].expand_as(guess), _noise("probe", logits, step)
        )

    def likelihood(self, guess: Tensor, log_variance: Tensor, target: Tensor, step: Step | None = None) -> Tensor:
        """Return the loss that teaches logits and variance together, from guesses (B, C) and log variances (B,)."""
        logits = guess + self.log_odds
        noise = _noise("task", logits, step)
        return perturbed_binary_cross_entropy(logits, log_variance, self.standard(target), noise)

    def prediction(
        self, guess: Tensor, log_variance: Tensor, target: Tensor | None, step: Step | None = None, **rest: Any
    ) -> Prediction:
        """Return a Prediction from guesses (B, C) and log variances (B,), as Classes does for two classes."""
        logits = guess + self.log_odds
        losses = {} if target is None else {"task": self.likelihood(guess, log_variance, target, step)}
        shrunk = logits / (1 + math.pi / 8 * log_variance.exp())[:, None].sqrt()
        return Prediction(losses=losses, presence=shrunk.sigmoid(), **rest)


Targets = Target | Classes | Labels


def target_of(config: UntrainedConfig) -> Targets:
    """Build the target that a model.json describes."""
    if is_multilabel(config["task"]):
        return Labels(config["class_shares"])
    if is_classification(config["task"]):
        return Classes(config["class_shares"])
    return Target(config["target_mean"], config["target_std"])


def gaussian_nll(value: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Return the mean heteroscedastic negative log-likelihood without its constant (Kendall & Gal 2017, equation 5)."""
    return 0.5 * (log_variance + (value - target) ** 2 * (-log_variance).exp()).mean()


def _noise(stream: str, logits: Tensor, step: Step | None) -> Tensor | None:
    """Return the noise (samples, B, ..., C) for logits (B, ..., C) in a training step, None without a step."""
    return None if step is None else step.normal(stream, _SAMPLES, *logits.shape[1:]).transpose(0, 1)


def perturbed_cross_entropy(
    logits: Tensor, log_variance: Tensor, target: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Return the mean of -log of the mean softmax of noisy logits (..., C) (Kendall & Gal 2017, equation 12).

    log_variance and target (class numbers) are (...): the noise has one variance for all logits of a clip. `noise`
    (samples, ..., C) is standard normal, by default drawn from torch's global generator.
    """
    if noise is None:
        noise = torch.randn(_SAMPLES, *logits.shape, device=logits.device)
    noisy = logits + (log_variance / 2).exp()[..., None] * noise
    log_probability = noisy.log_softmax(-1).gather(-1, target.expand(_SAMPLES, *target.shape)[..., None])
    return (math.log(_SAMPLES) - log_probability.logsumexp(0)).mean()


def perturbed_binary_cross_entropy(
    logits: Tensor, log_variance: Tensor, target: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Return the mean over clips and labels of -log of the mean probability of a label's target under noisy logits.

    logits and target (0 or 1) are (..., C), log_variance (...). `noise` as in `perturbed_cross_entropy`.
    """
    if noise is None:
        noise = torch.randn(_SAMPLES, *logits.shape, device=logits.device)
    noisy = logits + (log_variance / 2).exp()[..., None] * noise
    log_probability = F.logsigmoid((2 * target - 1) * noisy)
    return (math.log(_SAMPLES) - log_probability.logsumexp(0)).mean()


class Head(nn.Module):
    """A fused vector (B, D) -> a guess, (B,) or (B, outputs) for several outputs, and its log variance (B,)."""

    def __init__(self, width: int, dropout: float, outputs: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, outputs + 1)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        *guesses, log_variance = self.out(self.body(fused)).unbind(-1)
        guess = guesses[0] if len(guesses) == 1 else torch.stack(guesses, -1)
        return guess, _LOG_VARIANCE * F.softsign(log_variance / _LOG_VARIANCE)
