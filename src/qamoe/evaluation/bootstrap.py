"""Paired comparison of two models on one slice or cell: a bootstrap over sources.

Clips of one source (a speaker, a video) are similar, so the bootstrap resamples sources with all their clips. Both
models are measured on the same draws: effects common to both, such as hard clips, cancel in the difference. Cells have
the weights of the slice's summary (see `weights`), and training seeds are averaged.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation import summary
from qamoe.evaluation.metrics import classes_of, labels_of
from qamoe.models.calibration import present_labels

MODALITIES = ("text", "audio", "vision")
KEYS = ["clip_id", "cell", "draw"]
DRAWS = 2000  # bootstrap draws
_GROUPS = 64  # at a time: memory grows with draws times groups times moments
Moments = Callable[[pd.DataFrame], np.ndarray]
Finish = Callable[[np.ndarray], np.ndarray]


def _prediction_and_target(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows["prediction"].to_numpy(float), rows["target"].to_numpy(float)


def _mae(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _prediction_and_target(rows)
    return np.abs(prediction - target)[:, None]


def _mean_error(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _prediction_and_target(rows)
    return (prediction - target)[:, None]


def _products(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _prediction_and_target(rows)
    return np.stack([prediction, target, prediction**2, target**2, prediction * target], axis=1)


def _seven_classes(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _prediction_and_target(rows)
    return (np.round(prediction.clip(-3, 3)) == np.round(target.clip(-3, 3))).astype(float)[:, None]


def _signs(rows: pd.DataFrame) -> np.ndarray:
    """Return whether a target that is not 0 is hit, and whether the target is not 0, (N, 2)."""
    prediction, target = _prediction_and_target(rows)
    nonzero = target != 0
    return np.stack([((prediction > 0) == (target > 0)) & nonzero, nonzero], axis=1).astype(float)


def _class_counts(rows: pd.DataFrame) -> np.ndarray:
    """Return hits, predictions and targets of each class, (N, 3 C)."""
    classes = np.arange(len(classes_of(rows)))
    predicted = rows[classes_of(rows)].to_numpy(float).argmax(1)[:, None] == classes
    true = rows["target"].to_numpy(int)[:, None] == classes
    return np.concatenate([predicted & true, predicted, true], axis=1).astype(float)


def _label_counts(rows: pd.DataFrame) -> np.ndarray:
    """Return hits, predictions and targets of each label, (N, 3 C)."""
    labels = labels_of(rows)
    predicted = rows[labels].to_numpy(float) >= 0.5
    true = present_labels(rows["target"].to_numpy(), len(labels))
    return np.concatenate([predicted & true, predicted, true], axis=1).astype(float)


def _mean(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def _quotient(means: np.ndarray) -> np.ndarray:
    defined = means[..., 1] > 0
    return np.where(defined, means[..., 0] / np.where(defined, means[..., 1], 1.0), np.nan)


def _correlation(means: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation; 0 if predictions or targets are constant, as in metrics.py."""
    p, t, pp, tt, pt = np.moveaxis(means, -1, 0)
    variance_p, variance_t = pp - p**2, tt - t**2
    defined = (variance_p > 1e-14 * np.maximum(1.0, pp)) & (variance_t > 1e-14 * np.maximum(1.0, tt))
    return np.where(defined, (pt - p * t) / np.sqrt(np.where(defined, variance_p * variance_t, 1.0)), 0.0)


def _accuracy(means: np.ndarray) -> np.ndarray:
    return np.split(means, 3, axis=-1)[0].sum(-1)


