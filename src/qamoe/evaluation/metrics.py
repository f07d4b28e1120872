"""Metrics as the field defines them (thuiar/MMSA, metricsTop), from arrays (N,) of predictions and targets.

Accuracies are shares in [0, 1]. docs/how/evaluation.md explains the details: rounding half to even, the class of zero,
the argument order of F1, the correlation of a constant prediction, and the MAE of predictions that are not clipped.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qamoe.models.calibration import present_labels, tempered, tempered_labels

Metrics = dict[str, float]

LIMITS = (-3.0, 3.0)  # of the labels of MOSI and MOSEI
SIMS = (-1.0, 1.0)  # of the labels of CH-SIMS, which has its own accuracies
SIMS_CUTS = {"2": (0.0,), "3": (-0.1, 0.1), "5": (-0.7, -0.1, 0.1, 0.7)}
LABEL = "has_"  # before the name of a label in the column of its probability
BINS = 15  # of confidence in the calibration error of classes
LOWER_IS_BETTER = ("mae", "nll", "corr_undefined", "width_", "calibration_error", "risk_coverage")  # prefixes


def lower_is_better(metric: Any) -> bool:
    return str(metric).startswith(LOWER_IS_BETTER)


def _rounded_accuracy(prediction: np.ndarray, target: np.ndarray, limit: float) -> float:
    """Return the share of equal values after clipping to [-limit, limit] and rounding half to even."""
    return float((np.round(prediction.clip(-limit, limit)) == np.round(target.clip(-limit, limit))).mean())


def _counts(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, predictions and targets (C,) of each class that occurs on either side, in class order."""
    classes = np.union1d(prediction, target)
    predicted, true = prediction == classes[:, None], target == classes[:, None]
    return (predicted & true).sum(1), predicted.sum(1), true.sum(1)


