"""Paired comparison of two models on one slice or cell: a bootstrap over sources.

Clips of one source (a speaker, a video) are alike, so what is drawn anew are sources, with all their clips.
Both models are measured on the same draw: what is common to them, hard clips above all, leaves the difference.
A slice weighs its cells as its summary does (see weights), and training seeds are averaged.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation import summary
from qamoe.evaluation.metrics import classes_of

MODALITIES = ("text", "audio", "vision")
KEYS = ["clip_id", "cell", "draw"]
DRAWS = 2000  # resamplings
_GROUPS = 64  # at once: memory grows with resamplings times groups times moments
Moments = Callable[[pd.DataFrame], np.ndarray]
Finish = Callable[[np.ndarray], np.ndarray]


def _sides(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows["prediction"].to_numpy(float), rows["target"].to_numpy(float)


def _mae(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _sides(rows)
    return np.abs(prediction - target)[:, None]


def _mean_error(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _sides(rows)
    return (prediction - target)[:, None]


def _products(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _sides(rows)
    return np.stack([prediction, target, prediction**2, target**2, prediction * target], axis=1)


def _seven_classes(rows: pd.DataFrame) -> np.ndarray:
    prediction, target = _sides(rows)
    return (np.round(prediction.clip(-3, 3)) == np.round(target.clip(-3, 3))).astype(float)[:, None]


def _signs(rows: pd.DataFrame) -> np.ndarray:
    """Hits among the targets that are not 0, and how many those are."""
    prediction, target = _sides(rows)
    some = target != 0
    return np.stack([((prediction > 0) == (target > 0)) & some, some], axis=1).astype(float)


def _class_counts(rows: pd.DataFrame) -> np.ndarray:
    """Hits, predictions and targets of each class, (N, 3 C)."""
    classes = np.arange(len(classes_of(rows)))
    predicted = rows[classes_of(rows)].to_numpy(float).argmax(1)[:, None] == classes
    true = rows["target"].to_numpy(int)[:, None] == classes
    return np.concatenate([predicted & true, predicted, true], axis=1).astype(float)


def _mean(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def _quotient(means: np.ndarray) -> np.ndarray:
    some = means[..., 1] > 0
    return np.where(some, means[..., 0] / np.where(some, means[..., 1], 1.0), np.nan)


def _correlation(means: np.ndarray) -> np.ndarray:
    """Pearson's correlation; 0 where a side is constant, as metrics.py has it."""
    p, t, pp, tt, pt = np.moveaxis(means, -1, 0)
    of_p, of_t = pp - p**2, tt - t**2
    known = (of_p > 1e-14 * np.maximum(1.0, pp)) & (of_t > 1e-14 * np.maximum(1.0, tt))
    return np.where(known, (pt - p * t) / np.sqrt(np.where(known, of_p * of_t, 1.0)), 0.0)


def _accuracy(means: np.ndarray) -> np.ndarray:
    return np.split(means, 3, axis=-1)[0].sum(-1)


