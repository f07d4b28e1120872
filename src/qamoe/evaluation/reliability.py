"""Evidence from predictions that reliability r follows degradation, and that the model uses it.

rows: predictions.parquet of one model, with a column `seed`. The measures are: does r fall as a clip loses more
(Spearman), does it separate clean from degraded clips (AUROC), does the error rise when r is exchanged between clips
(permuted quality), what does it gain if r follows corruption or correctness (interventions), and do predictions still
differ when everything is lost (spread)?
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation.auroc import probability_above
from qamoe.evaluation.bootstrap import DRAWS, MODALITIES, interval, metrics_of, over_sources
from qamoe.evaluation.metrics import errors
from qamoe.evaluation.summary import INTERVENTIONS

GRADED = ("missing", "noise", "burst", "alone")  # slices in which r is measured along the severities
AGAINST = (0.3, 0.5, 0.7, 1.0)  # severities of the degraded clips of the AUROC
FEWEST_FRAMES = 8  # with fewer, the share lost has too few values to rank
BY = ["slice", "kind", "modality"]


def curves(rows: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield each (slice, kind, modality) with an r along severities, and its rows.

    The columns are seed, source, clip_id, frames, severity, lost and r. In slice alone, only the degraded modality.
    """
    for name in GRADED:
        of_slice = rows[rows["slice"] == name]
        for modality in MODALITIES:
            if f"r_{modality}" not in rows or of_slice[f"r_{modality}"].isna().all():
                continue
            selected = of_slice
            kinds = pd.Series(name, index=selected.index)
            if name == "alone":
                parts = selected["cell"].astype(str).str.split("-", expand=True)  # alone-<modality>-<kind>-<severity>
                selected, kinds = selected[parts[1] == modality], parts.loc[parts[1] == modality, 2]
            for kind, part in selected.groupby(kinds, sort=False):
                curve = part[["seed", "source", "clip_id"]].assign(
                    frames=part[f"frames_{modality}"],
                    severity=part[f"severity_{modality}"].astype(float).round(6),
                    lost=part[f"lost_{modality}"].astype(float),
                    r=part[f"r_{modality}"].astype(float),
                )
                yield {"slice": name, "kind": str(kind), "modality": modality}, curve[curve["frames"] > 0]


