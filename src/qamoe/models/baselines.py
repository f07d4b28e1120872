"""Baselines: trained by the same function, with the same encoders, data, augmentation and budget as QA-MoE.

Shapes: B batch, M modality, D width, H hidden. Each model reads all modalities of the corpus; a clip without frames in
a modality gets that encoder's learned vector, as in QA-MoE.
"""

import torch
from torch import Tensor, nn

from qamoe.config import params
from qamoe.data.batch import present
from qamoe.degradation.features import State
from qamoe.errors import UserError
from qamoe.models.encoders import ModalityEncoders
from qamoe.models.heads import Head, Prediction, Targets
from qamoe.models.model import Model
from qamoe.models.moe import Mixture
from qamoe.models.qamoe import QAMoE
from qamoe.models.quality import PerModality
from qamoe.models.training_step import Step


class Mean(Model):
    """A constant model: predicts the training mean and variance, or the training frequencies of the classes."""

    Block = params.Mean

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Mean, target: Targets) -> None:
        super().__init__()
        self.target: Targets = target
        self.encode = ModalityEncoders({}, sizes)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        device = next(self.target.buffers()).device
        return self.target.prediction(*self.target.uninformed(len(h_BMD), device), target, step)


def _mix(width: int, hidden: int) -> nn.Sequential:
    """Return the hidden layer before the head, which several baselines share."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU())


class Concat(Model):
    """Concatenation of the modality vectors, then one hidden layer."""

    Block = params.Hidden

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Hidden, target: Targets) -> None:
        super().__init__()
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.mix = _mix(sizes.width * len(features), block.hidden)
        self.head = Head(block.hidden, sizes.dropout, target.outputs)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        guess, log_variance = self.head(self.mix(h_BMD.flatten(1)))
        return self.target.prediction(guess, log_variance, target, step)


class Text(Concat):
    """Concat of the text modality only. Raises UserError for a corpus without text."""

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Hidden, target: Targets) -> None:
        if "text" not in features:
            raise UserError(f"The model text reads only text; this corpus has {' and '.join(features)}.")
        super().__init__({"text": features["text"]}, sizes, block, target)


class CrossAttention(Model):
    """One pre-norm transformer layer over the modality vectors, then Concat.

    Attention is over M vectors, not over frames as in MulT (Tsai et al., ACL 2019). This is our decision: it keeps the
    encoders of all other models.
    """

    Block = params.Hidden

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Hidden, target: Targets) -> None:
        super().__init__()
        width = sizes.width
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.place = nn.Parameter(0.02 * torch.randn(len(features), width))  # attention ignores order
        self.attend = nn.TransformerEncoderLayer(
            width, sizes.heads, 2 * width, sizes.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.mix = _mix(width * len(features), block.hidden)
        self.head = Head(block.hidden, sizes.dropout, target.outputs)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        attended_BMD = self.attend(h_BMD + self.place)
        guess, log_variance = self.head(self.mix(attended_BMD.flatten(1)))
        return self.target.prediction(guess, log_variance, target, step)


class TensorFusion(Model):
    """Outer product of [1; l_m] over modalities; l_m is the tanh of a map of h_m to `low` numbers (Zadeh et al. 2017).

    All (low + 1)^M products of one, two and three modalities go through one hidden layer. The tanh, which bounds them,
    and the size of `low` are our decision.
    """

    Block = params.TensorFusion

    def __init__(
        self, features: dict[str, int], sizes: params.Encoders, block: params.TensorFusion, target: Targets
    ) -> None:
        super().__init__()
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.lower = PerModality(len(features), sizes.width, block.low)
        self.mix = _mix((block.low + 1) ** len(features), block.hidden)
        self.head = Head(block.hidden, sizes.dropout, target.outputs)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        low_BML = torch.tanh(self.lower(h_BMD))
        with_one = torch.cat([torch.ones_like(low_BML[..., :1]), low_BML], -1)
        products = with_one[:, 0]
        for modality in range(1, with_one.shape[1]):
            products = torch.einsum("bi,bj->bij", products, with_one[:, modality]).flatten(1)
        guess, log_variance = self.head(self.mix(products))
        return self.target.prediction(guess, log_variance, target, step)


class Precision(Model):
    """A product of Gaussian experts, one per modality, each with a guess and a variance v (Hinton 2002).

    The fused guess, a value or logits, is the mean of the modalities' guesses weighted by 1 / v; its variance is the
    inverse of the sum of 1 / v. The loss `probe` is each modality's own likelihood, to fit each variance by itself
    instead of through the product: our decision. r = 1 / (1 + v), the same form as QA-MoE's; a given quality r sets
    v = (1 - r) / r.
    """

    Block = params.Hidden
    estimates_reliability = True

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Hidden, target: Targets) -> None:
        super().__init__()
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.experts = nn.ModuleList(
            nn.Sequential(_mix(sizes.width, block.hidden), Head(block.hidden, sizes.dropout, target.outputs))
            for _ in features
        )

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        guesses = [expert(h_BMD[:, modality]) for modality, expert in enumerate(self.experts)]
        guess_BM, log_variance_BM = (torch.stack(part, 1) for part in zip(*guesses, strict=True))
        log_precision_BM = -log_variance_BM if quality is None else torch.logit(quality, eps=1e-4)
        weights_BM = log_precision_BM.softmax(1)
        weights = weights_BM if guess_BM.ndim == 2 else weights_BM[..., None]
        prediction = self.target.prediction(
            (weights * guess_BM).sum(1),
            -log_precision_BM.logsumexp(1),
            target,
            step,
            r=log_precision_BM.sigmoid(),
            fusion=weights_BM,
        )
        if target is not None:
            standard = self.target.standard(target)
            prediction.losses["probe"] = self.target.probe_loss(guess_BM, log_variance_BM, standard, step)
        return prediction


class MoE(Model):
    """The model `moe`: QA-MoE without quality (variance, r, fallback, quality logits), with its experts and fusion."""

    Block = params.MoE

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.MoE, target: Targets) -> None:
        super().__init__()
        modalities, width = len(features), sizes.width
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.mu = PerModality(modalities, width, width)
        self.mixture = Mixture(modalities, width, block, quality=False)
        self.head = Head(self.mixture.width, sizes.dropout, target.outputs)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        fused = self.mixture(self.mu(h_BMD), None, None, step)
        guess, log_variance = self.head(fused.vector)
        prediction = self.target.prediction(
            guess, log_variance, target, step, fusion=fused.fusion, routing=fused.routing
        )
        if target is not None:
            prediction.losses.update(fused.losses)
        return prediction


class Oracle(QAMoE):
    """QA-MoE with the true quality in place of its own r, in training, selection and evaluation.

    It shows how much the quality gate can gain at best.
    """

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        """Predict with the true quality (B, M). Raises UserError without it."""
        if quality is None:
            raise UserError(
                "The model oracle needs to know how each clip was degraded; it predicts only under a known view."
            )
        return super().fuse(h_BMD, target, quality, step)

    def quality_of(self, state: State) -> Tensor:
        """Return 1 - severity (B, M) of the modalities that the model has; 1 if a modality is clean."""
        columns = list(present(list(self.encode.encoders)))
        severity = state.severity[:, columns]
        return torch.where(state.kind[:, columns] < 0, 1.0, 1.0 - severity)
