"""Whether new clips still look like those that a model was made of: their inputs, and the reliability it gives them.

Clips of one source are alike, so a test that took clips as independent would cry wolf. What is usual is therefore
measured between sources: some of the reference's sources against its others, again and again. Our decision.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qamoe.rng import MODALITIES

ALARM = 0.01  # p below which clips have drifted: of a hundred looks at usual clips about one alarms
LEAST = 20  # clips and reference clips below which nothing is said
PERMUTATIONS = 499
SOURCE = "source"


def describe(clips: Iterable[Mapping[str, np.ndarray]], stats: Mapping[str, Any]) -> pd.DataFrame:
    """What a clip's inputs are like, a row a clip: the columns <modality>.<what> of the modalities in stats.json.

    `clips` hold token ids (T,) and standardised frames (T, D) by modality. `absent` is 1 without a frame, and the
    others are then empty: `length` log(1 + T); of text `unknown`, the share of [UNK], and `rarity`, the mean of minus
    the log share of its tokens in training; of frames `level`, mean |x|, and `change`, mean |x_t - x_(t-1)|.
    """
    rarity = _rarity(stats["text"]) if "text" in stats["modalities"] else np.zeros(0)
    rows = []
    for clip in clips:
        row: dict[str, float] = {}
        for modality in stats["modalities"]:
            x = clip[modality]
            row[f"{modality}.absent"] = float(not len(x))
            if len(x):
                numbers = _of_text(x, stats["text"], rarity) if modality == "text" else _of_frames(x)
                row |= {f"{modality}.{what}": value for what, value in numbers.items()}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns(stats["modalities"]), dtype=float)


def columns(modalities: Sequence[str]) -> list[str]:
    """The columns of `describe`."""
    further = {"text": ("unknown", "rarity")}
    return [f"{m}.{what}" for m in modalities for what in ("absent", "length", *further.get(m, ("level", "change")))]


def _rarity(text: Mapping[str, Any]) -> np.ndarray:
    """Minus the log share of each token in training, one occurrence added to all."""
    counts = np.ones(text["vocabulary"])
    for token, count in text["frequencies"]:
        counts[token] += count
    return -np.log(counts / counts.sum())


def _of_text(ids: np.ndarray, text: Mapping[str, Any], rarity: np.ndarray) -> dict[str, float]:
    words = ids[~np.isin(ids, text["special"])]
    numbers = {"length": float(np.log1p(len(words)))}
    if len(words):
        numbers |= {"unknown": float((words == text["unk"]).mean()), "rarity": float(rarity[words].mean())}
    return numbers


def _of_frames(x: np.ndarray) -> dict[str, float]:
    numbers = {"length": float(np.log1p(len(x))), "level": float(np.abs(x).mean())}
    if len(x) > 1:
        numbers["change"] = float(np.abs(np.diff(x, axis=0)).mean())
    return numbers


@dataclass(frozen=True)
class Drift:
    """`features`: a row a number that was looked at, with its medians, distance and p. `clips` were new.

    `p` is that of the whole look, None where there were too few clips or sources to say anything.
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
            return f"drift: too few clips to say ({self.clips}; {LEAST} are needed on both sides, of several sources)"
        if not self.alarm:
            return f"drift: none shown by {self.clips} clips (p {self.p:.3f})"
        worst = self.features[self.features["p"] < ALARM].sort_values("p", kind="stable")
        changes = ", ".join(f"{r.feature} {r.usual:.3g} -> {r.now:.3g}" for r in worst.head(4).itertuples())
        return f"drift: ALARM by {self.clips} clips (p {self.p:.3f}): {changes}"


def drift(reference: pd.DataFrame, new: pd.DataFrame, seed: int = 0) -> Drift:
    """Compare new clips (N, features) with the reference's, which has the column `source` too.

    Each feature's distance is that of Kolmogorov and Smirnov, times sqrt(n m / (n + m)). Whole sources of the
    reference, drawn until they hold as many clips as there are new ones (half of all at most), stand against its other
    sources PERMUTATIONS times. p of a feature is the share of these draws whose largest distance of any feature is at
    least its own (Westfall & Young 1993, single step), so that many features do not mean many alarms; the smallest is
    p of the look.
    """
    features = [column for column in map(str, reference) if column != SOURCE]
    values, others = reference[features].to_numpy(float), new.reindex(columns=features).to_numpy(float)
    sources, source_of = np.unique(reference[SOURCE].to_numpy(str), return_inverse=True)
    enough = len(sources) > 3 and min(len(values), len(others)) >= LEAST
    distances = _distances(values, others)
    p: np.ndarray = np.full(len(features), np.nan)
    if enough:
        random, usual = np.random.default_rng(seed), []
        sizes = np.bincount(source_of)
        for _ in range(PERMUTATIONS):
            order = random.permutation(len(sources))
            wanted = min(len(others), len(values) // 2)
            drawn = order[: np.searchsorted(sizes[order].cumsum(), wanted) + 1][: len(sources) - 1]
            chosen = np.isin(source_of, drawn)
            usual.append(_distances(values[~chosen], values[chosen]).max())
        p = (1 + (np.array(usual)[:, None] >= distances - 1e-12).sum(0)) / (1 + PERMUTATIONS)
    table = {"feature": features, "usual": _medians(values), "now": _medians(others), "distance": distances, "p": p}
    return Drift(pd.DataFrame(table), len(others), float(p.min()) if enough else None)


def _medians(values: np.ndarray) -> list[float]:
    return [float(np.median(kept)) if len(kept := column[~np.isnan(column)]) else np.nan for column in values.T]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scaled distance of each column's two empirical distributions; 0 where a side has less than LEAST / 4 values."""
    return np.array([_distance(x[~np.isnan(x)], y[~np.isnan(y)]) for x, y in zip(a.T, b.T, strict=True)])


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    if min(len(x), len(y)) < LEAST // 4:
        return 0.0
    both = np.concatenate([x, y])
    shares = [np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (x, y)]
    return float(np.abs(shares[0] - shares[1]).max() * np.sqrt(len(x) * len(y) / (len(x) + len(y))))


def with_reliability(described: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """What `describe` gave, and as <modality>.r what predictions of the same clips hold as r_<modality>.

    Of a modality without a frame r says nothing about the clip; a model without r adds nothing.
    """
    reliability = {}
    for modality in MODALITIES:
        r = predictions.get(f"r_{modality}")
        if r is not None and f"{modality}.absent" in described and r.notna().any():
            absent = described[f"{modality}.absent"].to_numpy() == 1
            reliability[f"{modality}.r"] = np.where(absent, np.nan, r.to_numpy(float))
    return described.assign(**reliability)
