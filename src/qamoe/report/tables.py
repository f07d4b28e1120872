"""Tables of the report: what cells and predictions of all runs say, as small frames.

A run is one model and training seed. `cells` are those of every evaluate/<model>/<seed>/ under each other, with
the columns model and seed; `predictions` are those of one model, with the column seed.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from rich.console import Console

MODALITIES = ("text", "audio", "vision")
ORDER = ("mean", "text", "concat", "cross_attention", "tensor", "precision", "moe")
STATISTICS = ("area", "area09", "worst", "clean")
ERRORS = ("mae", "accuracy")  # the metric that figures show: the first that exists
METRIC_NAMES = {"mae": "MAE", "accuracy": "Accuracy"}
FEWEST = 20  # rows in a bin of mean severity, for a point of the figure


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
    Column("mixed", "coverage_90", "area", "90 % interval covers, mixed"),
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
    """True for metrics in [0, 1] that people read as per cent."""
    return metric.startswith(("acc", "f1", "macro", "weighted", "balanced_acc", "coverage"))


def model_order(model: str) -> tuple[int, int, str]:
    """Sort key: the controls from the simplest on, qamoe, and after it the oracle, ablations and specialists."""
    rank = ORDER.index(model) if model in ORDER else len(ORDER)
    after = ("qamoe", "oracle", "ablation-", "specialist-")
    return (next((i + 1 for i, name in enumerate(after) if model.startswith(name)), 0), rank, model)


def is_control(model: str) -> bool:
    """Whether a model is one that QA-MoE is to be no worse than: oracle, ablations and specialists are not."""
    return model_order(model)[0] == 0


def error_metric(cells: pd.DataFrame) -> str | None:
    """The metric that figures show of these cells, or None where they hold neither."""
    present = set(cells["metric"].unique())
    return next((metric for metric in ERRORS if metric in present), None)


def summaries(cells: pd.DataFrame) -> pd.DataFrame:
    """Every run's summary of every slice: model, seed, slice, metric, area, area09, worst, clean."""
    from qamoe.evaluation.summary import summarise

    parts = []
    for model in sorted(cells["model"].unique(), key=model_order):
        for seed, run in cells[cells["model"] == model].groupby("seed"):
            parts.append(summarise(run.drop(columns=["model", "seed"])).assign(model=model, seed=seed))
    return pd.concat(parts, ignore_index=True)[["model", "seed", "slice", "metric", *STATISTICS]]


def experts_of(usage: pd.DataFrame) -> list[str]:
    """The columns of usage_by_severity that are experts."""
    return [str(c) for c in usage if str(c).startswith("expert_")]


