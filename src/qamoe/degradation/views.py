"""A view: one way of degrading a whole batch, named by what its random numbers depend on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qamoe.data.batch import Batch
from qamoe.data.stats import Stats, frame_stats, has_frames, text_is_vectors
from qamoe.degradation.features import DRAWN, KINDS, Reference, State, degrade, drawn_state, fixed_state
from qamoe.rng import MODALITIES, Draws

Partner = Callable[[str, Draws], tuple[Tensor, Tensor]]
_SWAP = KINDS.index("swap")


@dataclass(frozen=True)
class View:
    """A draw of protocol `seed`. With `kinds` and `severities` (one a modality) every clip gets the same; without,
    each clip and modality draws its own kind of `drawn` and severity, a `clean_share` of the draws stays clean, a
    `full_severity_share` of the severities is 1, and a `shared_draw_share` of the clips draws once for all its
    modalities; `swap` is among the kinds where asked for.

    `then` holds kinds and severities that are applied to the result. What is wholly missing is told to the model where
    `announced`, or for a `mask_revealed_share` of what was drawn.
    """

    seed: int
    number: int
    kinds: tuple[str, ...] | None = None
    severities: tuple[float, ...] | None = None
    drawn: tuple[str, ...] = DRAWN
    clean_share: float = 0.0
    shared_draw_share: float = 0.0
    full_severity_share: float = 0.0
    mask_revealed_share: float = 0.0
    swap: bool = False
    announced: bool = False
    then: tuple[tuple[str, ...], tuple[float, ...]] | None = None

    def states(self, keys: Tensor) -> list[State]:
        """How each clip (B, 2) is degraded, step by step."""
        if self.kinds is None or self.severities is None:
            shares = (self.clean_share, self.shared_draw_share, self.full_severity_share, self.mask_revealed_share)
            kinds = (*self.drawn, "swap") if self.swap else self.drawn
            return [drawn_state(self.seed, keys, self.number, *shares, kinds)]
        steps = [(self.kinds, self.severities)] + ([self.then] if self.then else [])
        return [fixed_state(*step, len(keys), announced=self.announced) for step in steps]

    def state(self, keys: Tensor) -> State:
        """All steps as one."""
        return _as_one(self.states(keys))

    def of(self, modality: str) -> "View":
        """What this view does to one modality: equal for two views that degrade it alike, the others aside."""
        if self.kinds is None or self.severities is None:
            return self
        place = MODALITIES.index(modality)

        def alone(kinds: tuple[str, ...], severities: tuple[float, ...]) -> tuple[tuple[str, ...], tuple[float, ...]]:
            here = range(len(MODALITIES))
            return (
                tuple(kinds[m] if m == place and severities[m] else "clean" for m in here),
                tuple(severities[m] if m == place else 0.0 for m in here),
            )

        steps = [alone(self.kinds, self.severities)] + ([alone(*self.then)] if self.then else [])
        if not any(severities[place] for _, severities in steps):
            return View(self.seed, 0, *steps[0])
        return replace(self, kinds=steps[0][0], severities=steps[0][1], then=steps[1] if self.then else None)


def _as_one(steps: list[State]) -> State:
    """The first kind of the two, and the severity of both, 1 - (1 - s)(1 - s')."""
    state, *others = steps
    for other in others:
        state = State(
            torch.where(state.kind < 0, other.kind, state.kind),
            1 - (1 - state.severity) * (1 - other.severity),
            state.announced | other.announced,
        )
    return state


def alike(kind: str, severity: float, seed: int, number: int) -> View:
    """All modalities degraded by the same kind at the same severity, each by draws of its own."""
    return View(seed, number, (kind,) * len(MODALITIES), (severity,) * len(MODALITIES))


def apply(
    batch: Batch, view: View, references: dict[str, Reference], partner: Partner | None = None
) -> tuple[Batch, Tensor, State]:
    """The batch under a view, how much was lost (B, 3), and its state; the input is not changed.

    `partner(modality, draws)` gives x and mask of each clip's partner, and is needed by views that swap. Where a view
    has two steps, lost is the second's.
    """
    steps = view.states(batch.keys)
    xs, masks = {}, {}
    lost = torch.zeros(len(batch), len(MODALITIES), device=batch.keys.device)
    for place, modality in enumerate(MODALITIES):
        if modality not in batch.x:
            continue

        def draws(kind: str, modality: str = modality) -> Draws:
            return Draws(view.seed, batch.keys, modality, kind, view.number)

        x, mask = batch.x[modality], batch.mask[modality]
        for state in steps:
            kind, severity, announced = (
                part[:, place].to(batch.keys.device) for part in (state.kind, state.severity, state.announced)
            )
            reference = references[modality]
            if partner is not None and bool((kind == _SWAP).any()):
                reference = replace(reference, partner=partner(modality, draws("swap")))
            result = degrade(x, mask, kind, severity, draws, reference)
            x, mask, lost[:, place] = result.x, result.mask & ~announced[:, None], result.lost
        xs[modality], masks[modality] = x, mask
    return replace(batch, x=xs, mask=masks), lost, _as_one(steps)


def references(stats: Stats) -> dict[str, Reference]:
    """What degradations need from the training split, out of stats.json; stored frames are standardised."""
    by_modality = {}
    if not text_is_vectors(stats):
        counts = torch.zeros(stats["text"]["vocabulary"], dtype=torch.float64)
        for token, count in stats["text"]["frequencies"]:
            counts[token] = count
        shares = (counts.cumsum(0) / counts.sum().clamp(min=1)).float()
        unk, special = stats["text"]["unk"], tuple(stats["text"]["special"])
        by_modality["text"] = Reference(frequencies=shares, unk=unk, special=special)
    for modality in MODALITIES:
        if has_frames(stats, modality):
            size, rate = frame_stats(stats, modality)["dimension"], frame_stats(stats, modality).get("rate")
            by_modality[modality] = Reference(mean=torch.zeros(size), deviation=torch.ones(size), rate=rate)
    return by_modality