def spearman(rows: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Measure whether r falls as a clip loses more: per clip, Spearman of r against minus the realised share lost.

    Both are means over draws at each severity (for noise, lost is the severity). The result is the mean over clips with
    at least 8 valid frames. A clip with a constant r counts as 0. Differences below the rounding of single precision
    are ties. Returns, for each slice, kind and modality, one row per seed (clips, spearman) and a row of seed "all"
    with low and high, the 95 % interval over sources.
    """
    results = []
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
        for training_seed, of_seed in per_clip.groupby("seed"):
            results.append({**where, "seed": training_seed, "clips": clips, "spearman": of_seed["rho"].mean()})
        values, _ = over_sources(per_clip.assign(cell="", draw=0), per_clip[["rho"]].to_numpy(), draws=draws, seed=seed)
        mean_rho, low, high = interval(values.mean(1), per_clip["source"].nunique())
        results.append({**where, "seed": "all", "clips": clips, "spearman": mean_rho, "low": low, "high": high})
    return pd.DataFrame(results, columns=[*BY, "seed", "clips", "spearman", "low", "high"])


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation (N,) between rows of a and b (N, S), with shared ties; 0 for a constant row."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=1) for side in (a, b))
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def auroc(rows: pd.DataFrame) -> pd.DataFrame:
    """Measure whether r separates clean from degraded clips: AUROC with clean as the positive class.

    It is over clips and draws, without clips that have no valid frame in the modality. Returns one row per slice, kind,
    modality, severity and seed.
    """
    results = []
    for where, curve in curves(rows):
        for training_seed, of_seed in curve.groupby("seed"):
            clean = of_seed.loc[of_seed["severity"] == 0, "r"].to_numpy()
            for severity in AGAINST:
                degraded = of_seed.loc[np.isclose(of_seed["severity"], severity), "r"].to_numpy()
                if len(clean) and len(degraded):
                    area = probability_above(clean, degraded)
                    results.append({**where, "severity": severity, "seed": training_seed, "auroc": area})
    return pd.DataFrame(results, columns=[*BY, "severity", "seed", "auroc"])


class PermutedQuality(NamedTuple):
    """Relative rise of the error on mixed when r is exchanged between clips, with its 95 % interval over sources.

    The error is the MAE, or the rate of wrong classes or labels.
    """

    rise: float
    low: float
    high: float
    mae: float  # with r exchanged
    intact: float


def permuted_quality(rows: pd.DataFrame, exchanged: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> PermutedQuality:
    """Return the rise of the error when each clip gets another clip's r; 0 means that the model does not use r.

    rows: predictions with a column seed. exchanged: the same for broken.parquet with one value of `within`; its draw is
    the number of the permutation. Cells have equal weights. Raises UserError if the clips or cells differ.
    """
    intact = rows[rows["cell"].isin(exchanged["cell"].unique())]
    sides = []
    for side in (exchanged, intact):
        clips = side.groupby(["seed", "cell"], observed=True)["clip_id"].unique().map(sorted)
        sides.append({key: list(value) for key, value in clips.items()})
    if sides[0] != sides[1]:
        raise UserError("broken.parquet and predictions.parquet have different clips or cells; evaluate again.")
    maes = []
    for side in (exchanged, intact):
        values, groups = over_sources(side, errors(side)[:, None], draws=draws, seed=seed)
        cell_sizes = groups.groupby(["seed", "cell"], observed=True)["cell"].transform("size").to_numpy()
        maes.append(values @ (1 / cell_sizes) / (1 / cell_sizes).sum())
    rise = interval(maes[0] / maes[1] - 1, intact["source"].nunique())
    return PermutedQuality(*rise, float(maes[0][0]), float(maes[1][0]))


class Effect(NamedTuple):
    """A metric under an intervention on r, and its difference to native with the 95 % interval over sources."""

    value: float
    difference: float
    low: float
    high: float


def intervention_effects(rows: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> dict[str, dict[str, Effect]]:
    """Return intervention -> metric -> Effect; draws, permutations and training seeds are averaged.

    rows: of diagnostic.parquet, with a column seed. Metrics: MAE and 2-class accuracy, or the accuracy for classes.
    """
    measured: dict[str, dict[str, Effect]] = {name: {} for name in INTERVENTIONS}
    for metric in ("accuracy",) if "accuracy" in metrics_of(rows) else ("mae", "acc2_non0"):
        moments, finish = metrics_of(rows)[metric]
        native: np.ndarray | None = None
        for name in INTERVENTIONS:
            part = rows[rows["intervention"] == name]
            values = over_sources(part, moments(part), finish, draws, seed)[0].mean(1)
            native = values if native is None else native
            measured[name][metric] = Effect(float(values[0]), *interval(values - native, part["source"].nunique()))
    return measured


def spread_when_all_is_lost(rows: pd.DataFrame) -> pd.Series:
    """Return, per seed, the deviation of predictions at severity 1 of slice missing, relative to that of the labels.

    With every modality lost, a prediction that still depends on the clip uses something that is not evidence. A clip's
    prediction is its mean over draws.
    """
    lost = rows[rows["cell"] == "missing-1.0"]
    clips = lost.groupby(["seed", "clip_id"])[["prediction", "target"]].mean()
    deviation = clips.groupby("seed").std(ddof=0)
    return deviation["prediction"] / deviation["target"]


def coverage(rows: pd.DataFrame, sigmas: dict[int, dict[str, float]], level: float = 0.9) -> pd.DataFrame:
    """Return rows with the column covered: 1 if the target is inside the interval of `level`, 0 if not.

    sigmas: seed -> half-width of the interval of each level in sigmas, from model.json.
    """
    half_width = rows["seed"].map({seed: by_level[f"{level:g}"] for seed, by_level in sigmas.items()}).to_numpy(float)
    residual = (rows["prediction"] - rows["target"]).abs().to_numpy(float)
    return rows.assign(covered=(residual <= half_width * np.sqrt(rows["variance"].to_numpy(float))).astype(float))


def covered_share(rows: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of covered and its 95 % interval over sources; cells, draws and seeds have equal weights."""
    values, groups = over_sources(rows, rows[["covered"]].to_numpy(float), draws=draws, seed=seed)
    share = 1 / groups.groupby(["seed", "cell"], observed=True)["cell"].transform("size").to_numpy()
    return interval(values @ share / share.sum(), rows["source"].nunique())
