"""Compute the tables of the report from the cells and predictions of all runs.

A run is one model and training seed. `cells` is the concatenation of every evaluate/<model>/<seed>/cells.parquet,
with the columns model and seed; `predictions` are those of one model, with the column seed.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from rich.console import Console

MODALITIES = ("text", "audio", "vision")
ORDER = ("mean", "text", "concat", "cross_attention", "tensor", "precision", "moe")
STATISTICS = ("area", "area09", "worst", "clean")
ERRORS = ("mae", "accuracy")  # figures show the first of these that was evaluated
METRIC_NAMES = {"mae": "MAE", "acc7": "Acc-7", "accuracy": "Accuracy"}
FEWEST = 20  # minimum number of rows in a bin of mean severity
UNLIMITED = 10_000  # width in characters; rich makes a table only as wide as its content


class Column(NamedTuple):
    """One measure of the headline: statistic `statistic` of `metric` over slice `slice`."""

    slice: str
    metric: str
    statistic: str
    label: str

    @property
    def name(self) -> str:
        return f"{self.slice}.{self.metric}.{self.statistic}"


REGRESSION = (
    Column("clean", "mae", "clean", "MAE, clean"),
    Column("clean", "corr", "clean", "Corr, clean"),
    Column("clean", "acc2_non0", "clean", "Acc-2 Non0, clean"),
    Column("clean", "acc2_sims", "clean", "Acc-2 SIMS, clean"),
    Column("missing", "mae", "area", "MAE, missing (area)"),
    Column("missing", "mae", "area09", "MAE, missing 0..0.9 (mean)"),
    Column("missing_features", "mae", "area", "MAE, missing features (area)"),
    Column("noise", "mae", "area", "MAE, noise (area)"),
    Column("mixed", "mae", "area", "MAE, mixed"),
    Column("alone", "mae", "area", "MAE, alone"),
    Column("swap", "mae", "area", "MAE, swap"),
    Column("mixed", "coverage_90", "area", "Coverage (90 %), mixed"),
    Column("clean", "mean_error", "clean", "Mean error, clean"),
)
CLASSIFICATION = (
    Column("clean", "accuracy", "clean", "Accuracy, clean"),
    Column("clean", "macro_f1", "clean", "Macro F1, clean"),
    Column("missing", "accuracy", "area", "Accuracy, missing (area)"),
    Column("missing", "accuracy", "area09", "Accuracy, missing 0..0.9 (mean)"),
    Column("missing_features", "accuracy", "area", "Accuracy, missing features (area)"),
    Column("noise", "accuracy", "area", "Accuracy, noise (area)"),
    Column("mixed", "accuracy", "area", "Accuracy, mixed"),
    Column("mixed", "calibration_error", "area", "Calibration error, mixed"),
)


def is_share(metric: str) -> bool:
    """Return whether a metric lies in [0, 1] and is printed in per cent."""
    return metric.startswith(("acc", "f1", "macro", "weighted", "balanced_acc", "coverage", "exact"))


def model_order(model: str) -> tuple[int, int, str]:
    """Return a sort key: the controls from the simplest on, then qamoe, the oracle, ablations and specialists.

    A variant comes right after its base.
    """
    base = model.partition("--")[0]
    rank = ORDER.index(base) if base in ORDER else len(ORDER)
    after = ("qamoe", "oracle", "ablation-", "specialist-")
    return (next((i + 1 for i, name in enumerate(after) if model.startswith(name)), 0), rank, model)


def is_control(model: str) -> bool:
    """Return whether a model is a control; QA-MoE, the oracle, their variants, ablations and specialists are not."""
    return model_order(model)[0] == 0


def error_metric(cells: pd.DataFrame) -> str | None:
    """Return the metric that figures show: mae or accuracy; None if the cells have neither."""
    present = set(cells["metric"].unique())
    return next((metric for metric in ERRORS if metric in present), None)


def summaries(cells: pd.DataFrame) -> pd.DataFrame:
    """Summarise every slice of every run: model, seed, slice, metric, area, area09, worst, clean."""
    from qamoe.evaluation.summary import summarise

    parts = []
    for model in sorted(cells["model"].unique(), key=model_order):
        for seed, run in cells[cells["model"] == model].groupby("seed"):
            parts.append(summarise(run.drop(columns=["model", "seed"])).assign(model=model, seed=seed))
    return pd.concat(parts, ignore_index=True)[["model", "seed", "slice", "metric", *STATISTICS]]


def experts_of(usage: pd.DataFrame) -> list[str]:
    """Return the columns of usage_by_severity that hold experts."""
    return [str(c) for c in usage if str(c).startswith("expert_")]


def over_seeds(values: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Return mean and SD of a column over training seeds: the columns `by`, mean, sd (NaN for a single seed)."""
    return values.groupby(by, sort=False, dropna=False)[value].agg(mean="mean", sd="std").reset_index()


