"""The models by name. A new one is one class, which names the type of its block, and one line here.

It is trained where params.yaml has such a block and seeds for it.
"""

from typing import Any

from torch import Tensor

from qamoe.config.block import Block
from qamoe.config.model_names import ablated, family
from qamoe.config.params import Encoders, Models
from qamoe.degradation.features import State
from qamoe.errors import UserError
from qamoe.models import baselines
from qamoe.models.heads import Targets
from qamoe.models.model import Model
from qamoe.models.qamoe import QAMoE
from qamoe.models.text_encoder_finetuned import FinetunedEncoder

MODELS: dict[str, type[Model]] = {
    "mean": baselines.Mean,
    "text": baselines.Text,
    "concat": baselines.Concat,
    "cross_attention": baselines.CrossAttention,
    "tensor": baselines.TensorFusion,
    "precision": baselines.Precision,
    "moe": baselines.MoE,
    "oracle": baselines.Oracle,
    "qamoe": QAMoE,
}


def block_of(models: Models, name: str) -> Block:
    """The block of a model, specialist or ablation. Raises UserError where there is none, pydantic's error for a key
    that its class does not have."""
    key = family(name)
    if key not in models.blocks:
        raise UserError(f"params.yaml: key models.{key} is missing.")
    return MODELS[key].Block.model_validate(models.blocks[key])


def build(
    name: str,
    features: dict[str, int],
    sizes: Encoders,
    block: Block,
    target: Targets,
    reader: FinetunedEncoder | None = None,
) -> Model:
    """A fresh model, specialist or ablation, with its block of params.yaml.

    `features` is the frame dimension of each modality it gets, in the order of MODALITIES; that of text is the width
    of the `reader`'s states where there is one, a text encoder of the model's own.
    """
    part = ablated(name)
    how = {} if part is None else {"without": part}
    model: Any = MODELS[family(name)](features, sizes, block, target, **how)
    if reader is not None:
        model.encode.reader = reader
    return model


def oracle_quality(model: Model, state: State) -> Tensor | None:
    """The quality (B, M) that a model is told of a batch in this state: None for all but the oracle."""
    return model.quality_of(state) if isinstance(model, baselines.Oracle) else None