def over_seeds(values: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean and SD over training seeds of a column: the columns `by`, mean, sd (NaN for a single seed)."""
    return values.groupby(by, sort=False, dropna=False)[value].agg(mean="mean", sd="std").reset_index()


def columns_of(cells: pd.DataFrame) -> tuple[Column, ...]:
    """The headline's columns that these cells can fill."""
    wanted = REGRESSION if error_metric(cells) == "mae" else CLASSIFICATION
    present = set(cells[["slice", "metric"]].drop_duplicates().itertuples(index=False, name=None))
    return tuple(c for c in wanted if (c.slice, c.metric) in present)


def headline(cells: pd.DataFrame, runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a model: model, seeds (how many), and each measure's mean `<name>` and `<name>.sd` over seeds.

    Names are those of summary.json without the model, such as `missing.mae.area`. runs: summaries(cells), if made.
    """
    runs = summaries(cells) if runs is None else runs
    columns = columns_of(cells)
    rows = []
    for model in runs["model"].unique():
        seeds = runs[runs["model"] == model]
        row: dict[str, object] = {"model": model, "seeds": seeds["seed"].nunique()}
        for column in columns:
            of_column = (seeds["slice"] == column.slice) & (seeds["metric"] == column.metric)
            values = seeds.loc[of_column, column.statistic]
            row[column.name] = values.mean()
            row[f"{column.name}.sd"] = values.std()
        rows.append(row)
    return pd.DataFrame(rows)


def percent(share: float) -> str:
    """A relative difference as the page prints it, with its sign."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def plain(value: Any) -> float | None:
    """As summary.json holds it: a float, None for NaN."""
    return None if pd.isna(value) else float(value)


def number(value: float, metric: str) -> str:
    """A value as people read it: shares in per cent, errors with three digits, nothing for NaN."""
    if pd.isna(value):
        return ""
    if is_share(metric):
        return f"{100 * value:.1f} %"
    text = f"{value:+.3f}" if metric == "mean_error" else f"{value:.3f}"
    return text.replace("-", "−")


def severity_key(severity: float) -> str:
    """.3 -> s03, .25 -> s025: a severity within a name of the summary."""
    hundredths = round(severity * 100)
    return f"s{hundredths // 10:02d}" if hundredths % 10 == 0 else f"s{hundredths:03d}"


def spread(sd: float, metric: str) -> str:
    """A standard deviation with its sign, or nothing where there is only one seed."""
    if pd.isna(sd):
        return ""
    return f"± {100 * sd:.1f}" if is_share(metric) else f"± {sd:.3f}"


def print_headline(headline: pd.DataFrame, console: "Console | None" = None) -> None:
    """Print the headline in a terminal: a row a measure, a column a model, as many models beside each other as fit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    columns = [c for c in dict.fromkeys((*REGRESSION, *CLASSIFICATION)) if c.name in headline]
    beside = max(1, (console.width - max((len(c.label) for c in columns), default=0) - 4) // 16)
    for start in range(0, len(headline), beside):
        table = Table(title=None if start else "Test split, mean ± SD over training seeds", title_justify="left")
        table.add_column("")
        shown = [row for _, row in headline.iloc[start : start + beside].iterrows()]
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
    """Graded slices, mean over seeds: model, slice, severity, then a column a metric."""
    graded = cells[cells["slice"].isin(graded_slices(cells))].assign(severity=lambda c: c["severity"].round(6))
    per_seed = graded.groupby(["model", "seed", "slice", "severity", "metric"], sort=False)["value"].mean()
    mean = per_seed.groupby(["model", "slice", "severity", "metric"], sort=False).mean().unstack("metric")
    names = list(dict.fromkeys(graded["metric"]))
    return mean[names].reset_index().sort_values(["model", "slice", "severity"], ignore_index=True)


def graded_slices(cells: pd.DataFrame) -> list[str]:
    """Slices that are curves: one line of cells, each with its own severity."""
    shape = cells.groupby("slice", sort=False).agg(cells=("cell", "nunique"), severities=("severity", "nunique"))
    return list(shape.index[(shape["cells"] > 1) & (shape["cells"] == shape["severities"])])


def curves_within(cells: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(slice, kind, modalities) of every curve inside a slice that is none itself, such as audio's noise in alone."""
    rest = cells[~cells["slice"].isin(graded_slices(cells)) & cells["severity"].notna()]
    shape = rest.groupby(["slice", "kind", "modalities"], sort=False).agg(
        cells=("cell", "nunique"), severities=("severity", "nunique")
    )
    return [key for key, row in shape.iterrows() if row["cells"] == row["severities"] > 2]  # type: ignore[misc]


def modalities_of(predictions: pd.DataFrame, value: str) -> list[str]:
    """Modalities for which these predictions hold `value` (r, trust, severity) at all."""
    return [m for m in MODALITIES if f"{value}_{m}" in predictions and predictions[f"{value}_{m}"].notna().any()]


def by_severity(predictions: pd.DataFrame, name: str, modality: str, value: str) -> pd.DataFrame:
    """`value` (trust or r) along slice `name`: severity, median, low, high (10 and 90 % of clips), clips.

    A clip counts once a seed, with its mean over draws. Clips without a valid frame in the modality are left
    out: their trust is 0 by definition and says nothing about severity.
    """
    rows = predictions[(predictions["slice"] == name) & (predictions[f"frames_{modality}"] > 0)]
    severity = rows[f"severity_{modality}"].astype(float).round(6).rename("severity")
    per_clip = rows.groupby([rows["seed"], rows["clip_id"], severity])[f"{value}_{modality}"].mean()
    over_clips = per_clip.groupby("severity")
    shares = {"median": 0.5, "low": 0.1, "high": 0.9}
    quantiles = pd.DataFrame({name: over_clips.quantile(share) for name, share in shares.items()})
    return quantiles.assign(clips=per_clip.reset_index().groupby("severity")["clip_id"].nunique()).reset_index()


def usage_by_severity(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Each expert's share of the routing along slice `name`: seed, severity, entropy (bits), expert_1 ...

    Entropy is that of the mean usage over clips: log2 of the number of experts where all are used alike.
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
    """Slice `mixed` by tenths of a row's mean severity over modalities: seed, bin, severity (mean), mae, rows.

    The mean of several uniform draws is seldom near 0 or 1: bins with fewer than 20 rows are left out.
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
    """Slice `mixed`: source, clips, mae (mean over seeds), the hardest first."""
    rows = predictions[predictions["slice"] == "mixed"]
    sources = rows.assign(mae=(rows["prediction"] - rows["target"]).abs()).groupby("source")
    errors = sources.agg(clips=("clip_id", "nunique"), mae=("mae", "mean")).reset_index()
    return errors.sort_values(["mae", "source"], ascending=[False, True], ignore_index=True)
