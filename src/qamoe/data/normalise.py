"""Clean and standardise frames with statistics of the training split only."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qamoe.data.arrow_store import Store
from qamoe.data.stats import ColumnStats

_CONSTANT = 1e-8
_FURTHEST = 1e6


@dataclass(frozen=True)
class Columns:
    """The columns to keep (all that are not constant), with their training mean and standard deviation.

    `unfit` counts NaN and infinite values.
    """

    kept: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    unfit: int

    def to_json(self) -> ColumnStats:
        return {
            "kept": self.kept.tolist(),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
            "unfit": self.unfit,
            "dimension": len(self.kept),
        }

    @classmethod
    def from_json(cls, content: ColumnStats) -> "Columns":
        return cls(
            np.array(content["kept"], np.int64),
            np.array(content["mean"], np.float64),
            np.array(content["deviation"], np.float64),
            content["unfit"],
        )


def fit_columns(store: Store, rows: np.ndarray) -> Columns:
    """Compute mean and standard deviation per column over all known frame values of `rows` (float64)."""
    count: Any = 0
    total: Any = 0.0
    unfit = 0
    sequences = [store.sequence("frames", int(row)) for row in rows]
    for frames in sequences:
        known = _known(frames)
        unfit += int((~np.isfinite(frames)).sum())
        count = count + known.sum(0)
        total = total + np.where(known, frames, 0).sum(0, dtype=np.float64)
    mean = total / np.maximum(count, 1)
    spread: Any = 0.0
    for frames in sequences:
        spread = spread + (np.where(_known(frames), frames - mean, 0.0) ** 2).sum(0)
    deviation = np.sqrt(spread / np.maximum(count, 1))
    kept = np.flatnonzero(deviation > _CONSTANT * np.maximum(1.0, np.abs(mean)))
    return Columns(kept, mean[kept], deviation[kept], unfit)


def clean(frames: np.ndarray, columns: Columns) -> np.ndarray:
    """Standardise frames (T, D) -> (T, kept) float32; unknown values become zero, the training mean.

    These are NaN, infinities and a frame of zeros: training knows a missing frame as zeros after standardisation.
    Values are clipped to _FURTHEST standard deviations, so that float32 can hold them.
    """
    chosen = frames[:, columns.kept].astype(np.float64)
    with np.errstate(invalid="ignore"):
        standard = (chosen - columns.mean) / columns.deviation
    known = np.where(_known(frames)[:, columns.kept] & np.isfinite(standard), standard, 0.0)
    return known.clip(-_FURTHEST, _FURTHEST).astype(np.float32)


def _known(frames: np.ndarray) -> np.ndarray:
    """Return which values of frames (T, D) are known -> (T, D).

    None of a frame of zeros is: OpenFace and the files of published corpora have one where no face was found, and
    aligned files at [CLS] and [SEP].
    """
    return np.isfinite(frames) & frames.any(1, keepdims=True)
