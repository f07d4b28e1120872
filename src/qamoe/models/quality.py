"""Reliability of a modality: aleatoric uncertainty, taught by the target and by the severity that training injects."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config import params
from qamoe.models.heads import Targets
from qamoe.models.training_step import Step


class Quality(nn.Module):
    """h (B, M, D) -> a Gaussian per modality and its reliability r = 1 / (1 + mean sigma^2) (arXiv 2604.05704).

    One linear probe per modality predicts the target from a sample of that Gaussian. Its likelihood, in the task's own
    form and with the mean of sigma^2 as variance, teaches the variance without quality labels.

    Our decisions: the form of the probe; the clamp of the log variance and its small initial value, because early noise
    would drown the features; a second loss, the cross-entropy of r with 1 - severity, which training knows because it
    injects the damage; and, with `variance_context` all, a variance that reads the vectors of all modalities, because a
    swapped modality looks clean by itself.
    """

    def __init__(self, modalities: int, width: int, block: params.QAMoE, target: Targets) -> None:
        super().__init__()
        self.probe_loss = target.probe_loss
        self.sampled = block.sampled
        self.limit = block.max_log_variance
        self.mu = PerModality(modalities, width, width)
        self.log_variance = PerModality(modalities, width, width)
        nn.init.constant_(self.log_variance.bias, block.initial_log_variance)
        self.probe = PerModality(modalities, width, target.outputs)
        self.others: nn.Module | None = None
        if block.variance_context == "all":
            wide, narrow = modalities * width, width // 2
            self.others = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, narrow), nn.GELU(), nn.Linear(narrow, wide))

    def forward(
        self, h_BMD: Tensor, standard_target: Tensor | None, step: Step | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return z (B, M, D), r (B, M), and losses: `probe` if a target is given, `severity` in a training step."""
        mu = self.mu(h_BMD)
        log_variance = self.log_variance(h_BMD)
        if self.others is not None:
            log_variance = log_variance + self.others(h_BMD.flatten(1)).view_as(log_variance)
        log_variance = log_variance.clamp(-self.limit, self.limit)
        variance = log_variance.exp()
        sample = mu
        if self.training:
            sample = gaussian_sample(mu, variance, step)
        mean_variance_BM = variance.mean(-1)
        losses = {}
        if standard_target is not None:
            guess = self.probe(sample)
            guess = guess[..., 0] if guess.shape[-1] == 1 else guess
            losses["probe"] = self.probe_loss(guess, mean_variance_BM.log(), standard_target, step)
        if step is not None:
            losses["severity"] = severity_loss(mean_variance_BM, step)
        return sample if self.sampled else mu, 1 / (1 + mean_variance_BM), losses


def gaussian_sample(mu: Tensor, variance: Tensor, step: Step | None) -> Tensor:
    """Return a sample of N(mu, variance), in the shape of both: (B, M, D)."""
    noise = torch.randn_like(mu) if step is None else step.normal("sample", *mu.shape[1:]).to(mu.dtype)
    return mu + variance.sqrt() * noise


def severity_loss(mean_variance_BM: Tensor, step: Step) -> Tensor:
    """Return the mean cross-entropy of r = 1 / (1 + mean variance) with 1 - the severity that training injected."""
    return F.binary_cross_entropy_with_logits(-mean_variance_BM.log(), 1 - step.severity)  # -ln v is the logit of r


class PerModality(nn.Module):
    """A separate linear map for each modality: (B, M, D) -> (B, M, O)."""

    def __init__(self, modalities: int, width: int, out: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(modalities, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(modalities, out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bmd,mdo->bmo", x, self.weight) + self.bias