def _macro_f1(means: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the classes that occur among targets or predictions, as in metrics.py."""
    hits, predicted, true = np.split(means, 3, axis=-1)
    present = predicted + true > 0
    f1 = np.where(present, 2 * hits / np.where(present, predicted + true, 1.0), 0.0)
    return f1.sum(-1) / present.sum(-1)


def _label_accuracy(means: np.ndarray) -> np.ndarray:
    hits, predicted, true = np.split(means, 3, axis=-1)
    return (1 - predicted - true + 2 * hits).mean(-1)


def _label_f1(means: np.ndarray) -> np.ndarray:
    """Return the mean F1 over all labels, as in metrics.py."""
    hits, predicted, true = np.split(means, 3, axis=-1)
    present = predicted + true > 0
    return np.where(present, 2 * hits / np.where(present, predicted + true, 1.0), 0.0).mean(-1)


# Metric -> (moments of each row, the metric from their means over clips). Sums per source make resampling cheap.
REGRESSION: dict[str, tuple[Moments, Finish]] = {
    "mae": (_mae, _mean),
    "mean_error": (_mean_error, _mean),
    "corr": (_products, _correlation),
    "acc7": (_seven_classes, _mean),
    "acc2_non0": (_signs, _quotient),
}
CLASSIFICATION: dict[str, tuple[Moments, Finish]] = {
    "accuracy": (_class_counts, _accuracy),
    "macro_f1": (_class_counts, _macro_f1),
}


MULTILABEL: dict[str, tuple[Moments, Finish]] = {
    "accuracy": (_label_counts, _label_accuracy),
    "macro_f1": (_label_counts, _label_f1),
}


class Resampled(NamedTuple):
    """A metric (R + 1,) of one model on one slice: on the sample, then under R bootstrap draws of sources."""

    values: np.ndarray
    sources: int
    rows: int  # of one seed
    grid: int  # digest of the clips, cells, draws, sources and targets of one seed

    @property
    def interval(self) -> tuple[float, float, float]:
        """Return the value with its 95 % interval: (value, low, high)."""
        return interval(self.values, self.sources)


class Comparison(NamedTuple):
    """The difference of a's metric and b's, its 95 % interval and two-sided p, and the ratio with its interval.

    The ratio is NaN if b's metric is not above 0 under every draw. Limits and p are NaN if `interval` has none.
    """

    difference: float
    low: float
    high: float
    p: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def claimed(self) -> bool:
        """Whether the interval of the difference excludes 0; False without an interval."""
        return self.low > 0 or self.high < 0


def weights(predictions: pd.DataFrame) -> pd.Series:
    """Return the weight of each cell of one slice in the slice's summary (evaluation/summary.py), summing to 1.

    Raises UserError if the slice is a curve over severity and its cells are not.
    """
    severities = [f"severity_{m}" for m in MODALITIES if f"severity_{m}" in predictions]
    first = predictions.drop_duplicates("cell").set_index("cell")
    try:
        return summary.weights(str(first["slice"].iloc[0]), first[severities].astype(float).max(axis=1))
    except ValueError as error:
        raise UserError(str(error)) from None


def metrics_of(predictions: pd.DataFrame) -> dict[str, tuple[Moments, Finish]]:
    """Return the metrics by which these predictions can be compared."""
    if labels_of(predictions):
        return MULTILABEL
    return CLASSIFICATION if classes_of(predictions) else REGRESSION


def resample(predictions: pd.DataFrame, metric: str = "mae", draws: int = DRAWS, seed: int = 0) -> Resampled:
    """Return a metric of one slice, or of one of its cells, under `draws` draws of sources, the same for every model.

    predictions: rows of predictions.parquet of one slice, with a column `seed` if they have several training seeds.
    Raises UserError for an unknown metric, for several slices, and for seeds with different grids.
    """
    slices = sorted(predictions["slice"].unique())
    if len(slices) != 1:
        raise UserError(f"A paired comparison needs one slice; the predictions have {', '.join(slices) or 'none'}.")
    known = metrics_of(predictions)
    if metric not in known:
        raise UserError(f"{metric!r} is not a metric for paired comparisons; allowed are {', '.join(known)}.")
    rows = predictions if "seed" in predictions else predictions.assign(seed=0)
    count, grid = _grid(rows, slices[0])
    moments, finish = known[metric]
    values, groups = over_sources(rows, moments(rows), finish, draws, seed)
    share = np.ones(len(groups))  # a single cell has weight 1, also if its weight in the slice is 0
    if rows["cell"].nunique() > 1:
        share = groups["cell"].map(weights(rows)).to_numpy(float)
    # Draws of a cell have equal weights, and so have seeds.
    share = share / groups.groupby(["seed", "cell"])["cell"].transform("size").to_numpy() / groups["seed"].nunique()
    return Resampled(values @ share, rows["source"].nunique(), count, grid)


def over_sources(
    rows: pd.DataFrame, values: np.ndarray, finish: Finish = _mean, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return `finish` of the means of values (N, K) over clips, per group of rows: (R + 1, G), and the G groups.

    A group is a seed, cell and draw. The first row is the sample, the others are R bootstrap draws of sources. Sources
    are drawn in the order of their names, so the draws are the same for every model.
    """
    source, sources = pd.factorize(rows["source"], sort=True)
    number = len(sources)
    counts = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), draws)
    counts = np.concatenate([np.ones((1, number)), counts])
    grouped = rows.groupby(["seed", "cell", "draw"], sort=False, observed=True)
    group = grouped.ngroup().to_numpy()
    index, shape = source * grouped.ngroups + group, (number, grouped.ngroups)
    sums = np.stack(
        [np.bincount(index, column, number * grouped.ngroups).reshape(shape) for column in values.T], axis=-1
    )
    clips = counts @ np.bincount(index, minlength=number * grouped.ngroups).reshape(shape)
    results = np.empty((len(counts), grouped.ngroups))
    for start in range(0, grouped.ngroups, _GROUPS):
        block = slice(start, start + _GROUPS)
        results[:, block] = finish(np.tensordot(counts, sums[:, block], axes=1) / clips[:, block, None])
    return results, rows.iloc[np.unique(group, return_index=True)[1]][["seed", "cell", "draw"]]


