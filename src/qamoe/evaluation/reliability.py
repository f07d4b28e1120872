"""Evidence that reliability r follows damage, and that the model uses it. All of it from predictions alone.

rows: predictions.parquet of one model, with a column `seed`. A clip's r means little by itself; what is asked is
whether it falls as the clip gets worse (Spearman), whether it tells clean clips from degraded ones (AUROC), what
happens when it is exchanged between clips (permuted quality), and what is left when nothing is (spread).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import DRAWS, MODALITIES, interval, over_sources
from qamoe.evaluation.metrics import classes_of

GRADED = ("missing", "noise", "burst", "alone")  # slices along whose severities r is followed
AGAINST = (0.3, 0.5, 0.7, 1.0)  # severities that clean clips are told from
FEWEST_FRAMES = 8  # below, the share lost takes too few values to rank
BY = ["slice", "kind", "modality"]


def curves(rows: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Each (slice, kind, modality) along which r can be followed, with its rows: seed, source, clip_id, frames,
    severity, lost, r. In slice alone the modality is the degraded one."""
    for name in GRADED:
        of_slice = rows[rows["slice"] == name]
        for modality in MODALITIES:
            if f"r_{modality}" not in rows or of_slice[f"r_{modality}"].isna().all():
                continue
            own = of_slice
            kinds = pd.Series(name, index=own.index)
            if name == "alone":
                parts = own["cell"].astype(str).str.split("-", expand=True)  # alone-<modality>-<kind>-<severity>
                own, kinds = own[parts[1] == modality], parts.loc[parts[1] == modality, 2]
            for kind, part in own.groupby(kinds, sort=False):
                found = part[["seed", "source", "clip_id"]].assign(
                    frames=part[f"frames_{modality}"],
                    severity=part[f"severity_{modality}"].astype(float).round(6),
                    lost=part[f"lost_{modality}"].astype(float),
                    r=part[f"r_{modality}"].astype(float),
                )
                yield {"slice": name, "kind": str(kind), "modality": modality}, found[found["frames"] > 0]


