"""The figures of the page: error, reliability, trust and experts along the spectrum."""

from typing import TYPE_CHECKING

import pandas as pd

from qamoe.report import plots, tables
from qamoe.report.comparisons import COMPARED, FAMILY, NoWorse, Pairs, Row, shows
from qamoe.report.results import Results, Seed
from qamoe.report.section import Figures, Image, Numbers, Section
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


def _image(figure: "Figure", alt: str, caption: str = "") -> Image:
    return Image(plots.data_uri(figure), alt, caption)


def _curve_numbers(prefix: str, points: pd.DataFrame, column: str, end: str = "") -> Numbers:
    """<prefix>.s03<end> and so on: a column of `points` at each of their severities."""
    return {
        f"{prefix}.{tables.severity_key(severity)}{end}": plain(value)
        for severity, value in zip(points["severity"], points[column], strict=True)
    }


def spectrum(results: Results) -> Section[Figures]:
    """Figures of error against severity: a panel a graded slice, and slice mixed."""
    images = []
    by_model = {str(model): of_model for model, of_model in results.cells.groupby("model")}
    cells = {model: of_model for model, of_model in by_model.items() if model in SHOWN} or by_model
    for name in tables.graded_slices(results.cells):
        of_slice = {m: rows[rows["slice"] == name] for m, rows in cells.items() if name in set(rows["slice"])}
        images.append(
            _image(
                plots.spectrum_curve(of_slice, [name]),
                f"Error of {', '.join(of_slice)} against severity on slice {name}",
                f"{_slice_in_words(name)} Thick: mean over seeds; thin: each seed. From cells.parquet.",
            )
        )
    errors = {}
    numbers: Numbers = {}
    for model in cells:
        if "mixed" in results.slices_of(model) and tables.error_metric(results.cells) == "mae":
            errors[model] = tables.error_by_mean_severity(results.compared(model, "mixed"))
            for row in tables.over_seeds(errors[model], ["bin"], "mae").itertuples(index=False):
                numbers[f"{model}.mixed.mae.bin{row.bin:02d}.mean"] = plain(row.mean)
    if errors:
        images.append(
            _image(
                plots.mixed_curve(errors),
                f"MAE of {', '.join(errors)} against mean severity on slice mixed",
                f"{_slice_in_words('mixed')} In tenths of the mean severity; "
                f"tenths with fewer than {tables.FEWEST} rows are left out. From predictions.parquet.",
            )
        )
    text = "How the error grows as the inputs get worse. Lower and flatter is better."
    if tables.error_metric(results.cells) == "accuracy":
        text = "How accuracy falls as the inputs get worse. Higher and flatter is better."
    return Section(Figures("Along the spectrum", text, images, small=True), numbers)


