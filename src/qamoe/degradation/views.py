"""Views: ways of degrading a whole batch, identified by the inputs of their random numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qamoe.data.batch import Batch
from qamoe.data.stats import Stats, frame_stats, has_frames, text_is_vectors
from qamoe.degradation import word_confidence
from qamoe.degradation.features import (
    COPY,
    DRAWN,
    KINDS,
    PAPER_NOISE,
    Reference,
    State,
    copied_state,
    degrade,
    drawn_state,
    fixed_state,
    padded,
    valid_tokens,
)
from qamoe.degradation.spectrum import Spectrum, batch_keys, spectrum_states
from qamoe.rng import MODALITIES, Draws

Partner = Callable[[str, Draws], tuple[Tensor, Tensor]]
_SWAP, _COPY = KINDS.index("swap"), KINDS.index(COPY)


@dataclass(frozen=True)
class CopiedFrames:
    """One modality of the damaged copies of C clips: x (C, T, ...), mask (C, T) and severity (C,).

    Of token ids also the `confidence` of a recogniser, and which are `wrong`, each (C, T).
    """

    x: Tensor
    mask: Tensor
    severity: Tensor
    confidence: Tensor | None = None
    wrong: Tensor | None = None


Copied = Callable[[str, Tensor, Tensor], CopiedFrames]


@dataclass(frozen=True)
class View:
    """Draw `number` of protocol `seed`.

    With `kinds` and `severities` (one per modality), every clip gets the same degradation; `then` holds the kinds and
    severities of a second step. With `announced`, wholly missing modalities are announced to the model.

    Without them, each clip and modality draws a severity and a kind from `drawn`, and from "swap" too if `swap` is set;
    see `drawn_state` for the shares.

    `recognised_share` of the clips has word confidences as if a recogniser had heard it.

    `signal_share` of the damaged draws take one of the clip's damaged copies, of which each modality has as many as
    `copies` says. With `copy`, every clip is its copy of that number.

    With `spectrum`, clips are degraded as in the paper. `batch` clips share lambda and eta, 0 for none: then each clip
    has its own.
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
    recognised_share: float = 0.0
    signal_share: float = 0.0
    copies: tuple[int, ...] = (0,) * len(MODALITIES)
    copy: int | None = None
    swap: bool = False
    announced: bool = False
    then: tuple[tuple[str, ...], tuple[float, ...]] | None = None
    spectrum: Spectrum | None = None
    batch: int = 0

    def sharing(self, keys: Tensor) -> Tensor:
        """Return for each clip of a split, whose keys (N, 2) are given, the key of the clips that share its draw."""
        return batch_keys(self.seed, keys, self.number, self.batch) if self.batch else keys

    def parts(self) -> tuple["View", "View"] | None:
        """Return a view of noise and one of missing for a spectrum of one lambda and one eta, and None otherwise.

        A modality of a clip is degraded by the second if it is lost, and by the first if not.
        """
        if self.spectrum is None or self.spectrum.noise[0] != self.spectrum.noise[1]:
            return None
        noise = uniform_view(PAPER_NOISE, self.spectrum.noise[0], self.seed, self.number)
        return noise, replace(uniform_view("missing", 1.0, self.seed, 0), announced=self.mask_revealed_share == 1)

    def states(self, keys: Tensor, sharing: Tensor | None = None) -> list[State]:
        """Return how each clip is degraded in each step; `keys` (B, 2) are the clip keys.

        `sharing` are the rows of `View.sharing` that belong to these clips; by default each clip has its own draw.
        """
        if self.copy is not None:
            return [copied_state(self.copy, self.copies, len(keys))]
        if self.spectrum is not None:
            shared = keys if sharing is None else sharing
            return spectrum_states(self.spectrum, self.seed, keys, self.number, shared, self.mask_revealed_share)
        if self.kinds is None or self.severities is None:
            shares = (self.clean_share, self.shared_draw_share, self.full_severity_share, self.mask_revealed_share)
            kinds = (*self.drawn, "swap") if self.swap else self.drawn
            return [drawn_state(self.seed, keys, self.number, *shares, kinds, self.signal_share, self.copies)]
        steps = [(self.kinds, self.severities)] + ([self.then] if self.then else [])
        return [fixed_state(*step, len(keys), announced=self.announced) for step in steps]

    def state(self, keys: Tensor) -> State:
        """Return all steps combined into one state."""
        return _combined(self.states(keys))

    def of(self, modality: str) -> "View":
        """Return this view restricted to one modality: equal for two views that degrade that modality the same way."""
        if self.kinds is None or self.severities is None:
            return self
        position = MODALITIES.index(modality)

        def restricted(
            kinds: tuple[str, ...], severities: tuple[float, ...]
        ) -> tuple[tuple[str, ...], tuple[float, ...]]:
            positions = range(len(MODALITIES))
            return (
                tuple(kinds[m] if m == position and severities[m] else "clean" for m in positions),
                tuple(severities[m] if m == position else 0.0 for m in positions),
            )

        steps = [restricted(self.kinds, self.severities)] + ([restricted(*self.then)] if self.then else [])
        if not any(severities[position] for _, severities in steps):
            return View(self.seed, 0, *steps[0])
        return replace(self, kinds=steps[0][0], severities=steps[0][1], then=steps[1] if self.then else None)


