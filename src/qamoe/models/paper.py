"""The models `paper` and `paper-public`: QA-MoE (Zhu et al., ACL 2026, arXiv 2604.05704) as far as it is known.

The full text could not be obtained. Each fact has its source: D is a machine-made digest of the paper's PDF, R is how a
third party drives the authors' public code. Neither was checked against the paper. "Ours" marks what neither says.
docs/how/method.md, section 12, compares the sources line by line.

The two models are one class with two blocks in params.yaml: `paper` follows D and `paper-public` follows R where the
two differ.

Shapes: B batch, M modality, D width, E experts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config import params
from qamoe.models.encoders import FlaggedEncoder, ModalityEncoders, SequenceEncoder
from qamoe.models.heads import Prediction, Targets
from qamoe.models.model import Model
from qamoe.models.moe import Experts, Router, balance_loss, top_k_weights
from qamoe.models.quality import PerModality, gaussian_sample, severity_loss
from qamoe.models.training_step import Step


class Paper(Model):
    """Encoders -> Gaussians and r -> routed experts -> y = r (mixed experts) + (1 - r) prior -> fusion -> linear heads.

    - mu_m = W_mu u_m + b_mu and sigma_m^2 = softplus(W_sigma u_m + b_sigma), from the modality alone (D).
    - r_m = 1 / (1 + mean of sigma_m^2 over its dimensions) (D).
    - The router's logits are a linear map of mu_m, without r; GLU experts, of which the top k are active (D, R). That
      the modalities share router and experts, the weights of the active experts add up to 1, the gating function is
      SiLU, and an expert has no bias: ours.
    - The experts read a sample of the Gaussian (D) in training, and mu in evaluation (ours); `experts_read` mu always.
    - y_m = r_m * sum_k g_k E_k(x_m) + (1 - r_m) * y_prior, with one learned vector y_prior (D); it starts at 0 (ours).
    - "A standard fusion layer" (D): concatenation, one linear layer and GELU (ours). Without the GELU, a prediction
      would be a sum of one number per modality.
    - value = W_y h + b_y and log variance s = W_s h + b_s, of the standardised target (D; standardised: ours).
    - The likelihood of value and s is the only teacher of r, and its weight is 1 (D, R).

    `missing_flags` tells the model which modalities a clip does not have (R). Their r is then 0, so that y_prior takes
    their place (ours): how the public code uses its flags is not known.

    Two keys leave out a part, to measure it as D does: with `gate` false, r is 1 in y_m, without a fallback, and
    predictions still report r; with `prior` false, y_prior stays 0 and is not learned.

    Losses that only R has, with weights in `loss`: `balance` in the form of Fedus et al. 2022 (form: ours);
    `gate_entropy`, the mean entropy of the router (form and sign: ours); `quality`, the cross-entropy of r with
    1 - severity (form: ours). The contrastive term of R is left out: only its name and its weight are known.
    """

    Block = params.Paper
    estimates_reliability = True

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Paper, target: Targets) -> None:
        super().__init__()
        modalities, width = len(features), sizes.width
        self.block = block
        self.loss_weights = block.loss.model_dump()
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes, FlaggedEncoder if block.missing_flags else SequenceEncoder)
        self.mu = PerModality(modalities, width, width)
        self.variance = PerModality(modalities, width, width)
        self.router = Router(width, None, block.experts)
        self.experts = Experts(width, block.hidden, block.experts)
        self.prior: Tensor
        if block.gate and block.prior:
            self.prior = nn.Parameter(torch.zeros(width))
        else:  # not learned
            self.register_buffer("prior", torch.zeros(width))
        self.fusion = nn.Sequential(nn.Linear(modalities * width, width), nn.GELU())
        self.value = nn.Linear(width, target.outputs)
        self.log_variance = nn.Linear(width, 1)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        """Predict from vectors; `quality` (B, M) overrides r. With `missing_flags`, vectors end in the flag (D + 1)."""
        missing_BM = torch.zeros_like(h_BMD[..., 0])
        if self.block.missing_flags:
            h_BMD, missing_BM = h_BMD[..., :-1], h_BMD[..., -1]
        mu_BMD = self.mu(h_BMD)
        variance_BMD = F.softplus(self.variance(h_BMD))
        mean_variance_BM = variance_BMD.mean(-1)
        r_BM = (1 - missing_BM) / (1 + mean_variance_BM) if quality is None else quality
        sampled = self.training and self.block.experts_read == "sample"
        x_BMD = gaussian_sample(mu_BMD, variance_BMD, step) if sampled else mu_BMD
        logits_BME = self.router(mu_BMD, None)
        weights_BME = top_k_weights(logits_BME, self.block.active)
        mixed_BMD = self.experts(x_BMD, weights_BME, self.block.active)
        y_BMD = mixed_BMD
        if self.block.gate:
            y_BMD = r_BM[..., None] * mixed_BMD + (1 - r_BM[..., None]) * self.prior
        fused = self.fusion(y_BMD.flatten(1))
        value, log_variance = self.value(fused), self.log_variance(fused)[..., 0]
        guess = value[..., 0] if self.target.outputs == 1 else value
        prediction = self.target.prediction(guess, log_variance, None, step, r=r_BM, routing=weights_BME)
        if target is not None:
            prediction.losses["task"] = self.target.likelihood(guess, log_variance, target, step)
            prediction.losses.update(self._auxiliary(logits_BME, weights_BME, mean_variance_BM, step))
        return prediction

    def _auxiliary(
        self, logits_BME: Tensor, weights_BME: Tensor, mean_variance_BM: Tensor, step: Step | None
    ) -> dict[str, Tensor]:
        """Return the losses that have a weight, `quality` in a training step only."""
        losses = {}
        if self.block.loss.balance:
            losses["balance"] = balance_loss(logits_BME, weights_BME, step)
        if self.block.loss.gate_entropy:
            losses["gate_entropy"] = gate_entropy(logits_BME)
        if self.block.loss.quality and step is not None:
            losses["quality"] = severity_loss(mean_variance_BM, step)
        return losses


def gate_entropy(logits_BME: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the router's softmax over all experts."""
    log_probability = logits_BME.log_softmax(-1)
    return -(log_probability.exp() * log_probability).sum(-1).mean()