def at_a_glance(results: Results, figure: "Figure | None", no_worse: list[NoWorse]) -> list[Image]:
    """The figure that comes first, with what its marks mean, and the best control where it is not one of those drawn.

    no_worse: what comparisons.no_worse shows.
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
    for row in no_worse:
        if row.best not in SHOWN:
            caption += (
                f" Not drawn: {row.best}, the control that errs least on {row.slice} (MAE of {first} relative to "
                f"{row.best} there: {row.relative})."
            )
    return [_image(figure, f"{first} and its controls: error, reliability, differences", caption)]


def glance(results: Results, pairs: Pairs, rows: list[Row]) -> "Figure | None":
    """Error, reliability and differences side by side; None where there is nothing to compare.

    pairs, rows: those of comparisons; Holm's p of the family is in rows.
    """
    metric = tables.error_metric(results.cells)
    graded = tables.graded_slices(results.cells)
    first, others = COMPARED[0], FAMILY[0]
    corrected = {(row.against, row.slice): row.corrected for row in rows}
    ratios = pd.DataFrame(
        {"against": m, "slice": name, "ratio": pair.ratio, "low": pair.ratio_low, "high": pair.ratio_high}
        | {"claimed": shows(pair, corrected.get((m, name)))}
        for (m, name), pair in pairs.items()
        if m in others and not pd.isna(pair.ratio)
    )
    if ratios.empty or not graded or metric is None:
        return None
    return plots.at_a_glance(
        results.cells[(results.cells["slice"] == graded[0]) & results.cells["model"].isin(SHOWN)],
        _reliability(results, first, [name for name in ("missing", "noise") if name in graded]),
        ratios,
        metric,
        first,
    )


def _reliability(results: Results, model: str, slices: list[str]) -> pd.DataFrame:
    """Medians of r: slice, modality, severity, median; empty where the model has no r."""
    parts = []
    for name in slices:
        predictions = results.predictions(model, name)
        for modality in tables.modalities_of(predictions, "r"):
            points = tables.by_severity(predictions, name, modality, "r")
            parts.append(points.assign(slice=name, modality=modality))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def within_slices(results: Results) -> Section[Figures]:
    """Figures of slices that hold several curves: one a kind and set of degraded modalities."""
    images = []
    numbers: Numbers = {}
    metric = tables.error_metric(results.cells)
    for name, kind, modalities in tables.curves_within(results.cells):
        cells = results.cells[(results.cells["slice"] == name) & (results.cells["kind"] == kind)]
        cells = cells[(cells["modalities"] == modalities) & (cells["metric"] == metric)]
        by_model = {str(m): rows for m, rows in cells.groupby("model") if not str(m).startswith("specialist-")}
        for model, rows in by_model.items():
            mean = rows.groupby(["seed", "severity"])["value"].mean().groupby("severity").mean().reset_index()
            numbers |= _curve_numbers(f"{model}.{name}.{modalities}.{kind}.{metric}", mean, "value", ".mean")
        shown = {m: rows for m, rows in by_model.items() if m in SHOWN} or by_model
        title = f"{name}: {modalities.replace('+', ' and ')}, {kind}"
        figure = plots.spectrum_curve(shown, [name], title=title, kind=kind)
        images.append(_image(figure, f"Error of {', '.join(shown)} against severity, {title}"))
    text = (
        "Where not all modalities are degraded alike, a model can lean on the better ones. Slice alone degrades one "
        "modality and leaves the others clean; slice held_out holds kinds that training never saw. From cells.parquet."
    )
    return Section(Figures("One modality at a time, and unseen kinds", text, images, small=True), numbers)


def _model_with(results: Results, column: str) -> str | None:
    """The model whose trust or routing is shown: qamoe, or else the last that has such a column at all."""
    having = [m for m in results.models if results.has(m, column)]
    return "qamoe" if "qamoe" in having else having[-1] if having else None


def trust(results: Results) -> Section[Figures]:
    """Figures of trust and r against severity: one a slice and modality."""
    model = next(filter(None, (_model_with(results, f"r_{modality}") for modality in tables.MODALITIES)), None)
    if model is None:
        return Section(Figures("Trust", "", [], small=True), {})
    images = []
    numbers: Numbers = {}
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
                        numbers |= _curve_numbers(prefix, points, statistic, f".{statistic}")
            images.append(
                _image(
                    plots.trust_curve(modality, name, curves["trust"], curves["r"]),
                    f"Trust of {model} in {modality} against severity on slice {name}",
                )
            )
    text = (
        f"Trust of {model} in each modality, as users see it, and the reliability r that it is made from: median over "
        "clips and seeds, the band from the 10th to the 90th percentile. A model that knows how bad its inputs are has "
        "curves that fall. Clips without a valid frame in the modality are left out. From predictions.parquet."
    )
    return Section(Figures("Trust", text, images, small=True), numbers)


def experts(results: Results) -> Section[Figures]:
    """Figures of expert usage along the spectrum, for the seed with the best validation value."""
    model = _model_with(results, "routing")
    if model is None:
        return Section(Figures("Experts", "", [], small=False), {})
    images = []
    numbers: Numbers = {}
    seed = _best_seed(results, model)
    for name in tables.graded_slices(results.cells):
        usage = tables.usage_by_severity(results.predictions(model, name), name)
        if usage.empty:
            continue
        entropy = usage.groupby("severity")["entropy"].mean().reset_index()
        numbers |= _curve_numbers(f"{model}.{name}.usage_entropy", entropy, "entropy", ".mean")
        for column in tables.experts_of(usage):
            prefix = f"{model}.{name}.usage.{column.replace('_', '')}"
            numbers |= _curve_numbers(prefix, usage[usage["seed"] == seed], column, f".seed{seed}")
        images.append(
            _image(
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
    return Section(Figures("Experts", text, images, small=False), numbers)


def _best_seed(results: Results, model: str) -> Seed:
    runs = [run for run in results.runs if run.model == model]
    return min(runs, key=lambda run: _nan_last(run.config.get("selection"))).seed


def _nan_last(value: float | None) -> float:
    return float("inf") if value is None or pd.isna(value) else value
