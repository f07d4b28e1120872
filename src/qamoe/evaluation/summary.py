"""cells.parquet -> the summary of each slice; light, for those who only read results."""

import numpy as np
import pandas as pd

from qamoe.evaluation.metrics import lower_is_better


def summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """cells.parquet -> one row a (slice, metric): area under the curve over severity (trapezoid, divided by the range;
    mixed: the mean over all rows), the field's average over severities 0..0.9, the worst cell and the clean cell."""
    means = cells.groupby(["slice", "cell", "metric"], sort=False)[["severity", "value"]].mean().reset_index()
    rows = []
    for (name, metric), group in means.groupby(["slice", "metric"], sort=False):
        curve = group.sort_values("severity")
        severity, value = curve["severity"].to_numpy(), curve["value"].to_numpy()
        spread = len(curve) > 1
        area = np.trapezoid(value, severity) / (severity[-1] - severity[0]) if spread else value.mean()
        if metric == "mean_error":
            worst = value[np.abs(value).argmax()]
        else:
            worst = value.max() if lower_is_better(metric) else value.min()
        rows.append(
            {
                "slice": name,
                "metric": metric,
                "area": float(area),
                "area09": float(value[severity < 0.95].mean()) if spread else float("nan"),
                "worst": float(worst),
                "clean": float(value[0]) if severity[0] == 0 else float("nan"),
            }
        )
    return pd.DataFrame(rows)
