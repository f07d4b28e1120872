"""The models by name. A new one is one class and one line here, with a block in params.yaml."""

from torch import nn

from qamoe.models.baselines import Concat, Mean
from qamoe.models.prediction import Target
from qamoe.models.qamoe import QAMoE
from qamoe.params import Models

MODELS: dict[str, type[nn.Module]] = {"mean": Mean, "concat": Concat, "qamoe": QAMoE}


def build(name: str, features: dict[str, int], params: Models, target: Target) -> nn.Module:
    """A fresh model with its block of params.yaml; `features` is the frame dimension of each modality it gets."""
    return MODELS[name](features, params.encoders, getattr(params, name), target)
