"""Checkpoints: folders of plain files from which a model is rebuilt exactly, without running code from them.

weights.safetensors, model.json (the model's description, with everything that it needs to predict) and history.jsonl
(one line per epoch). model.json is written last: a folder that has it is complete. A checkpoint of an unfinished
training has the same files; its model.json says `"finished": false`, and has no calibration and no trust yet.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qamoe.config.model_names import family
from qamoe.config.params import Encoders, Params
from qamoe.config.task import has_classes
from qamoe.data.batch import Batch
from qamoe.data.normalise import Columns
from qamoe.data.stats import Stats, frame_stats, text_is_vectors
from qamoe.degradation.features import State
from qamoe.errors import UserError
from qamoe.files import write_bytes, write_text
from qamoe.models import text_encoder_finetuned, text_encoder_frozen
from qamoe.models.checkpoint_config import (
    CONFIG,
    FORMAT,
    CheckpointConfig,
    ParametersConfig,
    UntrainedConfig,
    check,
    read_config,
)
from qamoe.models.factory import MODELS, block_of, build, oracle_quality
from qamoe.models.heads import Prediction, target_of
from qamoe.models.model import Model

WEIGHTS = "weights.safetensors"
HISTORY = "history.jsonl"
_MOST_LAYERS, _WIDEST = 128, 65_536


@dataclass(frozen=True)
class Trained:
    """A model ready to predict, and its model.json."""

    model: Model
    config: CheckpointConfig
    folder: Path

    @cached_property
    def classifies(self) -> bool:
        """Whether the model predicts classes, one or any number of them."""
        return has_classes(self.config["task"])

    @cached_property
    def columns(self) -> dict[str, Columns]:
        """How the frames of each modality except text are standardised."""
        stats = self.config["stats"]
        return {m: Columns.from_json(frame_stats(stats, m)) for m in self.config["modalities"] if m != "text"}

    @cached_property
    def reads_words(self) -> bool:
        """Whether the model reads token ids, and so can read words; if not, its text is stored vectors."""
        return not text_is_vectors(self.config["stats"])

    @cached_property
    def frozen_encoder(self) -> str | None:
        """The name or folder of the frozen text encoder whose states the model reads; None if it reads token ids."""
        block = self.config["models"]["encoders"].get("text", {})
        return None if block.get("finetune", False) else block.get("encoder", text_encoder_frozen.NAME)

    @torch.no_grad()
    def vectors(self, batch: Batch) -> dict[str, Tensor]:
        """Return the vectors (B, D) of the batch's modalities; text is token ids or states of the frozen encoder."""
        encoder = self.frozen_encoder
        if "text" in batch.x and encoder is not None and not batch.x["text"].is_floating_point():
            batch = batch.with_x(text=text_encoder_frozen.encode(batch.x["text"], batch.mask["text"], encoder))
        return self.model.encode.vectors(batch)

    @torch.no_grad()
    def fuse(
        self, vectors: dict[str, Tensor], clips: int, quality: Tensor | None = None, state: State | None = None
    ) -> Prediction:
        """Predict from the vectors of all modalities. `quality` (B, M) overrides r.

        `state` is how the clips were degraded, if known. Only the oracle uses it, to compute its quality.
        """
        if quality is None and state is not None:
            quality = oracle_quality(self.model, state)
        h_BMD = self.model.encode.together(vectors, clips)
        return self.model.fuse(h_BMD, None, None if quality is None else quality.to(h_BMD.device))

    def predict(self, batch: Batch, quality: Tensor | None = None, state: State | None = None) -> Prediction:
        """Predict a batch of frames."""
        return self.fuse(self.vectors(batch), len(batch), quality, state)

    def trust(self, r: Tensor, present: Tensor) -> Tensor:
        """Return the trust that users see, (B, M) in [0, 1].

        Trust is r rescaled between its validation medians (our decision, not the paper's). It is 0 for a modality
        without valid frames (`present` (B, M) False).
        """
        columns = []
        for index, modality in enumerate(self.config["modalities"]):
            anchors = self.config["trust"][modality]
            column = r[:, index]
            if anchors["rescaled"]:
                column = (column - anchors["fully_degraded"]) / (anchors["clean"] - anchors["fully_degraded"])
            columns.append(column.clamp(0, 1))
        return torch.stack(columns, 1) * present


