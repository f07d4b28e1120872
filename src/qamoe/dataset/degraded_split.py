"""Clips of a split under a fixed list of views, with text encoded once by the frozen text encoder.

Models that fine-tune their text encoder get token ids instead of its states.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qamoe import rng
from qamoe.config.params import digest
from qamoe.data.arrow_store import Store
from qamoe.data.batch import Batch, collate, pad
from qamoe.data.stats import Stats, frame_stats, has_frames
from qamoe.dataset import text_cache
from qamoe.dataset.text_cache import TextStates
from qamoe.degradation import features, spectrum, swap_partners
from qamoe.degradation import views as degradation_views
from qamoe.degradation.features import Reference, State
from qamoe.degradation.swap_partners import SwapPartners
from qamoe.degradation.views import Copied, CopiedFrames, View, apply
from qamoe.extractors.minilm import NAME
from qamoe.files import remove_abandoned
from qamoe.models import text_encoder_bert, text_encoder_frozen
from qamoe.rng import MODALITIES, Draws
from qamoe.source_code import normalised_source

_KEPT_BYTES = 256 << 20  # of batches that `repeated` keeps in memory


@dataclass(frozen=True)
class DegradedSplit:
    """A split and its views.

    `copies` holds the damaged copies, clip after clip. `states` holds the encoded text of all views; it is None for
    models that read token ids, stored vectors or no text.
    Clips are degraded on `device` and stay there.
    """

    store: Store
    views: tuple[View, ...]
    modalities: tuple[str, ...]
    references: dict[str, Reference]
    states: TextStates | None
    device: str = "cpu"
    copies: Store | None = None

    @cached_property
    def _references_on_device(self) -> dict[str, Reference]:
        return {m: reference.to(self.device) for m, reference in self.references.items()}

    @cached_property
    def partners(self) -> SwapPartners:
        return SwapPartners(self.store.clip_ids, self.store.sources)

    @cached_property
    def keys(self) -> Tensor:
        """The clips' keys in every draw, (N, 2) int64."""
        return torch.tensor([rng.clip_key(clip_id) for clip_id in self.store.clip_ids], dtype=torch.int64)

    def sharing(self, view: int) -> Tensor | None:
        """Return the keys (N, 2) of the clips that share a draw, or None where each clip has its own."""
        if not self.views[view].batch:
            return None
        if view not in self._sharing:
            self._sharing[view] = self.views[view].sharing(self.keys)
        return self._sharing[view]

    @cached_property
    def _sharing(self) -> dict[int, Tensor]:
        return {}

    def batches(self, view: int, size: int, random: np.random.Generator) -> list[np.ndarray]:
        """Return the rows of all clips in batches, in a random order; clips that share a draw are one batch."""
        sharing = self.sharing(view)
        if sharing is None:
            return rows_in_batches(len(self.store), size, random, self.lengths)
        numbers = sharing[:, 0].numpy()
        return [np.flatnonzero(numbers == number) for number in random.permutation(numbers.max() + 1)]

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each clip (N,), to batch clips of similar length; None if models do not read token ids."""
        reads_ids = self.states is None and "text" in self.modalities and not self.store.text_is_vectors
        return self.store.lengths("text") if reads_ids else None

    def clean(self, rows: Collection[int], modalities: Sequence[str] | None = None) -> Batch:
        """Return undegraded rows of the split, all modalities or those named, with text as token ids (B, T)."""
        return collate(self.store, rows, self.modalities if modalities is None else modalities)

    def degraded(
        self, view: int, rows: Collection[int], modalities: Sequence[str] | None = None
    ) -> tuple[Batch, Tensor, State]:
        """Return rows under one view, all modalities or those named, the share lost (B, 3) and the drawn state.

        Text is encoded states (B, T, W), or token ids (B, T) if `states` is None.
        """
        partner = _partner(self.store, lambda: self.partners, rows)
        clean = self.clean(rows, modalities).to(self.device)
        sharing = self.sharing(view)
        sharing_of_rows = None if sharing is None else sharing[list(rows)].to(self.device)
        copied = _copied(self.copies, len(self.store), rows)
        batch, lost, state = apply(
            clean, self.views[view], self._references_on_device, partner, sharing_of_rows, copied
        )
        if self.states is not None and "text" in batch.x:
            x, mask = (tensor.to(self.device) for tensor in pad([self.states.of(view, row) for row in rows]))
            confidence = None if batch.confidence is None else batch.confidence[:, : x.shape[1]]
            batch = replace(batch.with_x(text=x).with_mask(text=mask), confidence=confidence)
        return batch, lost, state

    @cached_property
    def _kept(self) -> dict[tuple[int, ...], tuple[Batch, Tensor, State]]:
        return {}

    def repeated(self, view: int, rows: Collection[int]) -> tuple[Batch, Tensor, State]:
        """Return `degraded` for rows that every epoch reads, kept in memory up to a total of 256 MiB."""
        batch_lost_state = self._kept.get((view, *rows))
        if batch_lost_state is None:
            batch_lost_state = self.degraded(view, rows)
            if sum(batch.bytes for batch, _, _ in self._kept.values()) + batch_lost_state[0].bytes <= _KEPT_BYTES:
                self._kept[view, *rows] = batch_lost_state
        return batch_lost_state

    def batch(self, view: int, rows: Collection[int]) -> Batch:
        """Return rows under one view, ready for a model."""
        return self.degraded(view, rows)[0]


def _partner(
    store: Store, swap_partners_of: Callable[[], SwapPartners], rows: Collection[int]
) -> Callable[[str, Draws], tuple[Tensor, Tensor]]:
    """Return a function that loads a modality's frames (B, T, ...) and mask (B, T) from the partners of `rows`.

    `swap_partners_of` is only called by views that swap.
    """

    def load(modality: str, draws: Draws) -> tuple[Tensor, Tensor]:
        batch = collate(store, swap_partners_of().of(rows, draws), (modality,)).to(str(draws.clips.device))
        return batch.x[modality], batch.mask[modality]

    return load


def _copied(copies: Store | None, clips: int, rows: Collection[int]) -> Copied | None:
    """Return a function that loads one modality of copies of `rows`, given places in `rows` and numbers of copies."""
    if copies is None or not len(copies):
        return None
    count, of_rows = len(copies) // clips, np.asarray(list(rows))

    def load(modality: str, places: Tensor, numbers: Tensor) -> CopiedFrames:
        chosen = of_rows[places.cpu().numpy()] * count + numbers.cpu().numpy()
        device = places.device
        x, mask = pad([copies.sequence(modality, row) for row in chosen])
        severity = torch.tensor([copies.value(f"severity_{modality}", row) for row in chosen], dtype=torch.float32)
        if modality != "text":
            return CopiedFrames(x.to(device), mask.to(device), severity.to(device))
        confidence, wrong = (pad([copies.sequence(c, row) for row in chosen])[0] for c in ("confidence", "wrong"))
        tensors = (x.long(), mask, severity, confidence, wrong)
        return CopiedFrames(*(tensor.to(device) for tensor in tensors))

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
    copies: Store | None = None,
) -> DegradedSplit:
    """Open a split under views: encode the text of all views into a cache file in `folder`, or reuse it, and map it.

    `encoder` is the models' frozen text encoder; None leaves text as token ids. Stored text vectors are not encoded.
    """
    if "text" not in modalities or encoder is None or store.text_is_vectors:
        return DegradedSplit(store, tuple(views), modalities, references, None, device, copies)
    modules = (
        rng,
        features,
        spectrum,
        swap_partners,
        degradation_views,
        text_encoder_bert,
        text_encoder_frozen,
        text_cache,
    )
    code = [normalised_source(Path(str(module.__file__))) for module in modules]
    weights_digest = None if encoder == NAME else text_encoder_frozen.digest(encoder)
    key = digest(data_digest, code, weights_digest, store.path.name, [repr(view) for view in views])[:16]
    path = folder / f"text-{store.path.stem}-{key}.npy"
    remove_abandoned(folder, f".text-{store.path.stem}-*.[0-9]*")
    if text_cache.load(path) is None:
        text_cache.encode(_ids(store, views, references, copies), path, device, encoder)
    for other in folder.glob(f"text-{store.path.stem}-*"):
        if other.stem != path.stem:
            other.unlink(missing_ok=True)
    return DegradedSplit(store, tuple(views), modalities, references, text_cache.load(path), device, copies)


def _ids(
    store: Store, views: Sequence[View], references: dict[str, Reference], copies: Store | None
) -> Iterator[list[np.ndarray]]:
    """Yield the token ids (T,) of every clip, view by view; a text announced as missing has none."""
    rows = range(len(store))
    clean = collate(store, rows, ("text",))
    partner = _partner(store, cache(lambda: SwapPartners(store.clip_ids, store.sources)), rows)
    for view in views:
        copied = _copied(copies, len(store), rows)
        batch, _, _ = apply(clean, view, references, partner, view.sharing(clean.keys), copied)
        lengths = batch.mask["text"].sum(1).tolist()
        yield [ids[:length] for ids, length in zip(batch.x["text"].numpy(), lengths, strict=True)]


def feature_sizes(stats: Stats) -> dict[str, int]:
    """Return the frame dimension of each modality that the corpus has, as models see it."""
    return {
        m: frame_stats(stats, m)["dimension"] if has_frames(stats, m) else text_encoder_frozen.WIDTH
        for m in MODALITIES
        if m in stats["modalities"]
    }


def rows_in_batches(
    count: int, size: int, generator: np.random.Generator | None = None, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return row numbers in batches, shuffled by `generator` if given; `lengths` (N,) groups rows of similar length."""
    order = np.arange(count) if generator is None else generator.permutation(count)
    if lengths is not None:
        order = order[np.argsort(lengths[order], kind="stable")]
    batches = [order[start : start + size] for start in range(0, count, size)]
    if lengths is not None and generator is not None:
        batches = [batches[number] for number in generator.permutation(len(batches))]
    return batches


def restrict_threads() -> None:
    """Run torch in one thread: a seed then gives the same bits alone and next to other seeds."""
    torch.set_num_threads(1)
