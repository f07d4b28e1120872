"""A view: one way of degrading a whole batch, named by what its random numbers depend on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qamoe.degradation.draws import MODALITIES, Draws
from qamoe.degradation.frames import Reference, State, degrade, drawn_state, fixed_state
from qamoe.features.batch import Batch


@dataclass(frozen=True)
class View:
    """A draw of protocol `seed`. With `kinds` and `severities` (one a modality) every clip gets the same; without,
    each clip and modality draws its own kind and severity, a `clean_share` of the draws stays clean, a `whole_share`
    of the severities is 1, and an `alike_share` of the clips draws once for all its modalities."""

    seed: int
    number: int
    kinds: tuple[str, ...] | None = None
    severities: tuple[float, ...] | None = None
    clean_share: float = 0.0
    alike_share: float = 0.0
    whole_share: float = 0.0

    def state(self, keys: Tensor) -> State:
        """How each clip (B, 2) is degraded."""
        if self.kinds is None or self.severities is None:
            return drawn_state(self.seed, keys, self.number, self.clean_share, self.alike_share, self.whole_share)
        return fixed_state(self.kinds, self.severities, len(keys))


def alike(kind: str, severity: float, seed: int, number: int) -> View:
    """All modalities degraded by the same kind at the same severity, each by draws of its own."""
    return View(seed, number, (kind,) * len(MODALITIES), (severity,) * len(MODALITIES))


def apply(batch: Batch, view: View, references: dict[str, Reference]) -> tuple[Batch, Tensor, State]:
    """The batch under a view, the share lost (B, 3), and the state that was drawn; the input is not changed."""
    state = view.state(batch.keys)
    changed = {}
    lost = torch.zeros(len(batch), len(MODALITIES), device=batch.keys.device)
    for place, modality in enumerate(MODALITIES):
        if modality not in batch.x:
            continue

        def draws(kind: str, modality: str = modality) -> Draws:
            return Draws(view.seed, batch.keys, modality, kind, view.number)

        result = degrade(
            batch.x[modality],
            batch.mask[modality],
            state.kind[:, place].to(batch.keys.device),
            state.severity[:, place].to(batch.keys.device),
            draws,
            references[modality],
        )
        changed[modality] = result.x
        lost[:, place] = result.lost
    return batch.with_x(**changed), lost, state


def references(stats: dict[str, Any]) -> dict[str, Reference]:
    """What degradations need from the training split, out of stats.json; stored frames are standardised."""
    counts = torch.zeros(stats["text"]["vocabulary"], dtype=torch.float64)
    for token, count in stats["text"]["frequencies"]:
        counts[token] = count
    shares = (counts.cumsum(0) / counts.sum().clamp(min=1)).float()
    found = {"text": Reference(frequencies=shares, unk=stats["text"]["unk"], special=tuple(stats["text"]["special"]))}
    for modality in ("audio", "vision"):
        if modality in stats:
            size = stats[modality]["dimension"]
            found[modality] = Reference(mean=torch.zeros(size), deviation=torch.ones(size))
    return found