def _per_class(hits: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return hits / total (C,), and 0 for a total of 0."""
    return np.divide(hits, total, out=np.zeros(len(hits)), where=total > 0)


def _binary(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy, F1 weighted by the classes' share of the target, and balanced accuracy of booleans (N,)."""
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
    """Return Pearson's r, and whether it is undefined (a side is constant) and set to 0."""
    scale = max(1.0, float(np.abs(prediction).max(initial=0.0)))
    if len(target) < 2 or prediction.std() < 1e-7 * scale or target.std() == 0:
        return 0.0, True
    return float(np.corrcoef(prediction, target)[0, 1]), False


def regression(prediction: np.ndarray, target: np.ndarray, limits: tuple[float, float] = LIMITS) -> Metrics:
    """Return all point metrics of a regression task; for labels in [-1, 1], the accuracies are those of CH-SIMS."""
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    corr, undefined = correlation(prediction, target)
    point_metrics = {
        "mae": float(np.abs(prediction - target).mean()),
        "mean_error": float((prediction - target).mean()),
        "corr": corr,
        "corr_undefined": float(undefined),
    }
    return point_metrics | (_sims if tuple(limits) == SIMS else _mosi)(prediction, target)


def _mosi(prediction: np.ndarray, target: np.ndarray) -> Metrics:
    has0 = _binary(prediction >= 0, target >= 0)
    nonzero = target != 0
    non0 = _binary(prediction[nonzero] > 0, target[nonzero] > 0)
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
    """Return the metrics of CH-SIMS (MMSA, eval_sims_regression): all, also MAE and Corr, clip both sides to [-1, 1].

    A class includes its upper cut. Single precision, as in MMSA: a label .1 read from float32 is above .1 in double.
    """
    prediction, target = (side.astype(np.float32).clip(*SIMS) for side in (prediction, target))
    sims_metrics = {"mae_clipped": float(np.abs(prediction - target).mean(dtype=np.float64))}
    sims_metrics["corr_clipped"] = correlation(prediction.astype(np.float64), target.astype(np.float64))[0]
    for name, cuts in SIMS_CUTS.items():
        edges = np.array(cuts, np.float32)
        ours, theirs = np.searchsorted(edges, prediction), np.searchsorted(edges, target)
        sims_metrics[f"acc{name}_sims"] = float((ours == theirs).mean())
        if name == "2":
            _, sims_metrics["f1_sims"], sims_metrics["balanced_acc2"] = _binary(ours, theirs)
    return sims_metrics


def risk_coverage(risk: np.ndarray, uncertainty: np.ndarray) -> float:
    """Return the area under the risk-coverage curve (Geifman 2018).

    This is the mean risk of the k least uncertain clips, averaged over k = 1..N. risk: each clip's loss (N,).
    uncertainty (N,): clips with equal uncertainty have no order, so each has their mean risk.
    """
    levels, level = np.unique(uncertainty, return_inverse=True)
    shared = np.bincount(level, risk, len(levels)) / np.bincount(level, minlength=len(levels))
    ordered = shared[level][np.argsort(uncertainty, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())


def uncertainty(prediction: np.ndarray, variance: np.ndarray, target: np.ndarray, sigmas: dict[str, float]) -> Metrics:
    """Return the Gaussian NLL, the coverage, width and calibration error of the intervals, and the risk-coverage area.

    `sigmas` maps a level to the half-width of its interval in sigmas. The calibration error is the mean absolute
    gap between coverage and level over all levels (Kuleshov et al. 2018, with absolute instead of squared gaps).
    """
    residual = prediction.astype(np.float64) - target
    variance = variance.astype(np.float64)
    deviation = np.sqrt(variance)
    values = {"nll": float((0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)).mean())}
    for level, half_width in sigmas.items():
        name = f"{float(level) * 100:.0f}"
        values[f"coverage_{name}"] = float((np.abs(residual) <= half_width * deviation).mean())
        values[f"width_{name}"] = float((2 * half_width * deviation).mean())
    if sigmas:
        gaps = [abs(values[f"coverage_{float(level) * 100:.0f}"] - float(level)) for level in sigmas]
        values["calibration_error"] = float(np.mean(gaps))
    return values | {"risk_coverage": risk_coverage(np.abs(residual), variance)}


def classification(probabilities: np.ndarray, target: np.ndarray) -> Metrics:
    """Return all metrics of a classification task; probabilities (N, C), target (N,) class numbers.

    accuracy is the field's WA, macro_recall its UA (GCNet, MoMKE). Macro means are over the classes that occur
    among targets or predictions, as in sklearn; a share with a denominator of 0 is 0.
    """
    probabilities, target = probabilities.astype(np.float64), target.astype(np.int64)
    predicted = probabilities.argmax(1)
    hits, guessed, true = _counts(predicted, target)
    share = true / true.sum()
    precision, recall, f1 = _per_class(hits, guessed), _per_class(hits, true), _per_class(2 * hits, guessed + true)
    target_probability = probabilities[np.arange(len(target)), target]
    confidence = probabilities.max(1)
    return {
        "accuracy": float(hits.sum() / len(target)),
        "macro_recall": float(recall.mean()),
        "macro_precision": float(precision.mean()),
        "macro_f1": float(f1.mean()),
        "weighted_precision": float(precision @ share),
        "weighted_f1": float(f1 @ share),
        "nll": float(-np.log(target_probability.clip(1e-12)).mean()),
        "calibration_error": _expected_calibration_error(confidence, predicted == target),
        "risk_coverage": risk_coverage((predicted != target).astype(np.float64), -confidence),
    }


def multilabel(presence: np.ndarray, target: np.ndarray, labels: Sequence[str]) -> Metrics:
    """Return all metrics of a multilabel task; presence (N, C) probabilities of `labels`, target (N,) numbers.

    A label is predicted from a probability of 1/2 on. For each label, as in sklearn: f1_<label> is f1_score (0 without
    a hit), weighted_f1_<label> that with average "weighted", balanced_acc_<label> is balanced_accuracy_score, which the
    papers on CMU-MOSEI call weighted accuracy. The others are means over labels; exact_match
    is the share of clips with all labels right.
    """
    presence = presence.astype(np.float64)
    has, predicted = present_labels(target, len(labels)), presence >= 0.5
    right = has == predicted
    by_label: Metrics = {}
    for index, name in enumerate(labels):
        ours, theirs = predicted[:, index], has[:, index]
        _, by_label[f"weighted_f1_{name}"], by_label[f"balanced_acc_{name}"] = _binary(ours, theirs)
        by_label[f"f1_{name}"] = 2 * float((ours & theirs).sum()) / max(float(ours.sum() + theirs.sum()), 1.0)

    def mean(metric: str) -> float:
        return float(np.mean([by_label[f"{metric}_{name}"] for name in labels]))

    confidence = np.where(predicted, presence, 1 - presence)
    return {
        "accuracy": float(right.mean()),
        "macro_f1": mean("f1"),
        "weighted_f1": mean("weighted_f1"),
        "balanced_acc": mean("balanced_acc"),
        "exact_match": float(right.all(1).mean()),
        "nll": float(-np.log(np.where(has, presence, 1 - presence).clip(1e-12)).mean()),
        "calibration_error": _expected_calibration_error(confidence.ravel(), right.ravel()),
        "risk_coverage": risk_coverage(1 - right.mean(1), -confidence.mean(1)),
        **by_label,
    }


def _expected_calibration_error(confidence: np.ndarray, hit: np.ndarray) -> float:
    """Return the weighted gap between accuracy and confidence in 15 bins (b, b + 1] / 15 (Guo et al. 2017)."""
    bin_index = np.ceil(confidence * BINS).clip(1, BINS).astype(int) - 1
    gaps = np.bincount(bin_index, hit - confidence, BINS)
    return float(np.abs(gaps).sum() / len(hit))


def classes_of(rows: Any) -> list[str]:
    """Return the columns of class probabilities in class order; empty for another task."""
    return [column for column in rows if str(column).startswith("p_")]


def labels_of(rows: Any) -> list[str]:
    """Return the columns of label probabilities in the order of the task; empty for a task that is not multilabel."""
    return [column for column in rows if str(column).startswith(LABEL)]


def errors(rows: Any) -> np.ndarray:
    """Return the error of each row (N,): the absolute error, 1 for a wrong class, or the share of wrong labels."""
    if labels := labels_of(rows):
        sides = [present_labels(rows[name].to_numpy(), len(labels)) for name in ("prediction", "target")]
        return np.asarray((sides[0] != sides[1]).mean(1))
    gap = np.abs(rows["prediction"].to_numpy(float) - rows["target"].to_numpy(float))
    return (gap > 0).astype(float) if classes_of(rows) else gap


def of_predictions(
    rows: Any, sigmas: dict[str, float], temperature: float = 1.0, limits: tuple[float, float] = LIMITS
) -> Metrics:
    """Return all metrics of the rows of predictions.parquet of one cell and draw.

    The rows are uncalibrated. `sigmas` (of a regression's intervals) and `temperature` (of class probabilities) are the
    model's calibration in model.json. limits: the range of the labels.
    """
    target = rows["target"].to_numpy()
    if classes := classes_of(rows):
        return classification(tempered(rows[classes].to_numpy(np.float64), temperature), target)
    if labels := labels_of(rows):
        presence = tempered_labels(rows[labels].to_numpy(np.float64), temperature)
        return multilabel(presence, target, [name.removeprefix(LABEL) for name in labels])
    prediction, variance = rows["prediction"].to_numpy(), rows["variance"].to_numpy()
    return regression(prediction, target, limits) | uncertainty(prediction, variance, target, sigmas)
