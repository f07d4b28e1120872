"""Paired comparison of two models on one slice: a bootstrap over sources.

Clips of one source (a speaker, a video) are alike, so what is drawn anew are sources, with all their clips.
Both models are measured on the same draw: what is common to them, hard clips above all, leaves the difference.
A slice weighs its cells as its summary does (see weights), and training seeds are averaged.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from qamoe.errors import Refused
from qamoe.evaluation import summary

MODALITIES = ("text", "audio", "vision")
KEYS = ["clip_id", "cell", "draw"]


def _mae(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.abs(prediction - target)[:, None]


def _mean_error(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    return (prediction - target)[:, None]


def _products(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.stack([prediction, target, prediction**2, target**2, prediction * target], axis=1)


def _mean(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def _correlation(means: np.ndarray) -> np.ndarray:
    """Pearson's correlation; 0 where a side is constant, as metrics.py has it."""
    p, t, pp, tt, pt = np.moveaxis(means, -1, 0)
    of_p, of_t = pp - p**2, tt - t**2
    known = (of_p > 1e-14 * np.maximum(1.0, pp)) & (of_t > 1e-14 * np.maximum(1.0, tt))
    return np.where(known, (pt - p * t) / np.sqrt(np.where(known, of_p * of_t, 1.0)), 0.0)


# metric -> (moments of one row, the metric from their means over clips); sums over sources make resampling cheap.
METRICS: dict[str, tuple[Callable[..., np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "mae": (_mae, _mean),
    "mean_error": (_mean_error, _mean),
    "corr": (_products, _correlation),
}


def weights(predictions: pd.DataFrame) -> pd.Series:
    """Weight of each cell of one slice in the slice's summary (evaluation/summary.py), summing to 1.

    Raises Refused where the cells are no curve over severity and the slice is none whose cells weigh alike.
    """
    severities = [f"severity_{m}" for m in MODALITIES if f"severity_{m}" in predictions]
    first = predictions.drop_duplicates("cell").set_index("cell")
    try:
        return summary.weights(str(first["slice"].iloc[0]), first[severities].astype(float).max(axis=1))
    except ValueError as error:
        raise Refused(str(error)) from None


def _estimates(predictions: pd.DataFrame, metric: str, sources: list[Any], counts: np.ndarray) -> np.ndarray:
    """The slice's metric (R,) under R draws of sources; counts (R, S): how often each source was drawn."""
    moments, finish = METRICS[metric]
    rows = moments(predictions["prediction"].to_numpy(float), predictions["target"].to_numpy(float))
    cell_weights = weights(predictions)
    groups = predictions.groupby(["seed", "cell", "draw"], sort=False)
    group = groups.ngroup().to_numpy()
    source = pd.Index(sources).get_indexer(predictions["source"])
    sums = np.zeros((len(sources), groups.ngroups, rows.shape[1]))
    np.add.at(sums, (source, group), rows)
    clips = np.zeros((len(sources), groups.ngroups))
    np.add.at(clips, (source, group), 1.0)
    means = np.tensordot(counts, sums, axes=1) / (counts @ clips)[..., None]
    first = predictions.iloc[np.unique(group, return_index=True)[1]]
    share = first["cell"].map(cell_weights).to_numpy(float)
    # Every draw of a cell, and every seed, weighs the same.
    share = share / first.groupby(["seed", "cell"])["cell"].transform("size").to_numpy() / first["seed"].nunique()
    return finish(means) @ share


def _paired(a: pd.DataFrame, b: pd.DataFrame, metric: str, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of both under the same draws of sources; the first entry is the sample itself."""
    if metric not in METRICS:
        raise Refused(f"No paired comparison of {metric!r}; allowed are {', '.join(METRICS)}.")
    a, b = (p if "seed" in p else p.assign(seed=0) for p in (a, b))
    slices = sorted({*a["slice"], *b["slice"]})
    if len(slices) != 1:
        raise Refused(f"A paired comparison is about one slice, not about {', '.join(slices) or 'none'}.")
    _check_grid(a, b, slices[0])
    sources = sorted(a["source"].unique())
    counts = np.random.default_rng(seed).multinomial(len(sources), np.full(len(sources), 1 / len(sources)), draws)
    counts = np.concatenate([np.ones((1, len(sources))), counts])
    return _estimates(a, metric, sources, counts), _estimates(b, metric, sources, counts)


def _check_grid(a: pd.DataFrame, b: pd.DataFrame, name: str) -> None:
    """Refuse unless every seed of both models holds the same clips in the same cells and draws."""
    expected = None
    for frame in (a, b):
        for seed, own in frame.groupby("seed"):
            rows = own[[*KEYS, "source", "target"]].sort_values(KEYS, ignore_index=True)
            if rows.duplicated(KEYS).any():
                raise Refused(f"Slice {name}: seed {seed} holds a clip twice in the same cell and draw.")
            if expected is None:
                expected = rows
            elif not rows.equals(expected):
                raise Refused(
                    f"Slice {name}: the two models were not measured on the same clips, cells, draws and "
                    f"targets (seed {seed} has {len(rows)} rows, the first seed {len(expected)}); "
                    "evaluate both again."
                )


def paired_bootstrap(
    a: pd.DataFrame, b: pd.DataFrame, metric: str = "mae", draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much a's metric exceeds b's on one slice, with its 95 % interval: (difference, low, high).

    a, b: rows of predictions.parquet of one slice, with a column `seed` where they hold several training
    seeds. The difference is that of the slice summaries, averaged over seeds; low and high are the 2.5 and
    97.5 % points over `draws` resamplings of sources. Raises Refused where the two hold different grids.
    """
    of_a, of_b = _paired(a, b, metric, draws, seed)
    return _interval(of_a - of_b)


def paired_ratio(
    a: pd.DataFrame, b: pd.DataFrame, metric: str = "mae", draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """a's metric divided by b's, as paired_bootstrap: (ratio, low, high); for metrics above 0, such as mae."""
    of_a, of_b = _paired(a, b, metric, draws, seed)
    if not (of_b > 0).all():
        raise Refused(f"A ratio of {metric} needs a divisor above 0; the smallest seen is {of_b.min():.4g}.")
    return _interval(of_a / of_b)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)
