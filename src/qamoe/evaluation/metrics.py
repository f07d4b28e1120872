"""Metrics as the field defines them (thuiar/MMSA, metricsTop), each of arrays (N,) of predictions and targets.

Accuracies are shares in [0, 1]. The traps are in docs/evaluation.md: half to even rounding, what zero counts as,
the argument order of F1, the correlation of a constant prediction, MAE of predictions that are not clipped.
"""

from typing import Any

import numpy as np

from qamoe.models.calibration import tempered

Metrics = dict[str, float]

LIMITS = (-3.0, 3.0)  # of the labels of MOSI and MOSEI
SIMS = (-1.0, 1.0)  # of the labels of CH-SIMS, which has accuracies of its own
SIMS_CUTS = {"2": (0.0,), "3": (-0.1, 0.1), "5": (-0.7, -0.1, 0.1, 0.7)}
BINS = 15  # of confidence in the calibration error of classes
LOWER_IS_BETTER = ("mae", "nll", "corr_undefined", "width_", "calibration_error", "risk_coverage")  # beginnings


def lower_is_better(metric: Any) -> bool:
    return str(metric).startswith(LOWER_IS_BETTER)


def _rounded_accuracy(prediction: np.ndarray, target: np.ndarray, limit: float) -> float:
    """Share of equal values after clipping to [-limit, limit] and rounding half to even."""
    return float((np.round(prediction.clip(-limit, limit)) == np.round(target.clip(-limit, limit))).mean())


