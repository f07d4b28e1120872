"""A cache of encoded modalities: each modality is degraded and encoded once per degradation, for all cells.

The draws of a modality do not depend on the others. The slice `alone` therefore shares all its degradations with the
curves, and all cells share their clean modalities. The cells of a landscape choose, clip by clip, between the encodings
of noisy and of lost modalities.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.degradation.views import View
from qamoe.models.checkpoint import Trained
from qamoe.rng import MODALITIES


@dataclass(frozen=True)
class Encoding:
    """One modality of N clips under one degradation.

    It has the share lost (N,), whether any frame is valid (N,), and the vectors (N, D) of each checkpoint, None for a
    checkpoint that does not read the modality.
    """

    lost: Tensor
    present: Tensor
    vectors: tuple[Tensor | None, ...]


class Encodings:
    """The encodings that `views` need, each kept from the first view that uses it to the last.

    `batches` are row numbers, N in total; encodings are in their order. `every` maps a function over the checkpoints,
    like `map`.
    """

    def __init__(
        self,
        trained: Sequence[Trained],
        split: DegradedSplit,
        batches: Sequence[Sequence[int]],
        views: Iterable[View],
        device: str,
        every: Callable[..., Iterable[dict[str, Tensor]]] = map,
    ) -> None:
        self.trained, self.split, self.batches, self.device, self.every = trained, split, batches, device, every
        self.view_indices = {view: index for index, view in enumerate(split.views)}
        encoded = (part for view in views for part in view.parts() or (view,))
        self.uses = Counter((m, view.of(m)) for view in encoded for m in split.modalities)
        self.kept: dict[tuple[str, View], Encoding] = {}

    def of(self, view: View) -> dict[str, Encoding]:
        """Return the encoding of each modality of the split under a view."""
        parts = view.parts()
        if parts is None:
            return self._of(view)
        noisy, lost = (self._of(part) for part in parts)
        keys = self.split.keys[[row for rows in self.batches for row in rows]]
        is_lost = view.states(keys)[-1].kind >= 0
        return {m: _mixed(noisy[m], lost[m], is_lost[:, MODALITIES.index(m)]) for m in self.split.modalities}

    def _of(self, view: View) -> dict[str, Encoding]:
        keys = {m: (m, view.of(m)) for m in self.split.modalities}
        new = [m for m, key in keys.items() if key not in self.kept]
        self.kept |= {keys[m]: encoding for m, encoding in self._encode(view, new).items()}
        encodings = {m: self.kept[key] for m, key in keys.items()}
        for key in keys.values():
            self.uses[key] -= 1
            if not self.uses[key]:
                del self.kept[key]
        return encodings

    def _encode(self, view: View, modalities: Sequence[str]) -> dict[str, Encoding]:
        if not modalities:
            return {}
        lost: list[Tensor] = []
        present: list[dict[str, Tensor]] = []
        vectors: list[list[dict[str, Tensor]]] = []
        for rows in self.batches:
            batch, lost_share, _ = self.split.degraded(self.view_indices[view], rows, modalities)
            on_device = batch.to(self.device)
            vectors.append(list(self.every(lambda model, b=on_device: model.vectors(b), self.trained)))
            lost.append(lost_share.cpu())
            present.append({m: mask.any(1).cpu() for m, mask in batch.mask.items()})
        return {
            m: Encoding(
                torch.cat(lost)[:, MODALITIES.index(m)],
                torch.cat([here[m] for here in present]),
                tuple(_joined(of_batches, m) for of_batches in zip(*vectors, strict=True)),
            )
            for m in modalities
        }


def _mixed(noisy: Encoding, lost: Encoding, is_lost: Tensor) -> Encoding:
    """Return the encoding of clips whose modality is lost where `is_lost` (N,), and noisy elsewhere."""

    def chosen(of_lost: Tensor, of_noisy: Tensor) -> Tensor:
        return torch.where(is_lost.to(of_lost.device).view(-1, *[1] * (of_lost.ndim - 1)), of_lost, of_noisy)

    return Encoding(
        chosen(lost.lost, torch.zeros_like(noisy.lost)),  # as of the second step of any view
        chosen(lost.present, noisy.present),
        tuple(
            None if of_lost is None or of_noisy is None else chosen(of_lost, of_noisy)
            for of_lost, of_noisy in zip(lost.vectors, noisy.vectors, strict=True)
        ),
    )


def _joined(parts: Sequence[dict[str, Tensor]], modality: str) -> Tensor | None:
    return torch.cat([vectors[modality] for vectors in parts]) if modality in parts[0] else None


def of_checkpoint(encoded: dict[str, Encoding], number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a checkpoint's vectors and which clips have a valid frame, both by modality."""
    vectors = {m: encoding.vectors[number] for m, encoding in encoded.items()}
    present = {m: encoding.present for m, encoding in encoded.items()}
    return {m: vector for m, vector in vectors.items() if vector is not None}, present
