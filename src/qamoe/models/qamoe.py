"""QA-MoE (Zhu et al., ACL 2026, arXiv 2604.05704): quality guides a mixture of experts.

Which equation is the paper's and which is our decision stands in docs/method.md.
"""

import torch
from torch import Tensor, nn

from qamoe.features.batch import Batch
from qamoe.models.encoders import ModalityEncoders
from qamoe.models.moe import Experts, Router, balance_loss, router_z_loss, top_k_weights
from qamoe.models.prediction import Head, Prediction, Target
from qamoe.models.quality import Quality
from qamoe.params import Encoders
from qamoe.params import QAMoE as Block

_SMALLEST_R = 1e-4


class QAMoE(nn.Module):
    """Encoders -> Gaussian features and r -> fallback z' = r z + (1 - r) prior -> routed experts -> heads."""

    def __init__(self, features: dict[str, int], sizes: Encoders, block: Block, target: Target) -> None:
        super().__init__()
        modalities, width = len(features), sizes.width
        tokens_width = width if block.fusion == "tokens" else width * modalities
        self.block = block
        self.target: Target = target
        self.encode = ModalityEncoders(features, sizes)
        self.quality = Quality(modalities, width, block.max_log_variance, block.initial_log_variance)
        self.prior = nn.Parameter(torch.zeros(modalities, width))
        self.norm = nn.LayerNorm(tokens_width)
        self.router = Router(tokens_width, modalities, block.experts)
        self.experts = Experts(tokens_width, block.hidden, block.experts)
        self.score = nn.Linear(tokens_width, 1) if block.fusion == "tokens" else None
        self.head = Head(tokens_width, sizes.dropout)

    def forward(self, batch: Batch, quality: Tensor | None = None) -> Prediction:
        """Predict a batch. `quality` (B, M) overrides r, for oracle and broken quality."""
        standard = None if batch.target is None else self.target.standard(batch.target)
        z_BMD, r_BM, probe_loss = self.quality(self.encode(batch), standard)
        if quality is not None:
            r_BM = quality
        fallback_BMD = r_BM[..., None] * z_BMD + (1 - r_BM[..., None]) * self.prior
        if self.block.fusion == "concat":
            fallback_BMD = fallback_BMD.flatten(1)[:, None]
        tokens_BND = self.norm(fallback_BMD)
        logits = self.router(tokens_BND, r_BM)
        weights = top_k_weights(logits, self.block.active)
        y_BND = fallback_BMD + self.experts(tokens_BND, weights)
        scores = r_BM.clamp(min=_SMALLEST_R).log()
        if self.score is None:
            fusion = scores.softmax(1)
            fused = y_BND[:, 0]
        else:
            fusion = (self.score(y_BND)[..., 0] + scores).softmax(1)
            fused = (fusion[..., None] * y_BND).sum(1)
        value, log_variance = self.head(fused)
        prediction = self.target.prediction(value, log_variance, batch.target, r=r_BM, fusion=fusion, routing=weights)
        if probe_loss is not None:
            prediction.losses["probe"] = probe_loss
            prediction.losses["balance"] = balance_loss(logits, weights)
            prediction.losses["router_z"] = router_z_loss(logits)
        return prediction
