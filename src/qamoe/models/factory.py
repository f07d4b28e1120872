"""The models by name. To add a model, write one class, which names the type of its block, and add one line here.

The model is trained if params.yaml has its block and seeds for it.
"""

from typing import Any

from torch import Tensor

from qamoe.config.block import Block
from qamoe.config.model_names import ablated, family, variant_base
from qamoe.config.model_params import block_content
from qamoe.config.params import Encoders, Models
from qamoe.degradation.features import State
from qamoe.errors import UserError
from qamoe.models import baselines
from qamoe.models.heads import Targets
from qamoe.models.model import Model
from qamoe.models.paper import Paper
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
    "paper": Paper,
    "paper-public": Paper,
}


def block_of(models: Models, name: str) -> Block:
    """Return the params.yaml block of a model, variant, specialist or ablation, without its key `train`.

    Raises UserError if the block is missing, and pydantic's ValidationError for a key that its class does not have.
    """
    for key in (family(name), variant_base(name) and name):
        if key is not None and key not in models.blocks:
            raise UserError(f"params.yaml: key models.{key} is missing.")
    return MODELS[family(name)].Block.model_validate(block_content(models, name))


def build(
    name: str,
    features: dict[str, int],
    sizes: Encoders,
    block: Block,
    target: Targets,
    reader: FinetunedEncoder | None = None,
) -> Model:
    """Build a model, variant, specialist or ablation with fresh weights from its block of params.yaml.

    `features` is the frame dimension of each modality that the model reads, in the order of MODALITIES. `reader` is a
    text encoder to be fine-tuned with the model; the dimension of text is then the width of its states.
    """
    part = ablated(name)
    options = {} if part is None else {"without": part}
    model: Any = MODELS[family(name)](features, sizes, block, target, **options)
    if reader is not None:
        model.encode.reader = reader
    return model


def oracle_quality(model: Model, state: State) -> Tensor | None:
    """Return the true quality (B, M) of a batch in this state for the oracle, and None for all other models."""
    return model.quality_of(state) if isinstance(model, baselines.Oracle) else None
