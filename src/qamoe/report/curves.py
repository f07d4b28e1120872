"""Draw the figures of the page: error, reliability, trust and experts against severity."""

from typing import TYPE_CHECKING

import pandas as pd

from qamoe.report import plots, tables
from qamoe.report.comparisons import COMPARED, FAMILY, NonInferiorityRow, Pairs, ReportedPair, shows_difference
from qamoe.report.results import Results, Seed
from qamoe.report.section import Figures, Image, Numbers, Section
from qamoe.report.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("mean", "concat", "moe", "qamoe", "oracle")  # models in the figures of curves
MEANINGS = {  # slice -> how its clips are degraded, for captions
    "missing": "every word and frame is dropped with probability η, in every modality",
    "missing_features": "every stored frame, also of text, is dropped with probability η; no word is dropped",
    "noise": "in every modality, frames are mixed with noise of weight λ and words are replaced with probability λ",
    "burst": "one block of frames is lost in every modality",
    "mixed": "every clip and modality has its own kind of degradation and its own severity",
    "alone": "one modality is degraded, the others are clean",
    "swap": "with a probability equal to the severity, a modality is taken from another clip",
    "joint": "frames are mixed with noise and then dropped, at all pairs of five levels",
    "landscape": "noise in every modality, and whole modalities are lost, at all pairs of the levels",
    "paper_noise": "noise of λ deviations is added to every frame, and words become id 0 with probability λ",
    "subsets": "whole modalities are missing, and the model knows which",
    "held_out": "audio and vision are degraded in ways that training did not use",
}


def _slice_meaning(name: str) -> str:
    meaning = MEANINGS.get(name)
    return f"Slice {name}: {meaning}." if meaning else f"Slice {name}."


def _image(figure: "Figure", alt: str, caption: str = "") -> Image:
    return Image(plots.data_uri(figure), alt, caption)


def _curve_numbers(prefix: str, points: pd.DataFrame, column: str, end: str = "") -> Numbers:
    """Return <prefix>.s03<end> and so on: a column of `points` at each of their severities."""
    return {
        f"{prefix}.{tables.severity_key(severity)}{end}": plain(value)
        for severity, value in zip(points["severity"], points[column], strict=True)
    }


def _shown(results: Results) -> dict[str, pd.DataFrame]:
    """Return the cells of each model in SHOWN, or of every model if there is none."""
    by_model = {str(model): model_cells for model, model_cells in results.cells.groupby("model")}
    return {model: model_cells for model, model_cells in by_model.items() if model in SHOWN} or by_model


def spectrum(results: Results) -> Section[Figures]:
    """Draw error against severity: one figure per graded slice, and one for slice mixed."""
    images = []
    cells = _shown(results)
    for name in tables.graded_slices(results.cells):
        slice_cells = {m: rows[rows["slice"] == name] for m, rows in cells.items() if name in set(rows["slice"])}
        images.append(
            _image(
                plots.spectrum_curve(slice_cells, [name]),
                f"Error of {', '.join(slice_cells)} against severity on slice {name}",
                f"{_slice_meaning(name)} Thick: mean over seeds; thin: each seed. From cells.parquet.",
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
                f"{_slice_meaning('mixed')} Rows are binned by mean severity in steps of 0.1; "
                f"bins with fewer than {tables.FEWEST} rows are left out. From predictions.parquet.",
            )
        )
    text = "MAE against severity; lower is better."
    if tables.error_metric(results.cells) == "accuracy":
        text = "Accuracy against severity; higher is better."
    return Section(Figures("Error by severity", text, images, small=True), numbers)


def at_a_glance(results: Results, figure: "Figure | None", non_inferiority: list[NonInferiorityRow]) -> list[Image]:
    """Return the first figure of the page with a caption that explains its marks.

    The caption also names the best control of a slice if the figure does not show it. non_inferiority: the rows of
    comparisons.non_inferiority.
    """
    metric = tables.error_metric(results.cells)
    if figure is None or metric is None:
        return []
    first = COMPARED[0]
    side = "left" if metric == "mae" else "right"
    caption = (
        f"Thick: mean over training seeds. Last panel: {tables.METRIC_NAMES[metric]} of {first} relative to "
        f"that of another model, one row per slice, with 95 % intervals over test sources; {side} of 0, {first} is "
        "better. Filled mark: a difference by the rules of the table below; hollow mark: no difference shown."
    )
    for row in non_inferiority:
        if row.best not in SHOWN:
            caption += (
                f" Not shown: {row.best}, the control with the lowest MAE on {row.slice} (MAE of {first} relative to "
                f"{row.best}: {row.relative})."
            )
    return [_image(figure, f"{first} and its controls: error, reliability, differences", caption)]


