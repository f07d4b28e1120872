"""Test whether new clips differ from the training clips of a model, in their inputs and in reliability.

Clips of one source are similar, so a test that treats clips as independent raises false alarms. The null distribution
therefore comes from comparing random groups of reference sources with the other reference sources. Our decision.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qamoe.rng import MODALITIES

ALARM = 0.01  # p below which drift is reported; about one false alarm in 100 tests
LEAST = 20  # minimum number of new clips and of reference clips
SOURCES = 4  # minimum number of reference sources
PERMUTATIONS = 499
SOURCE = "source"


def describe(clips: Iterable[Mapping[str, np.ndarray]], stats: Mapping[str, Any]) -> pd.DataFrame:
    """Describe the inputs of clips, one row per clip: columns <modality>.<feature> for the modalities in stats.json.

    clips: token ids (T,) and standardised frames (T, D) by modality. Features: `absent`, 1 without a frame; the others
    are then NaN. `length`: log(1 + T). Text: `unknown`, the share of [UNK]; `rarity`, the mean of minus the log
    training frequency of its tokens. Frames: `level`, mean |x|; `change`, mean |x_t - x_(t-1)|.
    """
    rarity = _rarity(stats["text"]) if "text" in stats["modalities"] else np.zeros(0)
    rows = []
    for clip in clips:
        row: dict[str, float] = {}
        for modality in stats["modalities"]:
            x = clip[modality]
            row[f"{modality}.absent"] = float(not len(x))
            if len(x):
                features = _text_features(x, stats["text"], rarity) if modality == "text" else _frame_features(x)
                row |= {f"{modality}.{feature}": value for feature, value in features.items()}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns(stats["modalities"]), dtype=float)


def columns(modalities: Sequence[str]) -> list[str]:
    """Return the columns of `describe`."""
    specific = {"text": ("unknown", "rarity")}
    features = {m: ("absent", "length", *specific.get(m, ("level", "change"))) for m in modalities}
    return [f"{m}.{feature}" for m in modalities for feature in features[m]]


def _rarity(text: Mapping[str, Any]) -> np.ndarray:
    """Return minus the log training frequency of each token, with add-one smoothing."""
    counts = np.ones(text["vocabulary"])
    for token, count in text["frequencies"]:
        counts[token] += count
    return -np.log(counts / counts.sum())


def _text_features(ids: np.ndarray, text: Mapping[str, Any], rarity: np.ndarray) -> dict[str, float]:
    tokens = ids[~np.isin(ids, text["special"])]
    features = {"length": float(np.log1p(len(tokens)))}
    if len(tokens):
        features |= {"unknown": float((tokens == text["unk"]).mean()), "rarity": float(rarity[tokens].mean())}
    return features


def _frame_features(x: np.ndarray) -> dict[str, float]:
    features = {"length": float(np.log1p(len(x))), "level": float(np.abs(x).mean())}
    if len(x) > 1:
        features["change"] = float(np.abs(np.diff(x, axis=0)).mean())
    return features


@dataclass(frozen=True)
class Drift:
    """The result of a drift test.

    features: one row per feature, with its medians, distance and p. clips: the number of new clips. p: that of the
    whole test; None if there were too few clips or sources.
    """

    features: pd.DataFrame
    clips: int
    p: float | None

    @property
    def alarm(self) -> bool:
        return self.p is not None and self.p < ALARM

    @property
    def sentence(self) -> str:
        if self.p is None:
            return (
                f"drift: not tested, {self.clips} new clips; the test needs {LEAST} new clips, and {LEAST} reference "
                f"clips of {SOURCES} sources"
            )
        if not self.alarm:
            return f"drift: not detected in {self.clips} clips (p {self.p:.3f})"
        worst = self.features[self.features["p"] < ALARM].sort_values("p", kind="stable")
        changes = ", ".join(f"{r.feature} {r.usual:.3g} -> {r.now:.3g}" for r in worst.head(4).itertuples())
        return f"drift: ALARM by {self.clips} clips (p {self.p:.3f}); medians: {changes}"


def drift(reference: pd.DataFrame, new: pd.DataFrame, seed: int = 0) -> Drift:
    """Compare new clips (N, features) with reference clips, which also have the column `source`.

    The distance of a feature is the Kolmogorov-Smirnov statistic times sqrt(n m / (n + m)). The null distribution:
    PERMUTATIONS times, draw whole reference sources until they hold as many clips as are new (at most half of the
    reference), and compare them with the other reference sources. p of a feature is the share of draws whose largest
    distance of any feature is at least the distance of this feature (Westfall & Young 1993, single step), which
    corrects for the number of features. p of the test is the smallest of these.
    """
    features = [column for column in map(str, reference) if column != SOURCE]
    values, others = reference[features].to_numpy(float), new.reindex(columns=features).to_numpy(float)
    sources, source_of = np.unique(reference[SOURCE].to_numpy(str), return_inverse=True)
    enough = len(sources) >= SOURCES and min(len(values), len(others)) >= LEAST
    distances = _distances(values, others)
    p: np.ndarray = np.full(len(features), np.nan)
    if enough:
        random, largest = np.random.default_rng(seed), []
        sizes = np.bincount(source_of)
        for _ in range(PERMUTATIONS):
            order = random.permutation(len(sources))
            size = min(len(others), len(values) // 2)
            drawn = order[: np.searchsorted(sizes[order].cumsum(), size) + 1][: len(sources) - 1]
            in_drawn = np.isin(source_of, drawn)
            largest.append(_distances(values[~in_drawn], values[in_drawn]).max())
        p = (1 + (np.array(largest)[:, None] >= distances - 1e-12).sum(0)) / (1 + PERMUTATIONS)
    table = {"feature": features, "usual": _medians(values), "now": _medians(others), "distance": distances, "p": p}
    return Drift(pd.DataFrame(table), len(others), float(p.min()) if enough else None)


def _medians(values: np.ndarray) -> list[float]:
    return [float(np.median(kept)) if len(kept := column[~np.isnan(column)]) else np.nan for column in values.T]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the scaled distance of each column's distributions; 0 if a side has fewer than LEAST / 4 values."""
    return np.array([_distance(x[~np.isnan(x)], y[~np.isnan(y)]) for x, y in zip(a.T, b.T, strict=True)])


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    if min(len(x), len(y)) < LEAST // 4:
        return 0.0
    both = np.concatenate([x, y])
    shares = [np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (x, y)]
    return float(np.abs(shares[0] - shares[1]).max() * np.sqrt(len(x) * len(y) / (len(x) + len(y))))


def with_reliability(described: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Add r_<modality> from predictions of the same clips to the rows of `describe`, as columns <modality>.r.

    r is NaN for a modality without a frame. A model without r adds no column.
    """
    reliability = {}
    for modality in MODALITIES:
        r = predictions.get(f"r_{modality}")
        if r is not None and f"{modality}.absent" in described and r.notna().any():
            absent = described[f"{modality}.absent"].to_numpy() == 1
            reliability[f"{modality}.r"] = np.where(absent, np.nan, r.to_numpy(float))
    return described.assign(**reliability)