def shared_encoder(trained: Iterable[Trained]) -> str | None:
    """Return the frozen text encoder that all models share; None (read token ids) if they differ or fine-tune."""
    encoders = {model.frozen_encoder for model in trained}
    return encoders.pop() if len(encoders) == 1 else None


def make(name: str, config: UntrainedConfig) -> Model:
    """Build the model that a model.json describes, with fresh weights."""
    # Encoders are in the order of `modalities`; model.json sorts the keys of `inputs`.
    features = {modality: config["inputs"][modality] for modality in config["modalities"]}
    # Validate only the model's own blocks: other models may have been added or removed since.
    sizes = Encoders.model_validate(config["models"]["encoders"])
    block = MODELS[family(name)].Block.model_validate(config["models"][family(name)])
    reader = None
    if "text_encoder" in config:
        reader = text_encoder_finetuned.FinetunedEncoder(config["text_encoder"], sizes.text)
        features["text"] = reader.width  # `inputs` has the corpus's dimension, which is the same for every encoder
    elif "text_states" in config:
        features["text"] = config["text_states"]
    doubts = reads_confidence(config)
    features |= {"text": features["text"] + 1} if doubts else {}
    model = build(name, features, sizes, block, target_of(config), reader)
    model.encode.reads_confidence = doubts
    return model


def reads_confidence(config: UntrainedConfig) -> bool:
    """Whether a model reads how sure a recogniser was of each word: if it was trained on simulated confidences."""
    degrade = config["train"].get("degrade", {})
    reads_ids = "text" in config["modalities"] and not text_is_vectors(config["stats"])
    return reads_ids and degrade.get("spectrum") == "clip" and degrade.get("recognised_share", 0) > 0


def parameters_config(params: Params, name: str, seed: int, digests: dict[str, str]) -> ParametersConfig:
    """Return the part of a model.json that follows from its parameters."""
    return {
        "format": FORMAT,
        "model": name,
        "seed": seed,
        "models": {
            "encoders": params.models.encoders.model_dump(mode="json"),
            family(name): block_of(params.models, name).model_dump(mode="json"),
        },
        "train": params.train.common.model_dump(mode="json"),
        "extract": params.extract.model_dump(mode="json", exclude={"corpus", "signals"}),
        "max_frames": params.preprocess.max_frames.model_dump(),
        "digests": digests,
    }


def untrained_config(
    params: Params, name: str, seed: int, stats: Stats, inputs: dict[str, int], digests: dict[str, str]
) -> UntrainedConfig:
    """Return a model.json without the results of training: selection, best_epoch, calibration and trust.

    `inputs` is the frame dimension of each modality; `digests` identify the checkpoint's data, code and parameters.
    """
    config: UntrainedConfig = {
        **parameters_config(params, name, seed, digests),
        "stats": stats,
        "task": stats["task"],
        "modalities": list(inputs),
        "inputs": inputs,
        "trained_on_generated": stats["generated"],
    }
    if has_classes(stats["task"]):
        config["class_shares"] = stats["class_shares"]
    else:
        config["target_mean"], config["target_std"] = stats["target_mean"], stats["target_std"]
    encoder = params.models.encoders.text
    reads_ids = "text" in inputs and not text_is_vectors(stats)
    if reads_ids and encoder.finetune and family(name) != "mean":
        vocabulary = text_encoder_finetuned.vocabulary(stats)
        limit = params.preprocess.max_frames.text
        config["text_encoder"] = text_encoder_finetuned.architecture(encoder, limit, vocabulary)
    elif reads_ids and encoder.encoder != text_encoder_frozen.NAME:
        config["text_states"] = text_encoder_frozen.width(encoder.encoder)
    return config


