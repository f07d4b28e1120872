"""A model as one file that torch alone reads (torch.export, .pt2): raw clips in, scores out, no code of ours.

ONNX would serve other runtimes too, at the price of three more packages; this needs none beside torch. Our decision.
Whoever calls it pads the clips of a batch and says by masks which frames are there.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.data.normalise import _FURTHEST, Columns
from qamoe.data.stats import frame_stats, text_is_vectors
from qamoe.errors import UserError
from qamoe.files import atomic_write
from qamoe.models import text_encoder_frozen
from qamoe.models.checkpoint import Trained
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.models.heads import prediction_columns

SUFFIX = ".pt2"
_EXAMPLE = {"text": 17, "audio": 23, "vision": 13}  # tokens and frames of the clips that the model is traced with


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
        finite = torch.where(standard.isfinite(), standard, 0.0)
        return finite.clamp(-_FURTHEST, _FURTHEST).float()


class Exported(nn.Module):
    """What the file computes: inputs by modality, in the order of `inputs`, then their masks -> outputs of `predict`.

    text is token ids (B, T) int64, audio and vision raw frames (B, T, D) float32 of `columns_read` columns or more, a
    mask (B, T) bool; a clip without a frame in a modality has a mask that is False throughout. Outputs by name are
    those of qamoe.inference.predict but `class`, (B,)
    float32 each and routing (B, E).
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model, self.trained = trained.model, [trained]  # in a list, so that no module is registered twice
        self.modalities: list[str] = trained.config["modalities"]
        streams = [m for m in self.modalities if m != "text"]
        stats = trained.config["stats"]
        self.standardise = nn.ModuleDict({m: _Standardise(Columns.from_json(frame_stats(stats, m))) for m in streams})
        frozen = trained.frozen_encoder if "text" in self.modalities else None
        self.encoder = None if frozen is None else text_encoder_frozen.module(frozen, "cpu")

    def forward(self, x: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = {}
        for modality, encode in self.model.encode.encoders.items():
            frames, here = x[modality], mask[modality]
            if modality != "text":
                frames = self.standardise[modality](frames) * here[..., None]
            elif self.encoder is not None:
                first = torch.cat([here[:, :1] | ~here.any(1, keepdim=True), here[:, 1:]], 1)
                states = self.encoder(input_ids=frames, attention_mask=first.long()).last_hidden_state
                frames = states * here[..., None]
            elif self.model.encode.reader is not None:
                frames, here = self.model.encode.reader(frames, here)
            # Frames that are not there: one or two alone would be cases of their own.
            behind = 2 * int(encode.stride)  # type: ignore[arg-type]
            frames, here = F.pad(frames, (0, 0, 0, behind)), F.pad(here, (0, behind))
            vectors[modality] = encode(frames, here)
        clips = next(iter(mask.values())).shape[0]  # len would fix it
        result = self.model.fuse(self.model.encode.together(vectors, clips))
        (trained,) = self.trained
        calibration = trained.config["calibration"]
        if result.probabilities is not None:
            shares = result.probabilities.clamp(min=1e-12) ** (1 / calibration["temperature"])
            result = replace(result, probabilities=shares / shares.sum(1, keepdim=True))
        trust = None
        if result.r is not None:
            trust = trained.trust(result.r, torch.stack([mask[m].any(1) for m in self.modalities], 1))
        columns = prediction_columns(result, trained.config, trust)
        if "score" in columns:
            reach = calibration["sigmas"]["0.9"] * columns["variance"].sqrt()
            columns |= {"low_90": columns["score"] - reach, "high_90": columns["score"] + reach}
        return columns


def columns_read(config: CheckpointConfig, modality: str) -> int:
    """How many columns raw frames must have at least; what stands behind is not looked at."""
    return int(max(frame_stats(config["stats"], modality)["kept"])) + 1


def example(config: CheckpointConfig, clips: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and masks of made-up clips, as the exported model of a model.json takes them."""
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
    """Write a model as `path`, which ends in .pt2. Raises UserError for a model that cannot be written so."""
    from torch.export import Dim

    if path.suffix != SUFFIX:
        raise UserError(f"{path} is no name of an exported model; allowed is one that ends in {SUFFIX}.")
    if "text" in trained.config["modalities"] and text_is_vectors(trained.config["stats"]):
        raise UserError("The model reads stored text vectors, which no file can make of words: train it on words.")
    x, mask = example(trained.config)
    clips = Dim("clips", min=1, max=1 << 16)
    limits = trained.config["max_frames"]
    times = {m: Dim(f"{m}_frames", min=1, max=limits[m]) for m in x}
    masks = {m: {0: clips, 1: times[m]} for m in x}
    frames = {
        m: of if m == "text" else of | {2: Dim(f"{m}_columns", min=columns_read(trained.config, m), max=1 << 16)}
        for m, of in masks.items()
    }
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that would hold the batch size
    try:
        # Lengths after a stride are equal for reasons that the tracer cannot see; it checks them in each call instead.
        program = torch.export.export(
            Exported(trained).eval().requires_grad_(False),
            (x, mask),
            dynamic_shapes=(frames, masks),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
    with atomic_write(path) as aside, aside.open("wb") as file:
        torch.export.save(program, file)
