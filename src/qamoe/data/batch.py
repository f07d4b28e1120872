"""Collate stored clips into padded tensors, for degradations and models."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qamoe.data.arrow_store import Store
from qamoe.rng import MODALITIES, clip_key


@dataclass(frozen=True)
class Batch:
    """B clips. `x[m]` is (B, T_m, D_m) float32, or (B, T_m) int64 for token ids; `mask[m]` (B, T_m) marks valid frames.

    `keys` (B, 2) int64 identify the clips in every draw; `target` (B,) is in label units, or None in prediction.
    `confidence` (B, T_text) is that of a speech recogniser in each token, 1 for typed words; None: all were typed.
    """

    keys: Tensor
    x: dict[str, Tensor]
    mask: dict[str, Tensor]
    target: Tensor | None
    confidence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def bytes(self) -> int:
        """Memory of the frames in bytes."""
        return sum(frames.nbytes for frames in self.x.values())

    def to(self, device: str) -> "Batch":
        return Batch(
            self.keys.to(device),
            {m: v.to(device) for m, v in self.x.items()},
            {m: v.to(device) for m, v in self.mask.items()},
            None if self.target is None else self.target.to(device),
            None if self.confidence is None else self.confidence.to(device),
        )

    def with_x(self, **x: Tensor) -> "Batch":
        """Return the same batch with the frames of some modalities replaced."""
        return replace(self, x={**self.x, **x})

    def with_mask(self, **mask: Tensor) -> "Batch":
        """Return the same batch with the masks of some modalities replaced."""
        return replace(self, mask={**self.mask, **mask})


def pad(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad sequences (T_i, ...) with zeros at the end -> (B, T, ...), and return the mask (B, T); T is at least 1."""
    length = max(1, max(len(s) for s in sequences))
    padded = np.empty((len(sequences), length, *sequences[0].shape[1:]), sequences[0].dtype)  # written once below
    mask = np.zeros((len(sequences), length), bool)
    for i, sequence in enumerate(sequences):
        padded[i, : len(sequence)] = sequence
        padded[i, len(sequence) :] = 0
        mask[i, : len(sequence)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)


def collate(store: Store, rows: Collection[int], modalities: Sequence[str]) -> Batch:
    """Read rows of a preprocessed store as one batch; text comes as int64 token ids."""
    x, mask = {}, {}
    for modality in modalities:
        x[modality], mask[modality] = pad([store.sequence(modality, row) for row in rows])
        if not x[modality].is_floating_point():
            x[modality] = x[modality].long()
    keys = torch.tensor([clip_key(store.value("clip_id", row)) for row in rows], dtype=torch.int64)
    target = torch.tensor([store.value("label", row) for row in rows], dtype=torch.float32)
    confidence = None
    if "text" in modalities and "confidence" in store.schema.names:
        of_clips = [store.sequence("confidence", row) for row in rows]
        if any((of_clip < 1).any() for of_clip in of_clips):
            confidence, _ = pad(of_clips)
    return Batch(keys, x, mask, target, confidence)


def present(modalities: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of a corpus's modalities in MODALITIES."""
    return tuple(MODALITIES.index(m) for m in modalities)
