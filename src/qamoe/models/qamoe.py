"""The model QA-MoE (Zhu et al., ACL 2026, arXiv 2604.05704): quality guides a mixture of experts.

docs/how/method.md says which equations are the paper's and which are our decision. The package, the class QAMoE and the
block `models.qamoe` of params.yaml (qamoe.config.params.QAMoE) are named after it.
"""

import torch
from torch import Tensor, nn

from qamoe.config import params
from qamoe.models.encoders import ModalityEncoders
from qamoe.models.heads import Head, Prediction, Targets
from qamoe.models.model import Model
from qamoe.models.moe import Mixture
from qamoe.models.quality import Quality
from qamoe.models.training_step import Step


class QAMoE(Model):
    """Encoders -> Gaussian features and r -> fallback z' = r z + (1 - r) prior -> routed experts -> head.

    `without` names the part that an ablation lacks: `severity` or `probe` (that loss), `others` (a variance reads only
    its own modality), `fallback` (z' is z), `gate` (the quality gate: the router's quality logits), `fusion` (ln r in
    the modality weights).
    """

    Block = params.QAMoE
    estimates_reliability = True

    def __init__(
        self,
        features: dict[str, int],
        sizes: params.Encoders,
        block: params.QAMoE,
        target: Targets,
        without: str | None = None,
    ) -> None:
        super().__init__()
        modalities, width = len(features), sizes.width
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.without = without
        if without == "others":
            block = block.model_copy(update={"variance_context": "own"})
        self.quality = Quality(modalities, width, block, target)
        self.prior = nn.Parameter(torch.zeros(modalities, width))
        self.mixture = Mixture(modalities, width, block, quality=without != "gate")
        self.head = Head(self.mixture.width, sizes.dropout, target.outputs)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        """Predict from vectors; `quality` (B, M) overrides r, for oracle and permuted quality."""
        standard = None if target is None else self.target.standard(target)
        z_BMD, r_BM, losses = self.quality(h_BMD, standard, step)
        if quality is not None:
            r_BM = quality
        fallback_BMD = r_BM[..., None] * z_BMD + (1 - r_BM[..., None]) * self.prior
        if self.without == "fallback":
            fallback_BMD = z_BMD
        fusion_r_BM = None if self.without == "fusion" else r_BM
        fused = self.mixture(fallback_BMD, r_BM, fusion_r_BM, step, labelled=target is not None)
        guess, log_variance = self.head(fused.vector)
        prediction = self.target.prediction(
            guess, log_variance, target, step, r=r_BM, fusion=fused.fusion, routing=fused.routing
        )
        if target is not None:
            prediction.losses.update({name: value for name, value in losses.items() if name != self.without})
            prediction.losses.update(fused.losses)
        return prediction