def spearman(rows: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Does r fall as a clip loses more? Per clip, Spearman of r against minus the realised share lost.

    Both are means over draws at each severity (noise: lost is lambda). Averaged over clips with at least 8 valid
    frames and over training seeds. A clip whose r never changes counts as 0. One row a slice, kind and modality:
    slice, kind, modality, seed, clips, spearman for each seed, and a row of seed "all" with low and high, the 95 %
    interval over sources. What differs by less than the rounding of single precision is a tie.
    """
    found = []
    for where, curve in curves(rows):
        long = curve[curve["frames"] >= FEWEST_FRAMES]
        if long.empty:
            continue
        mean = long.groupby(["seed", "source", "clip_id", "severity"], sort=True)[["r", "lost"]].mean().round(6)
        r, lost = (mean[column].unstack("severity") for column in ("r", "lost"))
        if r.isna().to_numpy().any():
            raise UserError(f"Slice {where['slice']}, {where['modality']}: a clip is missing at some severity.")
        per_clip = pd.DataFrame({"rho": _spearman(r.to_numpy(), -lost.to_numpy())}, index=r.index).reset_index()
        clips = per_clip["clip_id"].nunique()
        for one, own in per_clip.groupby("seed"):
            found.append({**where, "seed": one, "clips": clips, "spearman": own["rho"].mean()})
        values, _ = over_sources(per_clip.assign(cell="", draw=0), per_clip[["rho"]].to_numpy(), draws=draws, seed=seed)
        mean_rho, low, high = interval(values.mean(1), per_clip["source"].nunique())
        found.append({**where, "seed": "all", "clips": clips, "spearman": mean_rho, "low": low, "high": high})
    return pd.DataFrame(found, columns=[*BY, "seed", "clips", "spearman", "low", "high"])


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation (N,) of each line of a with that of b (N, S), ties shared; 0 where a line is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=1) for side in (a, b))
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def auroc(rows: pd.DataFrame) -> pd.DataFrame:
    """Does r tell clean from degraded? AUROC of r, clean the positive class, over clips and draws.

    Clips without a valid frame in the modality are left out. One row a slice, kind, modality, severity, seed.
    """
    found = []
    for where, curve in curves(rows):
        for one, own in curve.groupby("seed"):
            clean = own.loc[own["severity"] == 0, "r"].to_numpy()
            for severity in AGAINST:
                degraded = own.loc[np.isclose(own["severity"], severity), "r"].to_numpy()
                if len(clean) and len(degraded):
                    found.append({**where, "severity": severity, "seed": one, "auroc": _auroc(clean, degraded)})
    return pd.DataFrame(found, columns=[*BY, "severity", "seed", "auroc"])


def _auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive is above a negative, a tie being half (Mann and Whitney)."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return float((ranks - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


class PermutedQuality(NamedTuple):
    """Relative rise of the error on mixed when r is exchanged between clips, with its 95 % interval over sources.

    The error is the MAE, of classes the share of misses.
    """

    rise: float
    low: float
    high: float
    mae: float  # with r exchanged
    intact: float


def permuted_quality(rows: pd.DataFrame, exchanged: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> PermutedQuality:
    """What the error gains when r is another clip's: 0 means that the model does not use it.

    rows: predictions with a column seed. exchanged: rows of broken.parquet of one `within`, likewise; its draw is
    the number of the permutation. Cells weigh alike. Raises UserError where the two hold different clips.
    """
    intact = rows[rows["cell"].isin(exchanged["cell"].unique())]
    sides = []
    for side in (exchanged, intact):
        clips = side.groupby(["seed", "cell"], observed=True)["clip_id"].unique().map(sorted)
        sides.append({key: list(value) for key, value in clips.items()})
    if sides[0] != sides[1]:
        raise UserError("broken.parquet and predictions.parquet hold different clips or cells; evaluate again.")
    maes = []
    for side in (exchanged, intact):
        gap = (side["prediction"] - side["target"]).abs().to_numpy(float)[:, None]
        error = (gap > 0).astype(float) if classes_of(side) else gap
        values, groups = over_sources(side, error, draws=draws, seed=seed)
        of_cells = groups.groupby(["seed", "cell"], observed=True)["cell"].transform("size").to_numpy()
        maes.append(values @ (1 / of_cells) / (1 / of_cells).sum())
    rise = interval(maes[0] / maes[1] - 1, intact["source"].nunique())
    return PermutedQuality(*rise, float(maes[0][0]), float(maes[1][0]))


def spread_when_all_is_lost(rows: pd.DataFrame) -> pd.Series:
    """Per seed: deviation over clips of the prediction at severity 1 of slice missing, by that of the label.

    With every modality gone, a prediction that still depends on the clip reads what is no evidence. A clip counts
    with its mean over draws.
    """
    lost = rows[rows["cell"] == "missing-1.0"]
    clips = lost.groupby(["seed", "clip_id"])[["prediction", "target"]].mean()
    deviation = clips.groupby("seed").std(ddof=0)
    return deviation["prediction"] / deviation["target"]


def coverage(rows: pd.DataFrame, sigmas: dict[int, dict[str, float]], level: float = 0.9) -> pd.DataFrame:
    """Share of targets inside the interval of `level`, cell by cell: 1 or 0 a row, to be averaged over_sources.

    sigmas: seed -> how many of its sigmas an interval of each level reaches out, from model.json. Returns rows with
    the column covered.
    """
    reach = rows["seed"].map({seed: reaches[f"{level:g}"] for seed, reaches in sigmas.items()}).to_numpy(float)
    residual = (rows["prediction"] - rows["target"]).abs().to_numpy(float)
    return rows.assign(covered=(residual <= reach * np.sqrt(rows["variance"].to_numpy(float))).astype(float))


def covered_share(rows: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """Mean of the column covered with its 95 % interval over sources; cells, their draws and seeds weigh alike."""
    values, groups = over_sources(rows, rows[["covered"]].to_numpy(float), draws=draws, seed=seed)
    share = 1 / groups.groupby(["seed", "cell"], observed=True)["cell"].transform("size").to_numpy()
    return interval(values @ share / share.sum(), rows["source"].nunique())