def _combined(steps: list[State]) -> State:
    """Combine two steps: the first kind, and the joint severity 1 - (1 - s)(1 - s')."""
    state, *others = steps
    for other in others:
        state = State(
            torch.where(state.kind < 0, other.kind, state.kind),
            1 - (1 - state.severity) * (1 - other.severity),
            state.announced | other.announced,
        )
    return state


def uniform_view(kind: str, severity: float, seed: int, number: int) -> View:
    """Return a view that degrades all modalities by one kind at one severity, each with its own draws."""
    return View(seed, number, (kind,) * len(MODALITIES), (severity,) * len(MODALITIES))


def apply(
    batch: Batch,
    view: View,
    references: dict[str, Reference],
    partner: Partner | None = None,
    sharing: Tensor | None = None,
    copied: Copied | None = None,
) -> tuple[Batch, Tensor, State]:
    """Return the batch under a view, how much was lost (B, 3), and its state; the input is not changed.

    `partner(modality, draws)` returns x and mask of each clip's partner; only views that swap need it. `sharing` is as
    in `View.states`. `copied(modality, rows, numbers)` returns copies of rows of the batch, for views with
    copies. For a view of two
    steps, lost is that of the second step; of a copy it is the severity.
    """
    steps = view.states(batch.keys, sharing)
    said = batch.x.get("text")
    if copied is not None and steps[0].copy is not None:
        batch, said, steps = _with_copies(batch, steps[0], copied)
    xs, masks = {}, {}
    lost = torch.zeros(len(batch), len(MODALITIES), device=batch.keys.device)
    for position, modality in enumerate(MODALITIES):
        if modality not in batch.x:
            continue

        def draws(kind: str, modality: str = modality) -> Draws:
            return Draws(view.seed, batch.keys, modality, kind, view.number)

        x, mask = batch.x[modality], batch.mask[modality]
        for state in steps:
            kind, severity, announced = (
                tensor[:, position].to(batch.keys.device) for tensor in (state.kind, state.severity, state.announced)
            )
            reference = references[modality]
            if partner is not None and bool((kind == _SWAP).any()):
                reference = replace(reference, partner=partner(modality, draws("swap")))
            result = degrade(x, mask, kind, severity, draws, reference)
            of_copy = torch.where(kind == _COPY, severity, result.lost)
            x, mask, lost[:, position] = result.x, result.mask & ~announced[:, None], of_copy
        xs[modality], masks[modality] = x, mask
    state = _combined(steps)
    confidence = _confidence(batch, said, xs, view, references, state)
    return replace(batch, x=xs, mask=masks, confidence=confidence), lost, state


