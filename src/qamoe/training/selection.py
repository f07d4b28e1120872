"""Selection of a checkpoint: by the mean validation error over a fixed grid of degraded cells.

A specialist has no grid: it is trained and selected in one cell.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from qamoe.config.params import LANDSCAPE, Selection, TrainCommon
from qamoe.data.batch import Batch, present
from qamoe.dataset.degraded_split import DegradedSplit, rows_in_batches
from qamoe.degradation.features import PAPER_NOISE, State
from qamoe.degradation.spectrum import Spectrum
from qamoe.degradation.views import View, uniform_view
from qamoe.errors import UserError
from qamoe.models.calibration import as_pairs, fit_conformal, fit_temperature, present_labels
from qamoe.models.checkpoint_config import Calibration
from qamoe.models.factory import oracle_quality
from qamoe.models.model import Model
from qamoe.rng import Draws, clip_key


@dataclass(frozen=True)
class Cells:
    """Validation views, and the indices of those for each purpose. `groups` is the cell of each view in `selection`."""

    views: tuple[View, ...]
    selection: tuple[int, ...]
    groups: tuple[int, ...]
    clean: tuple[int, ...]
    fully_degraded: tuple[int, ...]


def selection_cells(params: Selection, copies: tuple[int, ...] = ()) -> Cells:
    """Return the views of the selection grid, one per cell and draw, and the views of the trust anchors.

    `copies`: damaged copies of a validation clip by modality; if there are any, they are one more cell.

    The lower anchor of trust is noise at severity 1. For a grid without noise it is the grid's last kind: a model does
    not recognise full degradation by a kind that it was not trained on.
    """
    levels_of = {
        kind: product(severities, severities) if kind == LANDSCAPE else [(severity,) for severity in severities]
        for kind, severities in params.severities.items()
    }
    # Kinds share the clean cell.
    cells = dict.fromkeys(_cell(kind, level, params) for kind, levels in levels_of.items() for level in levels)
    if any(copies):
        clean = uniform_view("clean", 0.0, params.seed, 0)
        of_copies = tuple(replace(clean, kinds=None, copies=copies, copy=number) for number in range(max(copies)))
        cells[of_copies] = None
    views = [view for cell in cells for view in cell]
    groups = tuple(number for number, cell in enumerate(cells) for _ in cell)
    selection = tuple(range(len(views)))
    kind = "noise" if "noise" in params.severities else list(params.severities)[-1]
    anchor = PAPER_NOISE if kind == LANDSCAPE else kind
    (clean,), fully_degraded = (_cell(anchor, (severity,), params) for severity in (0.0, 1.0))
    views += [view for view in (clean, *fully_degraded) if view not in views]
    return Cells(
        tuple(views), selection, groups, (views.index(clean),), tuple(views.index(view) for view in fully_degraded)
    )


def _cell(kind: str, level: tuple[float, ...], params: Selection) -> tuple[View, ...]:
    """Return the views of a cell, one per draw; `level` is the severity, or lambda and eta of the landscape."""
    if not any(level):
        return (uniform_view("clean", 0.0, params.seed, 0),)
    if kind == LANDSCAPE:
        noise, missing = level
        spectrum = Spectrum((noise, noise), (missing, missing))
        return tuple(View(params.seed, draw, spectrum=spectrum) for draw in range(params.draws))
    return tuple(uniform_view(kind, level[0], params.seed, draw) for draw in range(params.draws))


def specialist(kind: str, severity: float, common: TrainCommon) -> tuple[list[View], Cells]:
    """Return the training views and the selection cells of a specialist, all in its own cell.

    Each view has another draw, with the training seed and the selection seed, as for every model.
    """
    count = min(common.degrade.views, common.epochs) if severity > 0 else 1
    training = [uniform_view(kind, severity, common.degrade.seed, number) for number in range(count)]
    severities = {"missing" if kind == "clean" else kind: (severity,)}
    return training, selection_cells(common.selection.model_copy(update={"severities": severities}))


def drawn_clips(clip_ids: list[str], count: int, seed: int, key: str = "train.common.clips") -> list[int]:
    """Return the rows of `count` training clips, in the order of the split; a smaller count has some of the same clips.

    The draw depends on clip ids and seed only. Raises UserError, which names `key`, for more clips than there are.
    """
    if count > len(clip_ids):
        raise UserError(f"{key} is {count}; the training split has {len(clip_ids)} clips.")
    keys = torch.tensor([clip_key(clip_id) for clip_id in clip_ids], dtype=torch.int64)
    words = Draws(seed, keys, None, "clips", 0).words(1)[:, 0].tolist()
    return sorted(sorted(range(len(clip_ids)), key=lambda row: (words[row], clip_ids[row]))[:count])


def with_oracle_quality(
    model: Model, degraded: tuple[Batch, Tensor, State], device: str
) -> tuple[Batch, Tensor | None]:
    """Return a degraded batch, and its true quality (B, M) for the oracle, None for all other models."""
    batch, lost, state = degraded
    quality = oracle_quality(model, state.with_realised_swaps(lost))
    return batch.to(device), None if quality is None else quality.to(device)


def injected_severity(model: Model, degraded: tuple[Batch, Tensor, State], device: str) -> Tensor:
    """Return the severity injected into each modality that the model has, (B, M), 0 if clean."""
    _, lost, state = degraded
    columns = list(present(list(model.encode.encoders)))
    return torch.where(state.kind < 0, 0.0, state.with_realised_swaps(lost).severity)[:, columns].to(device)


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions of N clips under V views, and the clips' targets (N,).

    Regression has value and variance (V, N), classification has probabilities (V, N, C), multilabel has presence
    (V, N, C). r (V, N, M) is None for a model without it.
    """

    target: np.ndarray
    value: np.ndarray | None = None
    variance: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    presence: np.ndarray | None = None
    r: np.ndarray | None = None

    def errors(self) -> np.ndarray:
        """Return the errors (V, N): absolute errors, or -log probabilities of the targets for classes.

        For labels it is the mean over the labels.
        """
        if self.probabilities is not None:
            target_probabilities = self.probabilities[:, np.arange(len(self.target)), self.target.astype(int)]
            return -np.log(target_probabilities.astype(np.float64).clip(1e-12))
        if self.presence is not None:
            has = present_labels(self.target, self.presence.shape[-1])
            right = np.where(has, self.presence, 1 - self.presence)
            return -np.log(right.astype(np.float64).clip(1e-12)).mean(-1)
        assert self.value is not None
        return np.abs(self.value - self.target)


