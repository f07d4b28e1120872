"""Summarise cells.parquet by slice. This module does not import torch."""

import numpy as np
import pandas as pd

from qamoe.config.params import LANDSCAPE
from qamoe.evaluation.metrics import lower_is_better

EQUALLY_WEIGHTED = ("joint", "subsets", "swap")  # slices with equal cell weights; all but landscape are curves
INTERVENTIONS = ("native", "permuted", "corruption", "correctness")  # on r: evaluation/quality_diagnostic.py
BLIND = "-blind"  # suffix of the unannounced cells of slice subsets, which have weight 0


def weights(name: str, severity: pd.Series) -> pd.Series:
    """Return the weight of each cell in the area of slice `name`, summing to 1; severity by cell, in any order.

    The area of a curve is the trapezoid rule over severity, divided by the range. Several curves of a slice (alone: one
    per modality and kind; held_out: one per kind) have equal weights; names of a curve's cells are equal up to the last
    hyphen. Cells of joint, swap and subsets have equal weights, and blind ones 0. The area of landscape is the volume
    by the trapezoid rule over both levels. A single cell has weight 1. Raises ValueError if two cells of a curve have
    the same severity, or a cell has none.
    """
    cells = severity.index.astype(str)
    if name in EQUALLY_WEIGHTED:
        counted = ~cells.str.endswith(BLIND)
        return pd.Series(counted / counted.sum(), severity.index)
    if len(severity) == 1:
        return pd.Series(1.0, severity.index)
    if name == LANDSCAPE:
        noise, missing = (cells.str.split("-").str[i].astype(float) for i in (-2, -1))
        by_level = [_trapezoid(pd.Series(levels.unique(), levels.unique())) for levels in (noise, missing)]
        return pd.Series(by_level[0][noise].to_numpy() * by_level[1][missing].to_numpy(), severity.index)
    curves = [_trapezoid(curve) for _, curve in severity.groupby(cells.str.rsplit("-", n=1).str[0], sort=False)]
    return (pd.concat(curves) / len(curves)).reindex(severity.index)


def _trapezoid(severity: pd.Series) -> pd.Series:
    ordered = severity.astype(float).round(6).sort_values()
    steps = np.diff(ordered.to_numpy())
    if len(ordered) < 2 or ordered.isna().any() or not (steps > 0).all():
        raise ValueError(f"The cells {', '.join(map(str, severity.index))} are not one curve over severity.")
    sides = np.concatenate([[0.0], steps]) + np.concatenate([steps, [0.0]])
    return pd.Series(sides / 2 / steps.sum(), ordered.index)


def summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (slice, metric) from cells.parquet.

    area: the mean with the weights of `weights`. area09: for curves, the mean over severities 0 to 0.9, which is the
    field's average. worst: the worst cell with a weight above 0. clean: the mean over cells without degradation. A
    value that a slice does not have is NaN.
    """
    means = cells.groupby(["slice", "cell", "metric"], sort=False)["value"].mean().reset_index()
    severity = _severities(cells)
    rows = []
    for name, of_slice in means.groupby("slice", sort=False):
        values = of_slice.pivot(index="cell", columns="metric", values="value")
        severities = severity.reindex(of_slice["cell"].unique())
        values, weight = values.reindex(severities.index), weights(str(name), severities)
        is_curve = str(name) not in (*EQUALLY_WEIGHTED, LANDSCAPE) and len(severities) > 1
        counted = values[weight > 0]
        area = weight[weight > 0].to_numpy() @ counted.to_numpy()
        table = pd.DataFrame({"slice": name, "metric": values.columns, "area": area})
        table["area09"] = values[severities < 0.95].mean().to_numpy() if is_curve else np.nan
        table["worst"] = [_worst(str(metric), counted[metric].to_numpy()) for metric in values]
        table["clean"] = values[severities == 0].mean().to_numpy()
        rows.append(table.set_index("metric", drop=False).loc[of_slice["metric"].unique()])
    return pd.concat(rows, ignore_index=True)


def _worst(metric: str, values: np.ndarray) -> float:
    if metric == "mean_error":
        return float(values[np.abs(values).argmax()])
    return float(values.max() if lower_is_better(metric) else values.min())


def _severities(cells: pd.DataFrame) -> pd.Series:
    """Return the severity by cell; for joint and landscape, the larger of their two."""
    first = cells.drop_duplicates("cell").set_index("cell")
    columns = [c for c in ("severity", "severity_missing", "severity_noise") if c in first]
    return first[columns].max(axis=1)