def _counts(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, predictions and targets (C,) of each class that occurs on either side, classes in order."""
    classes = np.union1d(prediction, target)
    predicted, true = prediction == classes[:, None], target == classes[:, None]
    return (predicted & true).sum(1), predicted.sum(1), true.sum(1)


def _per_class(hits: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Shares (C,); 0 where there is nothing to take a share of."""
    return np.divide(hits, of, out=np.zeros(len(hits)), where=of > 0)


def _binary(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, F1 weighted by the classes' share of the target, and balanced accuracy of booleans (N,)."""
    if not len(target):
        return (float("nan"),) * 3
    hits, predicted, true = _counts(prediction, target)
    f1 = _per_class(2 * hits, predicted + true)
    return (
        float(hits.sum() / true.sum()),
        float(f1 @ true / true.sum()),
        float((hits[true > 0] / true[true > 0]).mean()),
    )


def correlation(prediction: np.ndarray, target: np.ndarray) -> tuple[float, bool]:
    """Pearson's r, and True where it is undefined (a constant side) and therefore given as 0."""
    scale = max(1.0, float(np.abs(prediction).max(initial=0.0)))
    if len(target) < 2 or prediction.std() < 1e-7 * scale or target.std() == 0:
        return 0.0, True
    return float(np.corrcoef(prediction, target)[0, 1]), False


def regression(prediction: np.ndarray, target: np.ndarray, limits: tuple[float, float] = LIMITS) -> Metrics:
    """All point metrics of a regression task; the accuracies are those of CH-SIMS where labels lie in [-1, 1]."""
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    corr, undefined = correlation(prediction, target)
    found = {
        "mae": float(np.abs(prediction - target).mean()),
        "mean_error": float((prediction - target).mean()),
        "corr": corr,
        "corr_undefined": float(undefined),
    }
    return found | (_sims if tuple(limits) == SIMS else _mosi)(prediction, target)


def _mosi(prediction: np.ndarray, target: np.ndarray) -> Metrics:
    has0 = _binary(prediction >= 0, target >= 0)
    some = target != 0
    non0 = _binary(prediction[some] > 0, target[some] > 0)
    return {
        "acc7": _rounded_accuracy(prediction, target, 3),
        "acc5": _rounded_accuracy(prediction, target, 2),
        "acc2_has0": has0[0],
        "f1_has0": has0[1],
        "acc2_non0": non0[0],
        "f1_non0": non0[1],
        "balanced_acc2": non0[2],
    }


def _sims(prediction: np.ndarray, target: np.ndarray) -> Metrics:
    """CH-SIMS (MMSA, eval_sims_regression): both sides clipped to [-1, 1], also for its MAE and Corr.

    A class holds its upper cut. In single precision, as there: a label .1 read from float32 is above .1 in double.
    """
    prediction, target = (side.astype(np.float32).clip(*SIMS) for side in (prediction, target))
    found = {"mae_clipped": float(np.abs(prediction - target).mean(dtype=np.float64))}
    found["corr_clipped"] = correlation(prediction.astype(np.float64), target.astype(np.float64))[0]
    for name, cuts in SIMS_CUTS.items():
        edges = np.array(cuts, np.float32)
        ours, theirs = np.searchsorted(edges, prediction), np.searchsorted(edges, target)
        found[f"acc{name}_sims"] = float((ours == theirs).mean())
        if name == "2":
            _, found["f1_sims"], found["balanced_acc2"] = _binary(ours, theirs)
    return found


def risk_coverage(risk: np.ndarray, uncertainty: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean risk of the k surest clips, averaged over k = 1..N (Geifman 2018).

    risk: each clip's loss (N,). uncertainty (N,): clips are taken from the smallest on; among equals no order is
    better than another, so each counts with the mean risk of its equals.
    """
    levels, level = np.unique(uncertainty, return_inverse=True)
    shared = np.bincount(level, risk, len(levels)) / np.bincount(level, minlength=len(levels))
    ordered = shared[level][np.argsort(uncertainty, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())


def uncertainty(prediction: np.ndarray, variance: np.ndarray, target: np.ndarray, sigmas: dict[str, float]) -> Metrics:
    """Gaussian NLL, coverage and width of the calibrated intervals, their calibration error, risk-coverage area.

    `sigmas` maps a level to how many sigmas its interval reaches out. The calibration error is the mean absolute
    gap between coverage and level over all levels (Kuleshov et al. 2018, with absolute instead of squared gaps).
    """
    residual = prediction.astype(np.float64) - target
    variance = variance.astype(np.float64)
    deviation = np.sqrt(variance)
    found = {"nll": float((0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)).mean())}
    for level, reach in sigmas.items():
        name = f"{float(level) * 100:.0f}"
        found[f"coverage_{name}"] = float((np.abs(residual) <= reach * deviation).mean())
        found[f"width_{name}"] = float((2 * reach * deviation).mean())
    if sigmas:
        gaps = [abs(found[f"coverage_{float(level) * 100:.0f}"] - float(level)) for level in sigmas]
        found["calibration_error"] = float(np.mean(gaps))
    return found | {"risk_coverage": risk_coverage(np.abs(residual), variance)}


def classification(probabilities: np.ndarray, target: np.ndarray) -> Metrics:
    """All metrics of a classification task; probabilities (N, C), target (N,) class numbers.

    accuracy is the field's WA, macro_recall its UA (GCNet, MoMKE). Macro means are over the classes that occur
    among targets or predictions, as sklearn has them; a share of nothing is 0.
    """
    probabilities, target = probabilities.astype(np.float64), target.astype(np.int64)
    predicted = probabilities.argmax(1)
    hits, guessed, true = _counts(predicted, target)
    share = true / true.sum()
    precision, recall, f1 = _per_class(hits, guessed), _per_class(hits, true), _per_class(2 * hits, guessed + true)
    of_target = probabilities[np.arange(len(target)), target]
    confidence = probabilities.max(1)
    return {
        "accuracy": float(hits.sum() / len(target)),
        "macro_recall": float(recall.mean()),
        "macro_precision": float(precision.mean()),
        "macro_f1": float(f1.mean()),
        "weighted_precision": float(precision @ share),
        "weighted_f1": float(f1 @ share),
        "nll": float(-np.log(of_target.clip(1e-12)).mean()),
        "calibration_error": _expected_calibration_error(confidence, predicted == target),
        "risk_coverage": risk_coverage((predicted != target).astype(np.float64), -confidence),
    }


def _expected_calibration_error(confidence: np.ndarray, hit: np.ndarray) -> float:
    """Gap between accuracy and mean confidence in 15 equal bins (b, b + 1] / 15, weighted by size (Guo et al. 2017)."""
    place = np.ceil(confidence * BINS).clip(1, BINS).astype(int) - 1
    gaps = np.bincount(place, hit - confidence, BINS)
    return float(np.abs(gaps).sum() / len(hit))


def classes_of(rows: Any) -> list[str]:
    """The columns of class probabilities, in the order of the classes; none for a regression task."""
    return [column for column in rows if str(column).startswith("p_")]


def of_predictions(
    rows: Any, sigmas: dict[str, float], temperature: float = 1.0, limits: tuple[float, float] = LIMITS
) -> Metrics:
    """All metrics of rows of predictions.parquet that belong to one cell and draw.

    The rows hold what the model itself said: `sigmas` (of a regression's intervals) and `temperature` (of class
    probabilities) are its calibration, as in model.json. limits: the range of the labels.
    """
    target = rows["target"].to_numpy()
    if classes := classes_of(rows):
        return classification(tempered(rows[classes].to_numpy(np.float64), temperature), target)
    prediction, variance = rows["prediction"].to_numpy(), rows["variance"].to_numpy()
    return regression(prediction, target, limits) | uncertainty(prediction, variance, target, sigmas)
