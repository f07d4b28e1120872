"""Export a model as one .pt2 file (torch.export) that maps raw clips to scores and needs only torch.

ONNX would support other runtimes but needs three more packages. Our decision. The caller pads the clips of a batch and
marks valid frames with masks.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.data.normalise import _FURTHEST, Columns
from qamoe.data.stats import frame_stats, text_is_vectors
from qamoe.errors import UserError
from qamoe.files import write_bytes
from qamoe.models import text_encoder_frozen
from qamoe.models.checkpoint import Trained
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.models.heads import prediction_columns

SUFFIX = ".pt2"
_EXAMPLE = {"text": 17, "audio": 23, "vision": 13}  # tokens and frames of the clips for tracing


class _Standardise(nn.Module):
    """qamoe.data.normalise in torch: raw frames (B, T, D) float32 -> (B, T, kept) float32."""

    kept: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        for name in ("kept", "mean", "deviation"):
            self.register_buffer(name, torch.from_numpy(getattr(columns, name)))

    def forward(self, x: Tensor) -> Tensor:
        standard = (x.double().index_select(2, self.kept) - self.mean) / self.deviation
        known = standard.isfinite() & (x != 0).any(2, keepdim=True)
        return torch.where(known, standard, 0.0).clamp(-_FURTHEST, _FURTHEST).float()


class Exported(nn.Module):
    """The exported computation: inputs and masks by modality -> outputs of qamoe.inference.predict.

    Inputs: text is token ids (B, T) int64; audio and vision are raw frames (B, T, D) float32 with at least
    `columns_read` columns; a mask is (B, T) bool. The mask of a missing modality is all False. A model that reads them
    has a third input: the confidence (B, T) float32 of each token, 1 for typed words. Outputs, by name: those
    of qamoe.inference.predict without `class`, each (B,) float32, and routing (B, E).
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model, self.trained = trained.model, [trained]  # the list keeps torch from registering the model twice
        self.modalities: list[str] = trained.config["modalities"]
        frame_modalities = [m for m in self.modalities if m != "text"]
        stats = trained.config["stats"]
        self.standardise = nn.ModuleDict(
            {m: _Standardise(Columns.from_json(frame_stats(stats, m))) for m in frame_modalities}
        )
        frozen = trained.frozen_encoder if "text" in self.modalities else None
        self.encoder = None if frozen is None else text_encoder_frozen.module(frozen, "cpu")

    def forward(
        self, x: dict[str, Tensor], mask: dict[str, Tensor], confidence: Tensor | None = None
    ) -> dict[str, Tensor]:
        vectors = {}
        for modality, encode in self.model.encode.encoders.items():
            frames, valid = x[modality], mask[modality]
            if modality != "text":
                frames = self.standardise[modality](frames) * valid[..., None]
            elif self.encoder is not None:
                # Attention needs at least one token; a clip without text attends to the first.
                attended = torch.cat([valid[:, :1] | ~valid.any(1, keepdim=True), valid[:, 1:]], 1)
                states = self.encoder(input_ids=frames, attention_mask=attended.long()).last_hidden_state
                frames = states * valid[..., None]
            if modality == "text":
                frames, valid = self.model.encode.words(frames, valid, confidence)
            # Padding avoids lengths of 1 and 2, which the tracer would treat as special cases.
            padding = 2 * int(encode.stride)  # type: ignore[arg-type]
            frames, valid = F.pad(frames, (0, 0, 0, padding)), F.pad(valid, (0, padding))
            vectors[modality] = encode(frames, valid)
        clips = next(iter(mask.values())).shape[0]  # len() would make it a constant of the exported program
        result = self.model.fuse(self.model.encode.together(vectors, clips))
        (trained,) = self.trained
        calibration = trained.config["calibration"]
        if result.probabilities is not None:
            shares = result.probabilities.clamp(min=1e-12) ** (1 / calibration["temperature"])
            result = replace(result, probabilities=shares / shares.sum(1, keepdim=True))
        if result.presence is not None:
            logits = result.presence.clamp(1e-12, 1 - 1e-7).logit() / calibration["temperature"]
            result = replace(result, presence=logits.sigmoid())
        trust = None
        if result.r is not None:
            trust = trained.trust(result.r, torch.stack([mask[m].any(1) for m in self.modalities], 1))
        columns = prediction_columns(result, trained.config, trust)
        if "score" in columns:
            half_width = calibration["sigmas"]["0.9"] * columns["variance"].sqrt()
            columns |= {"low_90": columns["score"] - half_width, "high_90": columns["score"] + half_width}
        return columns


def columns_read(config: CheckpointConfig, modality: str) -> int:
    """Return the minimum number of columns of raw frames; the model ignores further columns."""
    return int(max(frame_stats(config["stats"], modality)["kept"])) + 1


def example(config: CheckpointConfig, clips: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return inputs and masks of dummy clips for the exported model of a model.json."""
    x, mask = {}, {}
    for modality in config["modalities"]:
        length = min(_EXAMPLE[modality], config["max_frames"][modality])
        mask[modality] = torch.ones(clips, length, dtype=torch.bool)
        if modality == "text":
            x[modality] = torch.ones(clips, length, dtype=torch.int64)
        else:
            x[modality] = torch.zeros(clips, length, columns_read(config, modality) + 1)
    return x, mask


@torch.no_grad()
def export(trained: Trained, path: Path) -> None:
    """Export a model to `path`. Raises UserError for a suffix other than .pt2 or a model of stored text vectors."""
    from torch.export import Dim

    if path.suffix != SUFFIX:
        raise UserError(f"cannot export to {path}: the file name must end in {SUFFIX}")
    if "text" in trained.config["modalities"] and text_is_vectors(trained.config["stats"]):
        raise UserError("the model reads stored text vectors and cannot be exported; train it on token ids instead")
    x, mask = example(trained.config)
    inputs: tuple[Any, ...] = (x, mask)
    clips = Dim("clips", min=1, max=1 << 16)
    limits = trained.config["max_frames"]
    times = {m: Dim(f"{m}_frames", min=1, max=limits[m]) for m in x}
    masks = {m: {0: clips, 1: times[m]} for m in x}
    frames = {
        m: sizes if m == "text" else sizes | {2: Dim(f"{m}_columns", min=columns_read(trained.config, m), max=1 << 16)}
        for m, sizes in masks.items()
    }
    shapes: tuple[Any, ...] = (frames, masks)
    if trained.model.encode.reads_confidence:
        inputs, shapes = (*inputs, mask["text"].float()), (*shapes, masks["text"])
    fastpath_was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator would fix the batch size
    try:
        # The tracer cannot prove that lengths after a stride are equal, so the program checks them at run time.
        program = torch.export.export(
            Exported(trained).eval().requires_grad_(False),
            inputs,
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath_was_enabled)
    content = io.BytesIO()
    torch.export.save(program, content)
    write_bytes(path, content.getvalue())