def save(folder: Path, weights: Mapping[str, Tensor], config: CheckpointConfig, history: list[dict[str, Any]]) -> None:
    """Write a checkpoint; model.json last."""
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # until all files are new, the folder is not finished
    write_bytes(folder / WEIGHTS, to_bytes({k: v.detach().cpu().contiguous() for k, v in weights.items()}))
    write_text(folder / HISTORY, "".join(json.dumps(line) + "\n" for line in history))
    write_text(folder / CONFIG, json.dumps(config, indent=1, sort_keys=True, allow_nan=False))


def load(folder: Path, device: str = "cpu", unfinished: bool = False) -> Trained:
    """Load a checkpoint. Raises UserError if there is none or if weights and model.json disagree.

    unfinished: accept one of an unfinished training too. It predicts values and r, but no intervals and no trust.

    Nothing of the size that model.json claims is built before the weights are known to have this size: the model is
    built without memory, and the weights of the file become its own.
    """
    config = read_config(folder)
    if config is None:
        raise UserError(f"No finished checkpoint in {folder}: {CONFIG} is missing.")
    check(config, folder / CONFIG, unfinished)
    path = folder / WEIGHTS
    size = path.stat().st_size if path.is_file() else 0
    try:
        _check_sizes(config, size)
        # transformers computes some tensors that no file has, so its encoders are built with memory.
        with torch.device("cpu" if "text_encoder" in config else "meta"):
            model = make(config["model"], config)
        if model.estimates_reliability and not config["trust"] and config.get("finished", True):
            raise ValueError("trust has no anchors")
        reason = _load_weights(model, path)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder / CONFIG} does not describe a model that this version can build ({reason})."
        ) from None
    if reason:
        raise UserError(f"{path} does not fit its {CONFIG}: {reason}.")
    return Trained(model.to(device).eval(), config, folder)


def _check_sizes(config: CheckpointConfig, size: int) -> None:
    """Raise ValueError for a model with more layers, or a text encoder with more numbers, than its weights can have."""
    encoders = config["models"]["encoders"]
    described = {**config.get("text_encoder", {}), "layers": encoders.get("layers")}
    for key, value in described.items():
        if isinstance(value, int) and ("layers" in key or "heads" in key) and not 0 <= value <= _MOST_LAYERS:
            raise ValueError(f"{key} is {value}, must be from 0 to {_MOST_LAYERS}")
        if isinstance(value, int) and "size" in key and value > _WIDEST * (_WIDEST if key == "vocab_size" else 1):
            raise ValueError(f"{key} is {value}, more than this version builds")
    if "text_encoder" in config:
        numbers = int(described["vocab_size"]) * int(described["hidden_size"])
        if numbers * 2 > size:
            raise ValueError(f"its text encoder has more than {numbers} numbers, the weights have {size} bytes")


def _load_weights(model: Model, path: Path) -> str:
    """Give a model the weights of a file; return why they do not fit, "" if they do."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path, device="cpu")
    except (FileNotFoundError, SafetensorError, RuntimeError, OSError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    wanted = model.state_dict()
    for name in [*sorted(wanted.keys() ^ weights.keys()), *wanted]:
        if name not in wanted or name not in weights:
            return f"{name[:80]!r} is {'unknown' if name in weights else 'missing'}"
        expected, found = wanted[name], weights[name]
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return f"{name} is {found.dtype} {tuple(found.shape)}, must be {expected.dtype} {tuple(expected.shape)}"
        if found.is_floating_point() and not torch.isfinite(found).all():
            return f"{name} has values that are not finite"
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, strict=True, assign=True)
    return ""


def digest(folder: Path) -> str:
    """Return the SHA-256 over weights and model.json, which identifies a run."""
    result = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        result.update((folder / name).read_bytes())
    return result.hexdigest()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resumable state atomically: an interruption leaves the old state or the new one."""
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, content.getvalue())


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a resumable state without running code from it, or return None if there is none."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
