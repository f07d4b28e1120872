"""Reliability of a modality from self-supervised aleatoric uncertainty, and from the damage that training injects."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config.params import QAMoE
from qamoe.models.heads import Targets
from qamoe.models.training_step import Step


class Quality(nn.Module):
    """h (B, M, D) -> a Gaussian per modality and its reliability r = 1 / (1 + mean sigma^2) (arXiv 2604.05704).

    A linear probe a modality predicts the target from a sample of that Gaussian; its likelihood, in the task's
    own form and with the mean of sigma^2 as variance, teaches the variance without quality labels. The form of
    the probe, the clamp of the log variance and where it starts (small, so that features are not drowned at first) are
    our decision, and so are two more teachers and eyes of the variance: the cross-entropy of r with 1 - severity,
    which training knows since it did the damage, and, where `variance_context` is all, the vectors of all modalities,
    since a swapped stream looks clean to whoever sees it alone.
    """

    def __init__(self, modalities: int, width: int, block: QAMoE, target: Targets) -> None:
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
            every, narrow = modalities * width, width // 2
            self.others = nn.Sequential(
                nn.LayerNorm(every), nn.Linear(every, narrow), nn.GELU(), nn.Linear(narrow, every)
            )

    def forward(
        self, h_BMD: Tensor, standard_target: Tensor | None, step: Step | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns z (B, M, D), r (B, M), and losses: the probes' where a target is given, r's in a training step."""
        mu = self.mu(h_BMD)
        log_variance = self.log_variance(h_BMD)
        if self.others is not None:
            log_variance = log_variance + self.others(h_BMD.flatten(1)).view_as(log_variance)
        log_variance = log_variance.clamp(-self.limit, self.limit)
        variance = log_variance.exp()
        sample = mu
        if self.training:
            noise = torch.randn_like(mu) if step is None else step.normal("sample", *mu.shape[1:]).to(mu.dtype)
            sample = mu + variance.sqrt() * noise
        mean_variance_BM = variance.mean(-1)
        losses = {}
        if standard_target is not None:
            guess = self.probe(sample)
            guess = guess[..., 0] if guess.shape[-1] == 1 else guess
            losses["probe"] = self.probe_loss(guess, mean_variance_BM.log(), standard_target, step)
        if step is not None:  # -ln of the mean variance is the logit of r
            losses["severity"] = F.binary_cross_entropy_with_logits(-mean_variance_BM.log(), 1 - step.severity)
        return sample if self.sampled else mu, 1 / (1 + mean_variance_BM), losses


class PerModality(nn.Module):
    """A linear map of its own for each modality: (B, M, D) -> (B, M, O)."""

    def __init__(self, modalities: int, width: int, out: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(modalities, width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(modalities, out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bmd,mdo->bmo", x, self.weight) + self.bias
