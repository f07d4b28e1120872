"""The states of a BERT encoder (Devlin et al., 2019, arXiv 1810.04805) from its folder, by torch alone.

transformers takes longer to import than a clip takes to be answered, and a frozen BERT is a few lines. Whatever a
folder holds that is not plainly such an encoder is left to transformers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

_WEIGHTS = "model.safetensors"
# What config.json may say, or leave out, for these lines to be what the encoder does.
_PLAIN = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_EMBEDDINGS = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight")


@dataclass(frozen=True)
class Bert:
    """Weights by the names that they have in their file; width W is a multiple of `heads`."""

    weights: dict[str, Tensor]
    layers: int
    heads: int
    epsilon: float

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ids (B, T) int64 and which of them are attended to (B, T), at least one a row -> states (B, T, W) float32."""
        words, places, segments = (self.weights[f"embeddings.{name}"] for name in _EMBEDDINGS)
        x = F.embedding(ids_BT, words) + segments[0] + places[: ids_BT.shape[1]]
        x = self._norm("embeddings", x)
        mask = None if mask_BT.all() else mask_BT[:, None, None, :].expand(-1, 1, ids_BT.shape[1], -1)
        for layer in range(self.layers):
            x = self._layer(f"encoder.layer.{layer}", x, mask)
        return x

    def _layer(self, name: str, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        x = self._norm(f"{name}.attention.output", self._linear(f"{name}.attention.output.dense", attended) + x)
        inner = F.gelu(self._linear(f"{name}.intermediate.dense", x))
        return self._norm(f"{name}.output", self._linear(f"{name}.output.dense", inner) + x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.LayerNorm.weight"], self.weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.epsilon)


def load(folder: Path, device: str) -> Bert | None:
    """The encoder in a folder (config.json, model.safetensors), or None where it is not plainly a BERT."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if any(config.get(key, value) != value for key, value in _PLAIN.items()) or "model_type" not in config:
            return None
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        weights = {name: w.float() for name, w in load_file(folder / _WEIGHTS, device=device).items()}
        if not _names(layers) <= set(weights):
            return None
        return Bert(weights, layers, heads, float(config["layer_norm_eps"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None  # transformers says what is wrong, or knows better


def _names(layers: int) -> set[str]:
    dense = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    dense += ["intermediate.dense", "output.dense"]
    parts = [*dense, "attention.output.LayerNorm", "output.LayerNorm"]
    both = [f"encoder.layer.{layer}.{part}" for layer in range(layers) for part in parts] + ["embeddings.LayerNorm"]
    return {f"embeddings.{name}" for name in _EMBEDDINGS} | {f"{name}.{w}" for name in both for w in ("weight", "bias")}
