"""What chooses a checkpoint: the mean validation error over a fixed grid of degraded cells.

A specialist has no grid: it is trained under one cell and chosen in the same one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamoe.config.params import Selection, TrainCommon
from qamoe.data.batch import Batch, present
from qamoe.dataset.degraded_split import DegradedSplit, rows_in_batches
from qamoe.degradation.features import State
from qamoe.degradation.views import View, alike
from qamoe.models.calibration import fit_conformal, fit_temperature
from qamoe.models.checkpoint_config import Calibration
from qamoe.models.factory import oracle_quality
from qamoe.models.model import Model


@dataclass(frozen=True)
class Cells:
    """Places in a list of validation views. `groups` holds, for each place of `selection`, the cell it is a draw of."""

    views: tuple[View, ...]
    selection: tuple[int, ...]
    groups: tuple[int, ...]
    clean: tuple[int, ...]
    fully_degraded: tuple[int, ...]


def selection_cells(params: Selection) -> Cells:
    """The views of params' selection grid, each severity once a draw, and those that trust is anchored on.

    Trust's lower anchor is noise at severity 1, or that of the last kind of a grid without noise: what a model was not
    trained on it does not know to be fully degraded.
    """
    views: list[View] = []
    groups: list[int] = []
    clean: tuple[int, ...] = ()
    cell = 0
    for kind, severities in params.severities.items():
        for severity in severities:
            if severity == 0 and clean:
                continue
            if severity == 0:
                clean = (len(views),)
            for draw in range(1 if severity == 0 else params.draws):
                views.append(alike(kind, severity, params.seed, draw))
                groups.append(cell)
            cell += 1
    selection = tuple(range(len(views)))
    if not clean:
        clean = (len(views),)
        views.append(alike("clean", 0.0, params.seed, 0))
    kind = "noise" if "noise" in params.severities else list(params.severities)[-1]
    anchors = [alike(kind, 1.0, params.seed, draw) for draw in range(params.draws)]
    views += [view for view in anchors if view not in views]
    return Cells(tuple(views), selection, tuple(groups), clean, tuple(views.index(view) for view in anchors))


def specialist(kind: str, severity: float, common: TrainCommon) -> tuple[list[View], Cells]:
    """The training views and the selection cells of a specialist: its own cell in all of them, clean included.

    Draws differ between views and are those of the training's and of the selection's seed, as for every model.
    """
    count = min(common.degrade.views, common.epochs) if severity > 0 else 1
    training = [alike(kind, severity, common.degrade.seed, number) for number in range(count)]
    own = {"missing" if kind == "clean" else kind: (severity,)}
    return training, selection_cells(common.selection.model_copy(update={"severities": own}))


def with_oracle_quality(
    model: Model, degraded: tuple[Batch, Tensor, State], device: str
) -> tuple[Batch, Tensor | None]:
    """A degraded batch, and the quality (B, M) that the model is told of it: None for all but the oracle."""
    batch, lost, state = degraded
    quality = oracle_quality(model, state.with_realised_swaps(lost))
    return batch.to(device), None if quality is None else quality.to(device)


def injected_severity(model: Model, degraded: tuple[Batch, Tensor, State], device: str) -> Tensor:
    """How much damage each modality that the model has took, (B, M): its severity, 0 where it is clean."""
    _, lost, state = degraded
    places = list(present(list(model.encode.encoders)))
    return torch.where(state.kind < 0, 0.0, state.with_realised_swaps(lost).severity)[:, places].to(device)


@torch.no_grad()
def predictions(
    model: Model, valid: DegradedSplit, places: tuple[int, ...], batch_size: int, device: str
) -> dict[str, Any]:
    """Predictions of the whole split under some of its views.

    Returns value and variance (V, N), probabilities (V, N, C) and r (V, N, M), each None where a model has none, and
    target (N,).
    """
    model.eval()
    # Where ids are read, padding costs more than small batches do.
    size = batch_size if valid.lengths is not None else 4 * batch_size
    batches = rows_in_batches(len(valid.store), size, None, valid.lengths)
    sort = np.argsort([row for rows in batches for row in rows])
    found: dict[str, list[np.ndarray]] = {"value": [], "variance": [], "probabilities": [], "r": []}
    for view in places:
        parts = [model(*with_oracle_quality(model, valid.repeated(view, rows), device)) for rows in batches]
        for name, pieces in found.items():
            tensors = [getattr(part, name) for part in parts]
            if tensors[0] is not None:
                pieces.append(torch.cat(tensors).float().cpu().numpy()[sort])
    stacked: dict[str, Any] = {name: np.stack(pieces) if pieces else None for name, pieces in found.items()}
    return {**stacked, "target": np.array(valid.store.labels)}


def _errors(found: dict[str, Any]) -> np.ndarray:
    """What a prediction costs, (V, N)."""
    if found.get("probabilities") is None:
        return np.abs(found["value"] - found["target"])
    of_target = found["probabilities"][:, np.arange(len(found["target"])), found["target"].astype(int)]
    return -np.log(of_target.astype(np.float64).clip(1e-12))


def selection_value(found: dict[str, Any], cells: Cells) -> float:
    """Mean absolute error, of classes mean -log probability of the target: over clips and draws of a cell, then cells.

    Our decision for classes: F1 of few validation clips moves in steps and ties, the likelihood does not.
    """
    by_view = _errors(found).mean(1)
    groups = np.array(cells.groups)
    return float(np.mean([by_view[groups == cell].mean() for cell in sorted(set(cells.groups))]))


def calibration(found: dict[str, Any]) -> Calibration:
    """Calibration of predictions under the selection cells: `sigmas` of intervals, or the `temperature` of classes."""
    views = len(found["value"] if found.get("probabilities") is None else found["probabilities"])
    target = np.tile(found["target"], views)
    if found.get("probabilities") is None:
        return {"sigmas": fit_conformal(found["value"].ravel() - target, np.sqrt(found["variance"].ravel()))}
    said = found["probabilities"].reshape(len(target), -1)
    return {"temperature": fit_temperature(np.log(said.clip(1e-12)), target)}
