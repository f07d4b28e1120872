"""A BERT encoder (Devlin et al., 2019, arXiv 1810.04805) read from its folder and computed by torch, without
transformers.

Importing transformers takes longer than predicting a clip. `load` returns None for any other encoder, and transformers
then runs it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

_WEIGHTS = "model.safetensors"
# This module implements encoders whose config.json has these values or leaves them out.
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
    """Weights by their names in the file; width W is a multiple of `heads`."""

    weights: dict[str, Tensor]
    layers: int
    heads: int
    epsilon: float

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return states (B, T, W) float32 of ids (B, T) int64; `mask_BT` needs at least one attended id per row."""
        words, positions, segments = (self.weights[f"embeddings.{name}"] for name in _EMBEDDINGS)
        x = F.embedding(ids_BT, words) + segments[0] + positions[: ids_BT.shape[1]]
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
    """Load the encoder in a folder (config.json, model.safetensors); return None if it is not a BERT as above."""
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
        return None  # transformers can read the folder, or reports the error


def _names(layers: int) -> set[str]:
    dense = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    dense += ["intermediate.dense", "output.dense"]
    parts = [*dense, "attention.output.LayerNorm", "output.LayerNorm"]
    layer_parts = [f"encoder.layer.{layer}.{part}" for layer in range(layers) for part in parts] + [
        "embeddings.LayerNorm"
    ]
    return {f"embeddings.{name}" for name in _EMBEDDINGS} | {
        f"{name}.{w}" for name in layer_parts for w in ("weight", "bias")
    }
