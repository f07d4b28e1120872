"""Calibration on validation clips: the sigmas of conformal intervals, and the temperature of class logits."""

import math

import numpy as np

LEVELS = (0.5, 0.8, 0.9, 0.95)
TEMPERATURES = (0.05, 20.0)  # limits of a fit; the best temperature of separable validation data is 0


def fit_conformal(residual: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    """Return the half-width, in sigmas, of the interval of each level (Papadopoulos et al. 2002).

    residual and sigma are (N,). The finite-sample rank is ceil((N + 1) level), at most N.
    """
    scores = np.sort(np.abs(residual) / sigma)
    ranks = {level: min(len(scores), math.ceil((len(scores) + 1) * level)) for level in LEVELS}
    return {f"{level:g}": float(scores[rank - 1]) for level, rank in ranks.items()}


def fit_temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """Return the temperature with the smallest NLL (Guo et al. 2017), from logits (N, C) and class numbers (N,).

    The NLL is convex in 1 / temperature; its minimum is searched within TEMPERATURES. You can pass log probabilities
    in place of logits.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, target = logits.astype(np.float64), target.astype(np.int64)

    def nll(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_probabilities[np.arange(len(target)), target].mean())

    low, high = np.log(TEMPERATURES)
    minimum = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(minimum.x))


def present_labels(target: np.ndarray, labels: int) -> np.ndarray:
    """Return which labels (N, C) the numbers (N,) of a multilabel task stand for (see config/task.py)."""
    return (target.astype(np.int64)[:, None] >> np.arange(labels) & 1).astype(bool)


def as_pairs(presence: np.ndarray) -> np.ndarray:
    """Return the probabilities of labels (N, C) as those of two classes, absent and present, (N C, 2).

    The temperature of labels is that of these pairs.
    """
    return np.stack([1 - presence, presence], -1).reshape(-1, 2)


def tempered_labels(presence: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities of labels (N, C) after their logits are divided by `temperature`."""
    return tempered(as_pairs(presence), temperature)[:, 1].reshape(presence.shape)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities (N, C) after their logits are divided by `temperature`."""
    from scipy.special import softmax

    if temperature == 1:
        return probabilities
    return softmax(np.log(probabilities.clip(1e-12)) / temperature, axis=1)