def _with_copies(batch: Batch, state: State, copied: Copied) -> tuple[Batch, Tensor | None, list[State]]:
    """Return the batch with the copies that its state takes, the ids of words that were said (-1 where a copy's word is
    wrong), and the state with the copies' severities.

    A modality that a copy has lost has severity 1, and one that its clip never had has severity 0.
    """
    assert state.copy is not None
    said, confidence, severity = batch.x.get("text"), batch.confidence, state.severity.clone()
    for position, modality in enumerate(MODALITIES):
        numbers = state.copy[:, position]
        rows = (numbers >= 0).nonzero()[:, 0].to(batch.keys.device)
        if modality not in batch.x or not len(rows):
            continue
        of_copies = copied(modality, rows, numbers[rows])
        had, has = batch.mask[modality].any(1)[rows], of_copies.mask.any(1)
        severity[rows, position] = torch.where(has, of_copies.severity, had.to(severity.dtype))
        x, mask = _replaced(batch.x[modality], rows, of_copies.x), _replaced(batch.mask[modality], rows, of_copies.mask)
        if of_copies.wrong is not None and of_copies.confidence is not None:
            said = _replaced(batch.x["text"], rows, of_copies.x.masked_fill(of_copies.wrong, -1))
            if confidence is None and bool((of_copies.confidence < 1).any()):
                confidence = torch.ones_like(batch.mask["text"], dtype=torch.float32)
            confidence = None if confidence is None else _replaced(confidence, rows, of_copies.confidence)
        batch = batch.with_x(**{modality: x}).with_mask(**{modality: mask})
    return replace(batch, confidence=confidence), said, [replace(state, severity=severity)]


def _replaced(x: Tensor, rows: Tensor, other: Tensor) -> Tensor:
    """Return a copy of x (B, T, ...) with `other` (C, T', ...) in these rows, padded with zeros to the longer T."""
    length = max(x.shape[1], other.shape[1])
    return padded(x, length).index_copy(0, rows, padded(other, length))


def _confidence(
    batch: Batch,
    said: Tensor | None,
    xs: dict[str, Tensor],
    view: View,
    references: dict[str, Reference],
    state: State,
) -> Tensor | None:
    """Return the confidence of the words of a degraded batch; `said` (B, T) are the ids of those that were said.

    A swap brings whole words, which are not wrong.
    """
    if (
        said is None
        or "text" not in xs
        or xs["text"].is_floating_point()
        or not (view.recognised_share or batch.confidence is not None)
    ):
        return None
    ids = xs["text"]
    before = F.pad(said, (0, ids.shape[1] - said.shape[1]))
    confidence = torch.ones_like(before, dtype=torch.float32)
    if batch.confidence is not None:
        confidence[:, : batch.confidence.shape[1]] = batch.confidence
    swapped = (state.kind[:, MODALITIES.index("text")] == _SWAP).to(ids.device)[:, None]
    confidence = torch.where(swapped & (ids != before).any(1, keepdim=True), 1.0, confidence)
    words = valid_tokens(ids, torch.ones_like(ids, dtype=torch.bool), references["text"].special)
    draws = Draws(view.seed, batch.keys, "text", word_confidence.STREAM, view.number)
    return word_confidence.simulated(confidence, (ids != before) & ~swapped, words, view.recognised_share, draws)


def references_from_stats(stats: Stats) -> dict[str, Reference]:
    """Return the statistics that degradations need, from stats.json; stored frames are standardised."""
    by_modality = {}
    if not text_is_vectors(stats):
        token_counts = torch.zeros(stats["text"]["vocabulary"], dtype=torch.float64)
        for token, count in stats["text"]["frequencies"]:
            token_counts[token] = count
        frequencies = (token_counts.cumsum(0) / token_counts.sum().clamp(min=1)).float()
        unk, special = stats["text"]["unk"], tuple(stats["text"]["special"])
        by_modality["text"] = Reference(frequencies=frequencies, unk=unk, special=special)
    for modality in MODALITIES:
        if has_frames(stats, modality):
            size, rate = frame_stats(stats, modality)["dimension"], frame_stats(stats, modality).get("rate")
            by_modality[modality] = Reference(mean=torch.zeros(size), deviation=torch.ones(size), rate=rate)
    return by_modality
