"""Clips of a split under a fixed list of views, with the frozen text encoder's states made once.

For models that fine-tune their text encoder there are no such states: a batch then holds token ids.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qamoe import rng as draws
from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store
from qamoe.data.batch import Batch, collate, pad
from qamoe.data.stats import Stats, frame_stats, has_frames
from qamoe.dataset import text_cache as text_states
from qamoe.dataset.text_cache import TextStates
from qamoe.degradation import features
from qamoe.degradation import swap_partners as partners
from qamoe.degradation import views as degradation_views
from qamoe.degradation.features import Reference, State
from qamoe.degradation.swap_partners import SwapPartners
from qamoe.degradation.views import View, apply
from qamoe.extractors.minilm import NAME
from qamoe.files import remove_abandoned
from qamoe.models import text_encoder_bert, text_encoder_frozen
from qamoe.rng import MODALITIES, Draws
from qamoe.source_code import normalised_source

_KEPT = 256 << 20  # bytes of batches that are asked for again and again


@dataclass(frozen=True)
class DegradedSplit:
    """A split and its views; `states` holds the encoded text of all of them, None where models read ids or nothing.

    Clips are degraded on `device`, and stay there.
    """

    store: Store
    views: tuple[View, ...]
    modalities: tuple[str, ...]
    references: dict[str, Reference]
    states: TextStates | None
    device: str = "cpu"

    @cached_property
    def _references(self) -> dict[str, Reference]:
        return {m: reference.to(self.device) for m, reference in self.references.items()}

    @cached_property
    def partners(self) -> SwapPartners:
        return SwapPartners(self.store.clip_ids, self.store.sources)

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each clip (N,) where models read them, which takes longest: batches go by them then."""
        reads_ids = self.states is None and "text" in self.modalities and not self.store.text_is_vectors
        return self.store.lengths("text") if reads_ids else None

    def clean(self, rows: Collection[int], modalities: Sequence[str] | None = None) -> Batch:
        """Rows of the split as they are stored, all modalities or those named, text as token ids (B, T)."""
        return collate(self.store, rows, self.modalities if modalities is None else modalities)

    def degraded(
        self, view: int, rows: Collection[int], modalities: Sequence[str] | None = None
    ) -> tuple[Batch, Tensor, State]:
        """Rows under one view, all modalities or those named, with the share lost (B, 3) and the state drawn.

        Text is encoded states (B, T, W), or token ids (B, T) where there are none.
        """
        partner = _partner(self.store, lambda: self.partners, rows)
        clean = self.clean(rows, modalities).to(self.device)
        batch, lost, state = apply(clean, self.views[view], self._references, partner)
        if self.states is not None and "text" in batch.x:
            x, mask = (part.to(self.device) for part in pad([self.states.of(view, row) for row in rows]))
            batch = batch.with_x(text=x).with_mask(text=mask)
        return batch, lost, state

    @cached_property
    def _kept(self) -> dict[tuple[int, ...], tuple[Batch, Tensor, State]]:
        return {}

    def repeated(self, view: int, rows: Collection[int]) -> tuple[Batch, Tensor, State]:
        """`degraded` for rows that are asked for in every epoch: kept in memory as long as all of them take little."""
        batch_lost_state = self._kept.get((view, *rows))
        if batch_lost_state is None:
            batch_lost_state = self.degraded(view, rows)
            if sum(batch.bytes for batch, _, _ in self._kept.values()) + batch_lost_state[0].bytes <= _KEPT:
                self._kept[view, *rows] = batch_lost_state
        return batch_lost_state

    def batch(self, view: int, rows: Collection[int]) -> Batch:
        """Rows under one view, ready for a model."""
        return self.degraded(view, rows)[0]


def _partner(
    store: Store, among: Callable[[], SwapPartners], rows: Collection[int]
) -> Callable[[str, Draws], tuple[Tensor, Tensor]]:
    """What gives a modality's frames (B, T, ...) and mask (B, T) of the clips that `rows` are swapped with.

    `among` lists all clips, which most views never ask for.
    """

    def load(modality: str, draws: Draws) -> tuple[Tensor, Tensor]:
        batch = collate(store, among().of(rows, draws), (modality,)).to(str(draws.clips.device))
        return batch.x[modality], batch.mask[modality]

    return load


def open_views(
    store: Store,
    views: Sequence[View],
    modalities: tuple[str, ...],
    references: dict[str, Reference],
    folder: Path,
    data_digest: str,
    device: str,
    *,
    encoder: str | None = NAME,
) -> DegradedSplit:
    """Make (or find again) the text of all views, encoded, in `folder`, and map it.

    `encoder` is that of models that have a frozen one; None leaves text as token ids. Stored text vectors stay as they
    are.
    """
    if "text" not in modalities or encoder is None or store.text_is_vectors:
        return DegradedSplit(store, tuple(views), modalities, references, None, device)
    modules = (draws, features, partners, degradation_views, text_encoder_bert, text_encoder_frozen, text_states)
    code = [normalised_source(Path(str(module.__file__))) for module in modules]
    weights = None if encoder == NAME else text_encoder_frozen.digest(encoder)
    key = parameters.digest(data_digest, code, weights, store.path.name, [repr(view) for view in views])[:16]
    path = folder / f"text-{store.path.stem}-{key}.npy"
    remove_abandoned(folder, f"text-{store.path.stem}-*")
    if text_states.load(path) is None:
        text_states.encode(_ids(store, views, references), path, device, encoder)
    for other in folder.glob(f"text-{store.path.stem}-*"):
        if other.stem != path.stem:
            other.unlink(missing_ok=True)
    return DegradedSplit(store, tuple(views), modalities, references, text_states.load(path), device)


def _ids(store: Store, views: Sequence[View], references: dict[str, Reference]) -> Iterator[list[np.ndarray]]:
    """The token ids (T,) of every clip, view by view; none of a clip whose text is announced as missing."""
    rows = range(len(store))
    clean = collate(store, rows, ("text",))
    partners = cache(lambda: SwapPartners(store.clip_ids, store.sources))
    partner = _partner(store, partners, rows)
    for view in views:
        batch, _, _ = apply(clean, view, references, partner)
        lengths = batch.mask["text"].sum(1).tolist()
        yield [ids[:length] for ids, length in zip(batch.x["text"].numpy(), lengths, strict=True)]


def feature_sizes(stats: Stats) -> dict[str, int]:
    """Frame dimension of each modality that the corpus has, as models see it."""
    return {
        m: frame_stats(stats, m)["dimension"] if has_frames(stats, m) else text_encoder_frozen.WIDTH
        for m in MODALITIES
        if m in stats["modalities"]
    }


def rows_in_batches(
    count: int, size: int, generator: np.random.Generator | None = None, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """Row numbers in batches, shuffled where a generator is given; with `lengths` (N,) a batch holds alike ones."""
    order = np.arange(count) if generator is None else generator.permutation(count)
    if lengths is not None:
        order = order[np.argsort(lengths[order], kind="stable")]
    batches = [order[start : start + size] for start in range(0, count, size)]
    if lengths is not None and generator is not None:
        batches = [batches[number] for number in generator.permutation(len(batches))]
    return batches


def restrict_threads() -> None:
    """One thread a seed, so that a seed gives the same bits alone and beside others."""
    torch.set_num_threads(1)