def _macro_f1(means: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur among targets or predictions, as metrics.py has it."""
    hits, predicted, true = np.split(means, 3, axis=-1)
    present = predicted + true > 0
    f1 = np.where(present, 2 * hits / np.where(present, predicted + true, 1.0), 0.0)
    return f1.sum(-1) / present.sum(-1)


# metric -> (moments of one row, the metric from their means over clips); sums over sources make resampling cheap.
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


class Resampled(NamedTuple):
    """A metric (R + 1,) of one model on one slice: of the sample itself, then under R draws of sources."""

    values: np.ndarray
    sources: int
    rows: int  # of one seed
    grid: int  # digest of the clips, cells, draws, sources and targets of one seed

    @property
    def interval(self) -> tuple[float, float, float]:
        """The value with its 95 % interval: (value, low, high)."""
        return interval(self.values, self.sources)


class Comparison(NamedTuple):
    """How much a's metric exceeds b's: the difference, its 95 % interval, a two-sided p, and the same as a ratio.

    The ratio is NaN where b's metric is not above 0 under every draw; limits and p are where `interval` has none.
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
        """Whether the interval of the difference leaves out 0; never where there is none."""
        return self.low > 0 or self.high < 0


def weights(predictions: pd.DataFrame) -> pd.Series:
    """Weight of each cell of one slice in the slice's summary (evaluation/summary.py), summing to 1.

    Raises UserError where the cells are no curve over severity and the slice is none whose cells weigh alike.
    """
    severities = [f"severity_{m}" for m in MODALITIES if f"severity_{m}" in predictions]
    first = predictions.drop_duplicates("cell").set_index("cell")
    try:
        return summary.weights(str(first["slice"].iloc[0]), first[severities].astype(float).max(axis=1))
    except ValueError as error:
        raise UserError(str(error)) from None


def metrics_of(predictions: pd.DataFrame) -> dict[str, tuple[Moments, Finish]]:
    """The metrics that these predictions can be compared by."""
    return CLASSIFICATION if classes_of(predictions) else REGRESSION


def resample(predictions: pd.DataFrame, metric: str = "mae", draws: int = DRAWS, seed: int = 0) -> Resampled:
    """A metric of one slice, or of one cell of it, under `draws` draws of its sources, the same for every model.

    predictions: rows of predictions.parquet of one slice, with a column `seed` where they hold several training
    seeds. Raises UserError for an unknown metric, for several slices, and where seeds hold different grids.
    """
    slices = sorted(predictions["slice"].unique())
    if len(slices) != 1:
        raise UserError(f"A paired comparison is about one slice, not about {', '.join(slices) or 'none'}.")
    known = metrics_of(predictions)
    if metric not in known:
        raise UserError(f"No paired comparison of {metric!r}; allowed are {', '.join(known)}.")
    rows = predictions if "seed" in predictions else predictions.assign(seed=0)
    count, grid = _grid(rows, slices[0])
    moments, finish = known[metric]
    values, groups = over_sources(rows, moments(rows), finish, draws, seed)
    share = np.ones(len(groups))  # of a single cell, also of one that weighs nothing in its slice
    if rows["cell"].nunique() > 1:
        share = groups["cell"].map(weights(rows)).to_numpy(float)
    # Every draw of a cell, and every seed, weighs the same.
    share = share / groups.groupby(["seed", "cell"])["cell"].transform("size").to_numpy() / groups["seed"].nunique()
    return Resampled(values @ share, rows["source"].nunique(), count, grid)


def over_sources(
    rows: pd.DataFrame, values: np.ndarray, finish: Finish = _mean, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, pd.DataFrame]:
    """`finish` of the means over clips of values (N, K), in each of G groups of rows: (R + 1, G), and the groups.

    A group is a seed, cell and draw. The first line is of the sample itself, the others under R draws of sources,
    which are drawn in the order of their names, and so alike for every model.
    """
    source, sources = pd.factorize(rows["source"], sort=True)
    of = len(sources)
    counts = np.random.default_rng(seed).multinomial(of, np.full(of, 1 / of), draws)
    counts = np.concatenate([np.ones((1, of)), counts])
    grouped = rows.groupby(["seed", "cell", "draw"], sort=False, observed=True)
    group = grouped.ngroup().to_numpy()
    place, shape = source * grouped.ngroups + group, (of, grouped.ngroups)
    sums = np.stack([np.bincount(place, column, of * grouped.ngroups).reshape(shape) for column in values.T], axis=-1)
    clips = counts @ np.bincount(place, minlength=of * grouped.ngroups).reshape(shape)
    found = np.empty((len(counts), grouped.ngroups))
    for start in range(0, grouped.ngroups, _GROUPS):
        some = slice(start, start + _GROUPS)
        found[:, some] = finish(np.tensordot(counts, sums[:, some], axes=1) / clips[:, some, None])
    return found, rows.iloc[np.unique(group, return_index=True)[1]][["seed", "cell", "draw"]]


def _grid(rows: pd.DataFrame, name: str) -> tuple[int, int]:
    """Rows of one seed and the digest of what they are of; UserError unless every seed holds the same."""
    from pandas.util import hash_pandas_object

    found = None
    for seed, own in rows.groupby("seed"):
        if own.duplicated(KEYS).any():
            raise UserError(f"Slice {name}: seed {seed} holds a clip twice in the same cell and draw.")
        about = own[[*KEYS, "source", "target"]].astype({"draw": "int64", "target": "float64"})
        # A sum of digests does not depend on the rows' order.
        digest = int(hash_pandas_object(about, index=False, categorize=True).sum())
        _same_grid(name, found, (len(own), digest), f"seed {seed}")
        found = (len(own), digest)
    assert found is not None
    return found


def _same_grid(name: str, first: tuple[int, int] | None, second: tuple[int, int], who: str) -> None:
    if first is not None and first != second:
        raise UserError(
            f"Slice {name}: {who} was not measured on the same clips, cells, draws and targets as what it is compared "
            f"with ({second[0]} rows a seed against {first[0]}); evaluate both again."
        )


def compare_resampled(a: Resampled, b: Resampled, name: str) -> Comparison:
    """a against b, both resampled alike. `name` of the slice, for the refusal where they hold different grids."""
    _same_grid(name, (b.rows, b.grid), (a.rows, a.grid), "the first model")
    difference = a.values - b.values
    ratio = (float("nan"),) * 3
    if (b.values > 0).all():
        ratio = interval(a.values / b.values, a.sources)
    return Comparison(*interval(difference, a.sources), _p_value(difference, a.sources), *ratio)


def compare(a: pd.DataFrame, b: pd.DataFrame, metric: str = "mae", draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two models on one slice, or on one cell of it. Raises UserError where the two hold different grids.

    a, b: rows of predictions.parquet of one slice, with a column `seed` where they hold several training seeds. The
    difference is that of the slice summaries, averaged over seeds; the interval is over `draws` resamplings of sources.
    """
    name = next(iter(a["slice"]), "none")
    return compare_resampled(resample(a, metric, draws, seed), resample(b, metric, draws, seed), name)


def paired_bootstrap(
    a: pd.DataFrame, b: pd.DataFrame, metric: str = "mae", draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """How much a's metric exceeds b's on one slice, with its 95 % interval: (difference, low, high); see compare."""
    return compare(a, b, metric, draws, seed)[:3]


def non_inferior(found: Comparison, margin: float) -> bool:
    """Whether a errs at most by the share `margin` more than b: the upper limit of the relative difference is below."""
    return found.ratio_high - 1 < margin


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of each comparison of a family that was named before looking (Holm 1979).

    The k-th smallest of n is multiplied by n - k + 1, is at least its predecessor, and at most 1.
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, p_values[name] * (len(p_values) - place)))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def interval(values: np.ndarray, sources: int) -> tuple[float, float, float]:
    """(value, low, high) of values (R + 1,): the sample's own, and the 95 % interval from its draws.

    Expanded percentiles (Hesterberg 2015): they lie further out the fewer sources there are, by as much as Student's t
    is wider than a normal and a sample's deviation smaller than its population's. Plain ones leave 0 out in 8 % of the
    cases with 13 sources and no difference, these in 5 %. Limits are NaN with one source, or where a draw has no value.
    """
    if sources < 2 or np.isnan(values).any():
        return float(values[0]), float("nan"), float("nan")
    from scipy.stats import norm, t

    tail = norm.cdf(t.ppf(0.025, sources - 1) * _expansion(sources))
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return float(values[0]), float(low), float(high)


def _p_value(differences: np.ndarray, sources: int) -> float:
    """Two-sided p of no difference: twice the tail whose expanded percentile is 0.

    The tail is the share of draws on the rarer side of 0, the sample counted as one (Davison and Hinkley 1997, section
    4.2); so p is never quite 0. NaN where `interval` has no limits.
    """
    drawn = differences[1:]
    if sources < 2 or np.isnan(differences).any():
        return float("nan")
    from scipy.stats import norm, t

    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * t.cdf(norm.ppf((1 + rarer) / (1 + len(drawn))) / _expansion(sources), sources - 1)))


def _expansion(sources: int) -> float:
    """How much smaller a sample's deviation is than what it says of its population."""
    return float(np.sqrt(sources / (sources - 1)))