@torch.no_grad()
def predictions(
    model: Model, valid: DegradedSplit, views: tuple[int, ...], batch_size: int, device: str
) -> SplitPredictions:
    """Predict the whole split under some of its views."""
    model.eval()
    # With token ids, padding costs more than small batches.
    size = batch_size if valid.lengths is not None else 4 * batch_size
    batches = rows_in_batches(len(valid.store), size, None, valid.lengths)
    sort = np.argsort([row for rows in batches for row in rows])
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("value", "variance", "probabilities", "presence", "r")}
    for view in views:
        predicted = [model(*with_oracle_quality(model, valid.repeated(view, rows), device)) for rows in batches]
        for name, by_view in arrays.items():
            tensors = [getattr(prediction, name) for prediction in predicted]
            if tensors[0] is not None:
                by_view.append(torch.cat(tensors).float().cpu().numpy()[sort])
    stacked = {name: np.stack(by_view) if by_view else None for name, by_view in arrays.items()}
    return SplitPredictions(np.array(valid.store.labels), **stacked)


def selection_value(predicted: SplitPredictions, cells: Cells) -> float:
    """Return the mean error (see `SplitPredictions.errors`), over the clips and draws of a cell and then over cells.

    Our decision for classification: the likelihood, because the F1 of few validation clips changes in steps and ties.
    """
    by_view = predicted.errors().mean(1)
    groups = np.array(cells.groups)
    return float(np.mean([by_view[groups == cell].mean() for cell in sorted(set(cells.groups))]))


def calibration(predicted: SplitPredictions) -> Calibration:
    """Fit the calibration on the selection cells: `sigmas` of intervals, or the `temperature` of classes."""
    target = np.tile(predicted.target, len(predicted.errors()))
    if predicted.probabilities is not None:
        probabilities = predicted.probabilities.reshape(len(target), -1)
        return {"temperature": fit_temperature(np.log(probabilities.clip(1e-12)), target)}
    if predicted.presence is not None:
        labels = predicted.presence.shape[-1]
        pairs = as_pairs(predicted.presence.reshape(-1, labels).astype(np.float64))
        return {"temperature": fit_temperature(np.log(pairs.clip(1e-12)), present_labels(target, labels).ravel())}
    assert predicted.value is not None
    assert predicted.variance is not None
    return {"sigmas": fit_conformal(predicted.value.ravel() - target, np.sqrt(predicted.variance.ravel()))}