def glance(results: Results, pairs: Pairs, reported: list[ReportedPair]) -> "Figure | None":
    """Draw error, reliability and differences side by side; return None without a model to compare.

    pairs: comparisons.pairs. reported: comparisons.reported_pairs, with Holm's p of FAMILY.
    """
    metric = tables.error_metric(results.cells)
    graded = tables.graded_slices(results.cells)
    first, others = COMPARED[0], FAMILY[0]
    corrected = {(row.against, row.slice): row.corrected for row in reported}
    ratios = pd.DataFrame(
        {"against": m, "slice": name, "ratio": pair.ratio, "low": pair.ratio_low, "high": pair.ratio_high}
        | {"claimed": shows_difference(pair, corrected.get((m, name)))}
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


def for_dvc(results: Results) -> "dict[str, Figure]":
    """Return the figures of `dvc plots show` by name: errors in training, and error and reliability by severity.

    A figure without data is left out: without a trained model, a graded slice, or a model with r.
    """
    figures = {}
    epochs = pd.DataFrame(
        [
            {"model": run.model, "seed": run.seed, "epoch": line["epoch"], "error": line["valid"]}
            for run in results.runs
            for line in run.epochs
        ]
    )
    if not epochs.empty:
        figures["training"] = plots.training_curves(epochs)
    graded = tables.graded_slices(results.cells)
    if graded and tables.error_metric(results.cells):
        figures["error"] = plots.spectrum_curve(_shown(results), graded)
    first = COMPARED[0]
    r = _reliability(results, first, graded[:2]) if first in results.models else pd.DataFrame()
    if not r.empty:
        figures["reliability"] = plots.reliability_curves(r)
    return figures


def _reliability(results: Results, model: str, slices: list[str]) -> pd.DataFrame:
    """Return the medians of r: slice, modality, severity, median; empty for a model without r."""
    parts = []
    for name in slices:
        predictions = results.predictions(model, name)
        for modality in tables.modalities_of(predictions, "r"):
            points = tables.by_severity(predictions, name, modality, "r")
            parts.append(points.assign(slice=name, modality=modality))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def within_slices(results: Results) -> Section[Figures]:
    """Draw the slices that hold several curves: one figure per kind and set of degraded modalities."""
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
        "Slice alone degrades one modality and leaves the others clean. Slice held_out uses kinds of degradation that "
        "training did not use. From cells.parquet."
    )
    return Section(Figures("Single modalities and held-out degradations", text, images, small=True), numbers)


def _model_with(results: Results, column: str) -> str | None:
    """Return the model whose trust or routing is shown: qamoe, or else the last model that has this column."""
    models = [m for m in results.models if results.has(m, column)]
    return "qamoe" if "qamoe" in models else models[-1] if models else None


def trust(results: Results) -> Section[Figures]:
    """Draw trust and r against severity: one figure per slice and modality."""
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
        f"Trust of {model} in each modality, and the reliability r that trust is computed from: median over clips and "
        "seeds, with a band from the 10th to the 90th percentile. Clips without a valid frame in the modality are left "
        "out. From predictions.parquet."
    )
    return Section(Figures("Trust", text, images, small=True), numbers)


def experts(results: Results) -> Section[Figures]:
    """Draw expert usage against severity for the seed with the best validation value."""
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
                f"Routing weight of each expert of {model} against severity on slice {name}",
                f"Slice {name}. Bottom: mean routing weight of each expert over clips. Top: entropy of these means. "
                "From predictions.parquet.",
            )
        )
    text = (
        f"Routing weights of {model} by severity, for seed {seed}, which has the best validation value. Expert numbers "
        "of different seeds are not comparable, so other seeds appear only as thin grey lines of entropy."
    )
    return Section(Figures("Experts", text, images, small=False), numbers)


def _best_seed(results: Results, model: str) -> Seed:
    runs = [run for run in results.runs if run.model == model]
    return min(runs, key=lambda run: _infinity_if_missing(run.config.get("selection"))).seed


def _infinity_if_missing(value: float | None) -> float:
    return float("inf") if value is None or pd.isna(value) else value
