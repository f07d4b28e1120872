"""What a search measures of a trial, from the predictions of the selection cells of the validation split."""

import numpy as np

from qamoe.config.search_space import DEGRADED_FROM
from qamoe.evaluation.auroc import probability_above
from qamoe.training.selection import Cells, SplitPredictions, selection_value


def measures(predicted: SplitPredictions, cells: Cells, present: np.ndarray) -> dict[str, float]:
    """Return the objectives by name, those that the model and the cells have.

    error: the mean over the selection cells. clean, degraded: the mean over the clean one, and over the others. trust:
    AUROC of r, clean against severity DEGRADED_FROM and above, over clips that have the modality, and the mean over
    modalities. predicted: of the selection views. present (N, M): whether a clip has a modality.
    """
    groups = np.array(cells.groups)
    severity = np.array([_severity(cells, view) for view in cells.selection])
    clean = np.isin(cells.selection, cells.clean)
    by_view = predicted.errors().mean(1)
    found = {"error": selection_value(predicted, cells)}
    for name, chosen in (("clean", clean), ("degraded", ~clean)):
        if chosen.any():
            found[name] = float(np.mean([by_view[groups == cell].mean() for cell in sorted(set(groups[chosen]))]))
    degraded = severity >= DEGRADED_FROM
    if predicted.r is not None and clean.any() and degraded.any():
        columns = [column for column in range(present.shape[1]) if present[:, column].any()]
        r = [predicted.r[:, present[:, column], column] for column in columns]
        found["trust"] = float(np.mean([probability_above(of[clean].ravel(), of[degraded].ravel()) for of in r]))
    return found


def _severity(cells: Cells, view: int) -> float:
    """Return the severity that every modality of every clip has at least; in a landscape what is lost has 1."""
    spectrum, severities = cells.views[view].spectrum, cells.views[view].severities
    if spectrum is not None:
        return spectrum.noise[0]
    assert severities is not None, "a selection view has one severity for every modality"
    return severities[0]
