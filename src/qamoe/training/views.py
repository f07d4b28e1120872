"""Clips of a split under a fixed list of views, with the frozen text encoder's states made once.

The states are a file that all seeds, models and restarts share: the same bits whatever was killed in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamoe import params as parameters
from qamoe.degradation import draws, frames
from qamoe.degradation import views as degradation_views
from qamoe.degradation.frames import Reference, State
from qamoe.degradation.views import View, apply
from qamoe.features.batch import Batch, collate, pad
from qamoe.features.store import Store
from qamoe.files import written_aside
from qamoe.models import text

_VIEWS_AT_ONCE = 40  # equal sequences of neighbouring views (severities nest) are encoded once


@dataclass(frozen=True)
class Views:
    """A split and its views. `states` (views, tokens of the split, 384) holds the encoded text, memory-mapped."""

    store: Store
    views: tuple[View, ...]
    modalities: tuple[str, ...]
    references: dict[str, Reference]
    states: np.ndarray
    offsets: np.ndarray

    def clean(self, rows: Sequence[int]) -> Batch:
        """Rows of the split as they are stored, text as token ids (B, T)."""
        return collate(self.store, rows, self.modalities)

    def degraded(self, view: int, rows: Sequence[int]) -> tuple[Batch, Tensor, State]:
        """Rows under one view, text as encoded states (B, T, 384); with the share lost (B, 3) and the state drawn."""
        batch, lost, state = apply(self.clean(rows), self.views[view], self.references)
        if "text" in self.modalities:
            states, _ = pad([self.states[view, self.offsets[r] : self.offsets[r + 1]] for r in rows])
            batch = batch.with_x(text=states)
        return batch, lost, state

    def batch(self, view: int, rows: Sequence[int]) -> Batch:
        """Rows under one view, ready for a model."""
        return self.degraded(view, rows)[0]


def open_views(
    store: Store,
    views: Sequence[View],
    modalities: tuple[str, ...],
    references: dict[str, Reference],
    folder: Path,
    data_digest: str,
    device: str,
) -> Views:
    """Make (or find again) the encoded text of all views in `folder`, and map it."""
    lengths = store.lengths("text")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    code = [Path(str(module.__file__)).read_text() for module in (draws, frames, degradation_views, text)]
    key = parameters.digest(data_digest, code, store.path.name, [repr(view) for view in views])[:16]
    path = folder / f"text-{store.path.stem}-{key}.npy"
    if not path.exists():
        _encode(store, views, references, path, int(offsets[-1]), device)
    for other in folder.glob(f"text-{store.path.stem}-*.npy"):
        if other != path:
            other.unlink(missing_ok=True)
    states: Any = np.load(path, mmap_mode="c")  # torch wants writable memory; copy-on-write costs nothing
    return Views(store, tuple(views), modalities, references, states, offsets)


def _encode(
    store: Store,
    views: Sequence[View],
    references: dict[str, Reference],
    path: Path,
    tokens: int,
    device: str,
) -> None:
    everything = collate(store, range(len(store)), ("text",))
    lengths = store.lengths("text")
    with written_aside(path) as aside:
        with aside.open("wb") as file:
            out = np.lib.format.open_memmap(
                file.name, mode="w+", dtype=np.float32, shape=(len(views), tokens, text.WIDTH)
            )
        for start in range(0, len(views), _VIEWS_AT_ONCE):
            some = views[start : start + _VIEWS_AT_ONCE]
            ids = [
                row[:n].numpy()
                for view in some
                for row, n in zip(apply(everything, view, references)[0].x["text"], lengths, strict=True)
            ]
            if tokens:
                out[start : start + len(some)] = np.concatenate(text.encode_all(ids, device)).reshape(
                    len(some), tokens, text.WIDTH
                )
        out.flush()


def feature_sizes(stats: dict[str, Any]) -> dict[str, int]:
    """Frame dimension of each modality that the corpus has, as models see it."""
    sizes = {m: stats[m]["dimension"] for m in stats["modalities"] if m != "text"}
    return {"text": text.WIDTH, **sizes} if "text" in stats["modalities"] else sizes


def rows_in_batches(count: int, size: int, generator: np.random.Generator | None = None) -> list[list[int]]:
    """Row numbers in batches, shuffled where a generator is given."""
    order = np.arange(count) if generator is None else generator.permutation(count)
    return [order[start : start + size].tolist() for start in range(0, count, size)]


def restrict_threads() -> None:
    """One thread a seed, so that a seed gives the same bits alone and beside others."""
    torch.set_num_threads(1)
