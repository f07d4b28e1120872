"""Controls: trained by the same function, with the same encoders, data, augmentation and budget as QA-MoE.

Shapes: B batch, M modality, D width, H hidden. Each takes whatever modalities the corpus has; a clip without a frame in
one of them comes with that encoder's learned vector, as it does in QA-MoE.
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
    """Predicts the training mean and variance, or the training frequencies of the classes, whatever it is given."""

    Block = params.Mean

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Mean, target: Targets) -> None:
        super().__init__()
        self.target: Targets = target
        self.encode = ModalityEncoders({}, sizes)

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        device = next(self.target.buffers()).device
        return self.target.prediction(*self.target.nothing(len(h_BMD), device), target, step)


def _mix(width: int, hidden: int) -> nn.Sequential:
    """The hidden layer before the head that the controls share."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU())


class Concat(Model):
    """Plain concatenation of the modality vectors and one hidden layer."""

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
    """What is said alone: Concat of one modality, whatever else the corpus has. Raises UserError where it has no
    text."""

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Hidden, target: Targets) -> None:
        if "text" not in features:
            raise UserError(f"The model text reads text alone; this corpus has {' and '.join(features)}.")
        super().__init__({"text": features["text"]}, sizes, block, target)


class CrossAttention(Model):
    """The modality vectors attend to each other in one pre-norm transformer layer; then as Concat.

    That is attention over M vectors, not over their frames as in MulT (Tsai et al., ACL 2019): our decision, so that
    the encoders are those of all other models.
    """

    Block = params.Hidden

    def __init__(self, features: dict[str, int], sizes: params.Encoders, block: params.Hidden, target: Targets) -> None:
        super().__init__()
        width = sizes.width
        self.target: Targets = target
        self.encode = ModalityEncoders(features, sizes)
        self.place = nn.Parameter(0.02 * torch.randn(len(features), width))  # attention knows no order of its own
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
    """Outer product of [1; l_m] over the modalities, l_m the tanh of a map of h_m to `low` numbers (Zadeh et al. 2017).

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
        for place in range(1, with_one.shape[1]):
            products = torch.einsum("bi,bj->bij", products, with_one[:, place]).flatten(1)
        guess, log_variance = self.head(self.mix(products))
        return self.target.prediction(guess, log_variance, target, step)


class Precision(Model):
    """Each modality guesses the target, with a variance v; these Gaussians are multiplied (Hinton 2002).

    The fused guess, a value or logits, is the mean of the modalities' guesses weighted by 1 / v, its variance the
    inverse of the sum of 1 / v. Each modality's own likelihood is the loss `probe`, so that its variance is its own and
    not the product's: our decision. r = 1 / (1 + v), the same form as QA-MoE's; a given quality stands for
    v = (1 - r) / r.
    """

    Block = params.Hidden

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
        guesses = [expert(h_BMD[:, place]) for place, expert in enumerate(self.experts)]
        guess_BM, own_BM = (torch.stack(part, 1) for part in zip(*guesses, strict=True))
        log_precision_BM = -own_BM if quality is None else torch.logit(quality, eps=1e-4)
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
            prediction.losses["probe"] = self.target.probe_loss(guess_BM, own_BM, standard, step)
        return prediction


class MoE(Model):
    """QA-MoE without quality: no variance, no r, no fallback, a semantic router alone; the same experts and fusion."""

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
    """QA-MoE that is told the truth in place of its own r, in training, choice and evaluation: what a gate can give."""

    def fuse(
        self, h_BMD: Tensor, target: Tensor | None = None, quality: Tensor | None = None, step: Step | None = None
    ) -> Prediction:
        """Raises UserError without quality: where nobody knows it there is no oracle."""
        if quality is None:
            raise UserError(
                "The model oracle is told how each clip was degraded; it predicts under a known view alone."
            )
        return super().fuse(h_BMD, target, quality, step)

    def quality_of(self, state: State) -> Tensor:
        """1 - severity (B, M) of the modalities that the model has; 1 where a modality is clean."""
        places = list(present(list(self.encode.encoders)))
        severity = state.severity[:, places]
        return torch.where(state.kind[:, places] < 0, 1.0, 1.0 - severity)
