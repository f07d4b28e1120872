"""Metrics as the field defines them (thuiar/MMSA, metricsTop), each of arrays (N,) of predictions and targets.

Accuracies are shares in [0, 1]. The traps are in docs/evaluation.md: half to even rounding, what zero counts as,
the argument order of F1, the correlation of a constant prediction, MAE of predictions that are not clipped.
"""

from typing import Any

import numpy as np

Metrics = dict[str, float]


def _rounded_accuracy(prediction: np.ndarray, target: np.ndarray, limit: float) -> float:
    """Share of equal values after clipping to [-limit, limit] and rounding half to even."""
    return float((np.round(prediction.clip(-limit, limit)) == np.round(target.clip(-limit, limit))).mean())


def _binary(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, F1 weighted by the classes' share of the target, and balanced accuracy of booleans (N,)."""
    if not len(target):
        return (float("nan"),) * 3
    weighted, recalls = 0.0, []
    for value in (False, True):
        here = target == value
        hits = float((prediction[here] == value).sum())
        guessed = float((prediction == value).sum())
        weighted += here.mean() * (2 * hits / (guessed + here.sum()) if guessed + here.sum() else 0.0)
        if here.any():
            recalls.append(hits / here.sum())
    return float((prediction == target).mean()), float(weighted), float(np.mean(recalls))


def correlation(prediction: np.ndarray, target: np.ndarray) -> tuple[float, bool]:
    """Pearson's r, and True where it is undefined (a constant side) and therefore given as 0."""
    scale = max(1.0, float(np.abs(prediction).max(initial=0.0)))
    if len(target) < 2 or prediction.std() < 1e-7 * scale or target.std() == 0:
        return 0.0, True
    return float(np.corrcoef(prediction, target)[0, 1]), False


def regression(prediction: np.ndarray, target: np.ndarray) -> Metrics:
    """All point metrics of a regression task with labels around 0."""
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    corr, undefined = correlation(prediction, target)
    has0 = _binary(prediction >= 0, target >= 0)
    some = target != 0
    non0 = _binary(prediction[some] > 0, target[some] > 0)
    return {
        "mae": float(np.abs(prediction - target).mean()),
        "mean_error": float((prediction - target).mean()),
        "corr": corr,
        "corr_undefined": float(undefined),
        "acc7": _rounded_accuracy(prediction, target, 3),
        "acc5": _rounded_accuracy(prediction, target, 2),
        "acc2_has0": has0[0],
        "f1_has0": has0[1],
        "acc2_non0": non0[0],
        "f1_non0": non0[1],
        "balanced_acc2": non0[2],
    }


def uncertainty(prediction: np.ndarray, variance: np.ndarray, target: np.ndarray, sigmas: dict[str, float]) -> Metrics:
    """Gaussian NLL, and coverage and width of the calibrated intervals.

    `sigmas` maps a level to how many sigmas its interval reaches out.
    """
    residual = prediction.astype(np.float64) - target
    deviation = np.sqrt(variance.astype(np.float64))
    found = {"nll": float((0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)).mean())}
    for level, reach in sigmas.items():
        name = f"{float(level) * 100:.0f}"
        found[f"coverage_{name}"] = float((np.abs(residual) <= reach * deviation).mean())
        found[f"width_{name}"] = float((2 * reach * deviation).mean())
    return found


def of_predictions(rows: Any, sigmas: dict[str, float]) -> Metrics:
    """All metrics of rows of predictions.parquet that belong to one cell and draw."""
    prediction, target = rows["prediction"].to_numpy(), rows["target"].to_numpy()
    return regression(prediction, target) | uncertainty(prediction, rows["variance"].to_numpy(), target, sigmas)
