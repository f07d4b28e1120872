"""The figures of the page: error, reliability, trust and experts along the spectrum.

Each function takes the results, returns what the template prints, and puts every number that it shows into the
flat summary, rounded nowhere.
"""

from typing import TYPE_CHECKING, Any

import pandas as pd

from qamoe.report import plots, tables
from qamoe.report.comparisons import COMPARED, FAMILY, Pairs, Summary, shows
from qamoe.report.results import Results
from qamoe.report.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("mean", "concat", "moe", "qamoe", "oracle")  # in the figures of curves
MEANINGS = {  # of slices, in a reader's words
    "missing": "every word and frame is dropped with probability η, in all modalities alike",
    "missing_features": "every stored frame is dropped with probability η, text vectors too; no word is",
    "noise": "every frame is mixed with noise, and every word swapped for a random one, by λ, in all modalities alike",
    "burst": "one block of the frames is lost, in all modalities alike",
    "mixed": "every clip and modality has its own kind of degradation and its own severity",
    "alone": "one modality is degraded, the others are clean",
    "swap": "a modality is another clip's, with a chance of the severity",
    "joint": "frames are mixed with noise and then dropped, at all pairs of five levels",
    "subsets": "whole modalities are gone, and the model is told which",
    "held_out": "kinds of degradation that training never saw, on audio and vision",
}


def _slice_in_words(name: str) -> str:
    meaning = MEANINGS.get(name)
    return f"Slice {name}: {meaning}." if meaning else f"Slice {name}."


def _figure(figure: Any, alt: str, caption: str) -> dict[str, str]:
    return {"uri": plots.data_uri(figure), "alt": alt, "caption": caption}


def _note_curve(summary: Summary, prefix: str, points: pd.DataFrame, value: str, end: str = "") -> None:
    for severity, number_ in zip(points["severity"], points[value], strict=True):
        summary[f"{prefix}.{tables.severity_key(severity)}{end}"] = plain(number_)


def spectrum(results: Results, summary: Summary) -> dict[str, Any]:
    """Figures of error against severity: a panel a graded slice, and slice mixed."""
    made = []
    by_model = {str(model): own for model, own in results.cells.groupby("model")}
    cells = {model: own for model, own in by_model.items() if model in SHOWN} or by_model
    for name in tables.graded_slices(results.cells):
        of_slice = {model: own[own["slice"] == name] for model, own in cells.items() if name in set(own["slice"])}
        figure = plots.spectrum_curve(of_slice, [name])
        made.append(
            _figure(
                figure,
                f"Error of {', '.join(of_slice)} against severity on slice {name}",
                f"{_slice_in_words(name)} Thick: mean over seeds; thin: each seed. From cells.parquet.",
            )
        )
    errors = {}
    for model in cells:
        if "mixed" in results.slices_of(model) and tables.error_metric(results.cells) == "mae":
            errors[model] = tables.error_by_mean_severity(results.compared(model, "mixed"))
            for row in tables.over_seeds(errors[model], ["bin"], "mae").itertuples(index=False):
                summary[f"{model}.mixed.mae.bin{row.bin:02d}.mean"] = plain(row.mean)
    if errors:
        made.append(
            _figure(
                plots.mixed_curve(errors),
                f"MAE of {', '.join(errors)} against mean severity on slice mixed",
                f"{_slice_in_words('mixed')} In tenths of the mean severity; "
                f"tenths with fewer than {tables.FEWEST} rows are left out. From predictions.parquet.",
            )
        )
    text = "How the error grows as the inputs get worse. Lower and flatter is better."
    if tables.error_metric(results.cells) == "accuracy":
        text = "How accuracy falls as the inputs get worse. Higher and flatter is better."
    return {"title": "Along the spectrum", "text": text, "figures": made, "small": True}


def at_a_glance(results: Results, figure: "Figure | None", judged: list[dict[str, str]]) -> list[dict[str, str]]:
    """The figure that comes first, with what its marks mean, and the best control where it is not one of those drawn.

    judged: controls.no_worse.
    """
    metric = tables.error_metric(results.cells)
    if figure is None or metric is None:
        return []
    first = COMPARED[0]
    side = "left" if metric == "mae" else "right"
    caption = (
        f"Thick: the mean over training seeds. Last panel: {tables.METRIC_NAMES[metric]} of {first} relative to "
        f"another's, a slice a row, 95 % intervals over test sources; {side} of 0 {first} is the better one. "
        "A full mark is a difference by the rules of the table below; a hollow one shows none."
    )
    for row in judged:
        if row["best"] not in SHOWN:
            caption += (
                f" Not drawn: {row['best']}, the control that errs least on {row['slice']} (MAE of {first} relative to "
                f"{row['best']} there: {row['relative']})."
            )
    return [_figure(figure, f"{first} and its controls: error, reliability, differences", caption)]


def glance(results: Results, made: Pairs, compared: list[dict[str, Any]]) -> "Figure | None":
    """Error, reliability and differences side by side; None where there is nothing to compare.

    made: controls.pairs. compared: controls.rows, for Holm's p of the family.
    """
    metric = tables.error_metric(results.cells)
    graded = tables.graded_slices(results.cells)
    first, others = COMPARED[0], FAMILY[0]
    corrected = {(row["against"], row["slice"]): row["corrected"] for row in compared}
    pairs = pd.DataFrame(
        {"against": m, "slice": name, "ratio": pair.ratio, "low": pair.ratio_low, "high": pair.ratio_high}
        | {"claimed": shows(pair, corrected.get((m, name)))}
        for (m, name), pair in made.items()
        if m in others and not pd.isna(pair.ratio)
    )
    if pairs.empty or not graded or metric is None:
        return None
    return plots.at_a_glance(
        results.cells[(results.cells["slice"] == graded[0]) & results.cells["model"].isin(SHOWN)],
        _reliability(results, first, [name for name in ("missing", "noise") if name in graded]),
        pairs,
        metric,
        first,
    )