def _grid(rows: pd.DataFrame, name: str) -> tuple[int, int]:
    """Return the number of rows per seed and the digest of their grid.

    Raises UserError if seeds have different grids or a seed has duplicate rows.
    """
    from pandas.util import hash_pandas_object

    first = None
    for seed, of_seed in rows.groupby("seed"):
        if of_seed.duplicated(KEYS).any():
            raise UserError(f"Slice {name}: seed {seed} has duplicate rows for a clip in the same cell and draw.")
        columns = of_seed[[*KEYS, "source", "target"]].astype({"draw": "int64", "target": "float64"})
        # A sum of digests does not depend on the rows' order.
        digest = int(hash_pandas_object(columns, index=False, categorize=True).sum())
        _same_grid(name, first, (len(of_seed), digest), f"seed {seed}")
        first = (len(of_seed), digest)
    assert first is not None
    return first


def _same_grid(name: str, first: tuple[int, int] | None, second: tuple[int, int], who: str) -> None:
    if first is not None and first != second:
        raise UserError(
            f"Slice {name}: {who} has other clips, cells, draws or targets than its counterpart "
            f"({second[0]} rows per seed against {first[0]}); evaluate both again."
        )


def compare_resampled(a: Resampled, b: Resampled, name: str) -> Comparison:
    """Compare a with b, both with the same draws. Raises UserError, naming the slice `name`, if their grids differ."""
    _same_grid(name, (b.rows, b.grid), (a.rows, a.grid), "the first model")
    difference = a.values - b.values
    ratio = (float("nan"),) * 3
    if (b.values > 0).all():
        ratio = interval(a.values / b.values, a.sources)
    return Comparison(*interval(difference, a.sources), _p_value(difference, a.sources), *ratio)


def compare(a: pd.DataFrame, b: pd.DataFrame, metric: str = "mae", draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two models on one slice, or on one of its cells. Raises UserError if their grids differ.

    a, b: rows of predictions.parquet of one slice, with a column `seed` if they have several training seeds. The
    difference is that of the slice summaries, averaged over seeds; the interval is over `draws` draws of sources.
    """
    name = next(iter(a["slice"]), "none")
    return compare_resampled(resample(a, metric, draws, seed), resample(b, metric, draws, seed), name)


def paired_bootstrap(
    a: pd.DataFrame, b: pd.DataFrame, metric: str = "mae", draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Return the difference of a's and b's metrics with its 95 % interval, (difference, low, high); see compare."""
    return compare(a, b, metric, draws, seed)[:3]


def non_inferior(comparison: Comparison, margin: float) -> bool:
    """Return whether the upper limit of a's relative difference to b is below `margin`; the metric is an error."""
    return comparison.ratio_high - 1 < margin


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the adjusted p of each comparison of a family that was fixed in advance (Holm 1979).

    The k-th smallest of n is multiplied by n - k + 1, and is at least its predecessor and at most 1.
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def interval(values: np.ndarray, sources: int) -> tuple[float, float, float]:
    """Return (value, low, high) of values (R + 1,): the sample's value, and the 95 % interval from its draws.

    The limits are expanded percentiles (Hesterberg 2015). With few sources they are further out: Student's t is wider
    than a normal, and a sample's deviation is smaller than its population's. With 13 sources and no difference, plain
    percentiles exclude 0 in 8 % of the cases, expanded ones in 5 %. Limits are NaN with one source, or if a draw has no
    value.
    """
    if sources < 2 or np.isnan(values).any():
        return float(values[0]), float("nan"), float("nan")
    from scipy.stats import norm, t

    tail = norm.cdf(t.ppf(0.025, sources - 1) * _expansion(sources))
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return float(values[0]), float(low), float(high)


def _p_value(differences: np.ndarray, sources: int) -> float:
    """Return the two-sided p of no difference: twice the tail whose expanded percentile is 0.

    The tail is the share of draws on the rarer side of 0, with the sample counted as one draw (Davison and Hinkley
    1997, section 4.2); p is therefore above 0. It is NaN if `interval` has no limits.
    """
    drawn = differences[1:]
    if sources < 2 or np.isnan(differences).any():
        return float("nan")
    from scipy.stats import norm, t

    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * t.cdf(norm.ppf((1 + rarer) / (1 + len(drawn))) / _expansion(sources), sources - 1)))


def _expansion(sources: int) -> float:
    """Return the ratio of a population's estimated deviation to its sample's deviation."""
    return float(np.sqrt(sources / (sources - 1)))
