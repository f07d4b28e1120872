"""Reliability of a modality from self-supervised aleatoric uncertainty."""

import torch
from torch import Tensor, nn

from qamoe.models.prediction import Targets
from qamoe.models.step import Step


class Quality(nn.Module):
    """h (B, M, D) -> a Gaussian per modality and its reliability r = 1 / (1 + mean sigma^2) (arXiv 2604.05704).

    A linear probe a modality predicts the target from a sample of that Gaussian; its likelihood, in the task's
    own form and with the mean of sigma^2 as variance, teaches the variance without quality labels. The form of
    the probe, the clamp of the log variance and where it starts (small, so that features are not drowned at first) are
    our decision.
    """

    def __init__(
        self, modalities: int, width: int, max_log_variance: float, initial_log_variance: float, target: Targets
    ) -> None:
        super().__init__()
        self.probe_loss = target.probe_loss
        self.sampled = True  # whether z is a sample in training; else it is mu, and the probe's alone is one
        self.limit = max_log_variance
        self.mu = PerModality(modalities, width, width)
        self.log_variance = PerModality(modalities, width, width)
        nn.init.constant_(self.log_variance.bias, initial_log_variance)
        self.probe = PerModality(modalities, width, target.outputs)

    def forward(
        self, h_BMD: Tensor, standard_target: Tensor | None, step: Step | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns z (B, M, D), r (B, M), and the probes' loss where a target is given."""
        mu = self.mu(h_BMD)
        log_variance = self.log_variance(h_BMD).clamp(-self.limit, self.limit)
        variance = log_variance.exp()
        sample = mu
        if self.training:
            noise = torch.randn_like(mu) if step is None else step.normal("sample", *mu.shape[1:]).to(mu.dtype)
            sample = mu + variance.sqrt() * noise
        mean_variance_BM = variance.mean(-1)
        loss = None
        if standard_target is not None:
            guess = self.probe(sample)
            guess = guess[..., 0] if guess.shape[-1] == 1 else guess
            loss = self.probe_loss(guess, mean_variance_BM.log(), standard_target, step)
        return sample if self.sampled else mu, 1 / (1 + mean_variance_BM), loss


class PerModality(nn.Module):
    """A linear map of its own for each modality: (B, M, D) -> (B, M, O)."""

    def __init__(self, modalities: int, width: int, out: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(modalities, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(modalities, out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bmd,mdo->bmo", x, self.weight) + self.bias