def _reliability(results: Results, model: str, slices: list[str]) -> pd.DataFrame:
    """Medians of r: slice, modality, severity, median; empty where the model has no r."""
    made = []
    for name in slices:
        predictions = results.predictions(model, name)
        for modality in tables.modalities_of(predictions, "r"):
            points = tables.by_severity(predictions, name, modality, "r")
            made.append(points.assign(slice=name, modality=modality))
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame()


def within_slices(results: Results, summary: Summary) -> dict[str, Any]:
    """Figures of slices that hold several curves: one a kind and set of degraded modalities."""
    made = []
    metric = tables.error_metric(results.cells)
    for name, kind, modalities in tables.curves_within(results.cells):
        cells = results.cells[(results.cells["slice"] == name) & (results.cells["kind"] == kind)]
        cells = cells[(cells["modalities"] == modalities) & (cells["metric"] == metric)]
        by_model = {str(m): own for m, own in cells.groupby("model") if not str(m).startswith("specialist-")}
        for model, own in by_model.items():
            mean = own.groupby(["seed", "severity"])["value"].mean().groupby("severity").mean().reset_index()
            _note_curve(summary, f"{model}.{name}.{modalities}.{kind}.{metric}", mean, "value", ".mean")
        shown = {m: own for m, own in by_model.items() if m in SHOWN} or by_model
        title = f"{name}: {modalities.replace('+', ' and ')}, {kind}"
        figure = plots.spectrum_curve(shown, [name], title=title, kind=kind)
        made.append(_figure(figure, f"Error of {', '.join(shown)} against severity, {title}", ""))
    text = (
        "Where not all modalities are degraded alike, a model can lean on the better ones. Slice alone degrades one "
        "modality and leaves the others clean; slice held_out holds kinds that training never saw. From cells.parquet."
    )
    return {"title": "One modality at a time, and unseen kinds", "text": text, "figures": made, "small": True}


def _model_with(results: Results, column: str) -> str | None:
    """The model whose inner life is shown: qamoe, or else the last that has such a column at all."""
    having = [m for m in results.models if results.has(m, column)]
    return "qamoe" if "qamoe" in having else having[-1] if having else None


def trust(results: Results, summary: Summary) -> dict[str, Any]:
    """Figures of trust and r against severity: one a slice and modality."""
    made: list[dict[str, str]] = []
    model = next(filter(None, (_model_with(results, f"r_{modality}") for modality in tables.MODALITIES)), None)
    if model is None:
        return {"title": "Trust", "text": "", "figures": made, "small": True}
    for name in tables.graded_slices(results.cells):
        predictions = results.predictions(model, name)
        for modality in tables.modalities_of(predictions, "r"):
            curves: dict[str, pd.DataFrame | None] = {"trust": None, "r": None}
            for value in curves:
                if modality in tables.modalities_of(predictions, value):
                    points = tables.by_severity(predictions, name, modality, value)
                    curves[value] = points
                    for statistic in ("median", "low", "high"):
                        prefix = f"{model}.{name}.{value}.{modality}"
                        _note_curve(summary, prefix, points, statistic, f".{statistic}")
            made.append(
                _figure(
                    plots.trust_curve(modality, name, curves["trust"], curves["r"]),
                    f"Trust of {model} in {modality} against severity on slice {name}",
                    "",
                )
            )
    text = (
        f"Trust of {model} in each modality, as users see it, and the reliability r that it is made from: median over "
        "clips and seeds, the band from the 10th to the 90th percentile. A model that knows how bad its inputs are has "
        "curves that fall. Clips without a valid frame in the modality are left out. From predictions.parquet."
    )
    return {"title": "Trust", "text": text, "figures": made, "small": True}


def experts(results: Results, summary: Summary) -> dict[str, Any]:
    """Figures of expert usage along the spectrum, for the seed with the best validation value."""
    made: list[dict[str, str]] = []
    model = _model_with(results, "routing")
    if model is None:
        return {"title": "Experts", "text": "", "figures": made, "small": False}
    seed = _best_seed(results, model)
    for name in tables.graded_slices(results.cells):
        usage = tables.usage_by_severity(results.predictions(model, name), name)
        if usage.empty:
            continue
        entropy = usage.groupby("severity")["entropy"].mean().reset_index()
        _note_curve(summary, f"{model}.{name}.usage_entropy", entropy, "entropy", ".mean")
        for column in tables.experts_of(usage):
            prefix = f"{model}.{name}.usage.{column.replace('_', '')}"
            _note_curve(summary, prefix, usage[usage["seed"] == seed], column, f".seed{seed}")
        made.append(
            _figure(
                plots.expert_usage(name, usage, seed),
                f"Share of each expert of {model} along slice {name}",
                f"Slice {name}: below, the share of the routing that each expert gets, averaged over clips; above, the "
                "entropy of those shares. From predictions.parquet.",
            )
        )
    text = (
        f"Which experts of {model} work at which severity, for seed {seed}, the one with the best validation value. "
        "Experts of different seeds share nothing but a number; thin grey lines are the entropy of the other seeds."
    )
    return {"title": "Experts", "text": text, "figures": made, "small": False}


def _best_seed(results: Results, model: str) -> Any:
    own = [run for run in results.runs if run["model"] == model]
    return min(own, key=lambda run: _nan_last(run["config"].get("selection")))["seed"]


def _nan_last(value: float | None) -> float:
    return float("inf") if value is None or pd.isna(value) else value