def columns_of(cells: pd.DataFrame) -> tuple[Column, ...]:
    """Return the columns of the headline that were evaluated."""
    wanted = REGRESSION if error_metric(cells) == "mae" else CLASSIFICATION
    present = set(cells[["slice", "metric"]].drop_duplicates().itertuples(index=False, name=None))
    return tuple(c for c in wanted if (c.slice, c.metric) in present)


def headline(cells: pd.DataFrame, runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per model: model, number of seeds, and mean `<name>` and SD `<name>.sd` of each measure.

    Names are those of summary.json without the model, such as `missing.mae.area`. runs: summaries(cells), if known.
    """
    runs = summaries(cells) if runs is None else runs
    columns = columns_of(cells)
    rows = []
    for model in runs["model"].unique():
        seeds = runs[runs["model"] == model]
        row: dict[str, object] = {"model": model, "seeds": seeds["seed"].nunique()}
        for column in columns:
            selected = (seeds["slice"] == column.slice) & (seeds["metric"] == column.metric)
            values = seeds.loc[selected, column.statistic]
            row[column.name] = values.mean()
            row[f"{column.name}.sd"] = values.std()
        rows.append(row)
    return pd.DataFrame(rows)


def percent(share: float) -> str:
    """Format a relative difference in per cent with its sign."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def plain(value: Any) -> float | None:
    """Return a value as in summary.json: a float, or None for NaN."""
    return None if pd.isna(value) else float(value)


def number(value: float, metric: str) -> str:
    """Format a value: shares in per cent, errors with three decimals, NaN as ""."""
    if pd.isna(value):
        return ""
    if is_share(metric):
        return f"{100 * value:.1f} %"
    text = f"{value:+.3f}" if metric == "mean_error" else f"{value:.3f}"
    return text.replace("-", "−")


def severity_key(severity: float) -> str:
    """Format a severity as part of a name in summary.json: .3 -> s03, .25 -> s025."""
    hundredths = round(severity * 100)
    return f"s{hundredths // 10:02d}" if hundredths % 10 == 0 else f"s{hundredths:03d}"


def spread(sd: float, metric: str) -> str:
    """Format a standard deviation with ±; NaN, for a single seed, as ""."""
    if pd.isna(sd):
        return ""
    return f"± {100 * sd:.1f}" if is_share(metric) else f"± {sd:.3f}"


def stdout_console() -> "Console":
    """Return a console for stdout that cuts no table if stdout is not a terminal but a pipe or a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=UNLIMITED)


def print_headline(headline: pd.DataFrame, console: "Console | None" = None) -> None:
    """Print the headline: one row per measure, one column per model, in several tables if the models do not fit."""
    from rich.table import Table
    from rich.text import Text

    console = console or stdout_console()
    columns = [c for c in dict.fromkeys((*REGRESSION, *CLASSIFICATION)) if c.name in headline]
    models_per_table = max(1, (console.width - max((len(c.label) for c in columns), default=0) - 4) // 16)
    for start in range(0, len(headline), models_per_table):
        table = Table(title=None if start else "Test split, mean ± SD over training seeds", title_justify="left")
        table.add_column("")
        shown = [row for _, row in headline.iloc[start : start + models_per_table].iterrows()]
        for row in shown:
            seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
            table.add_column(Text(f"{row['model']}\n{seeds}"), justify="right")
        for column in columns:
            values = (
                " ".join(
                    (number(row[column.name], column.metric), spread(row[f"{column.name}.sd"], column.metric))
                ).strip()
                for row in shown
            )
            table.add_row(column.label, *map(Text, values))
        console.print(table)


def curves(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the graded slices, mean over seeds: model, slice, severity, then one column per metric.

    Without a graded slice there are no rows, and the columns are those of the other slices.
    """
    graded = cells[cells["slice"].isin(graded_slices(cells))].assign(severity=lambda c: c["severity"].round(6))
    per_seed = graded.groupby(["model", "seed", "slice", "severity", "metric"], sort=False)["value"].mean()
    mean = per_seed.groupby(["model", "slice", "severity", "metric"], sort=False).mean().unstack("metric")
    names = list(dict.fromkeys((cells if graded.empty else graded)["metric"]))
    return mean.reindex(columns=names).reset_index().sort_values(["model", "slice", "severity"], ignore_index=True)


def graded_slices(cells: pd.DataFrame) -> list[str]:
    """Return the slices that form one curve: several cells, each with its own severity."""
    shape = cells.groupby("slice", sort=False).agg(cells=("cell", "nunique"), severities=("severity", "nunique"))
    return list(shape.index[(shape["cells"] > 1) & (shape["cells"] == shape["severities"])])


def curves_within(cells: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return (slice, kind, modalities) of every curve in a slice of several curves, such as noise on audio in alone."""
    rest = cells[~cells["slice"].isin(graded_slices(cells)) & cells["severity"].notna()]
    shape = rest.groupby(["slice", "kind", "modalities"], sort=False).agg(
        cells=("cell", "nunique"), severities=("severity", "nunique")
    )
    return [key for key, row in shape.iterrows() if row["cells"] == row["severities"] > 2]  # type: ignore[misc]


def modalities_of(predictions: pd.DataFrame, value: str) -> list[str]:
    """Return the modalities for which the predictions hold `value` (r, trust, severity)."""
    return [m for m in MODALITIES if f"{value}_{m}" in predictions and predictions[f"{value}_{m}"].notna().any()]


def by_severity(predictions: pd.DataFrame, name: str, modality: str, value: str) -> pd.DataFrame:
    """Return `value` (trust or r) on slice `name`: severity, median, low, high (10 and 90 % of clips), clips.

    A clip counts once per seed, with its mean over draws. Clips without a valid frame in the modality are left out:
    their trust is 0 by definition, at any severity.
    """
    rows = predictions[(predictions["slice"] == name) & (predictions[f"frames_{modality}"] > 0)]
    severity = rows[f"severity_{modality}"].astype(float).round(6).rename("severity")
    per_clip = rows.groupby([rows["seed"], rows["clip_id"], severity])[f"{value}_{modality}"].mean()
    over_clips = per_clip.groupby("severity")
    shares = {"median": 0.5, "low": 0.1, "high": 0.9}
    quantiles = pd.DataFrame({name: over_clips.quantile(share) for name, share in shares.items()})
    return quantiles.assign(clips=per_clip.reset_index().groupby("severity")["clip_id"].nunique()).reset_index()


def usage_by_severity(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the mean routing weight of each expert on slice `name`: seed, severity, entropy (bits), expert_1 ...

    Entropy is that of the mean weights over clips; its maximum is log2 of the number of experts.
    """
    rows = predictions[(predictions["slice"] == name) & predictions["routing"].notna()]
    if rows.empty:
        return pd.DataFrame(columns=["seed", "severity", "entropy"])
    severity = rows[[f"severity_{m}" for m in modalities_of(rows, "severity")]].max(axis=1).astype(float).round(6)
    usage = pd.DataFrame(np.stack(rows["routing"].to_list()).astype(float), index=rows.index)
    usage.columns = pd.Index([f"expert_{i + 1}" for i in range(usage.shape[1])])
    mean = usage.groupby([rows["seed"], severity.rename("severity")]).mean()
    share = mean.to_numpy()
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    mean.insert(0, "entropy", np.abs((share * logs).sum(axis=1)))
    return mean.reset_index()


def error_by_mean_severity(predictions: pd.DataFrame) -> pd.DataFrame:
    """Bin slice `mixed` by mean severity over modalities, in steps of 0.1: seed, bin, severity (mean), mae, rows.

    Bins with fewer than FEWEST rows are left out: the mean of several uniform draws is rarely near 0 or 1.
    """
    rows = predictions[predictions["slice"] == "mixed"]
    present = [f"severity_{m}" for m in modalities_of(rows, "severity")]
    rows = rows.dropna(subset=present, how="all")
    severity = rows[present].astype(float).mean(axis=1)
    errors = pd.DataFrame(
        {
            "seed": rows["seed"],
            "bin": np.minimum((severity * 10).astype(int), 9),
            "severity": severity,
            "mae": (rows["prediction"] - rows["target"]).abs(),
        }
    )
    bins = errors.groupby(["seed", "bin"])
    binned = bins.agg(severity=("severity", "mean"), mae=("mae", "mean"), rows=("mae", "size"))
    return binned[binned["rows"] >= FEWEST].reset_index()


def error_by_source(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the sources of slice `mixed`: source, clips, mae (mean over seeds), the highest first."""
    rows = predictions[predictions["slice"] == "mixed"]
    sources = rows.assign(mae=(rows["prediction"] - rows["target"]).abs()).groupby("source")
    errors = sources.agg(clips=("clip_id", "nunique"), mae=("mae", "mean")).reset_index()
    return errors.sort_values(["mae", "source"], ascending=[False, True], ignore_index=True)
