"""Build the sections on reliability and calibration of the page.

r, permuted quality and coverage exist for QA-MoE only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qamoe.evaluation import reliability
from qamoe.evaluation.bootstrap import compare
from qamoe.evaluation.summary import BLIND
from qamoe.report import plots, tables
from qamoe.report.results import PERMUTED_QUALITY, Results
from qamoe.report.section import Image, Numbers, Section, merged
from qamoe.report.tables import number, percent

MODEL = "qamoe"
ALL_MISSING = "missing-1.0"  # the cell in which every modality is missing
LEVEL = 0.9
UNCERTAINTY = ("coverage_90", "calibration_error", "nll", "risk_coverage")  # one column each, for every model
LABELS = {
    "coverage_90": "Coverage (90 %)",
    "calibration_error": "Calibration error",
    "nll": "NLL",
    "risk_coverage": "Risk-coverage area",
}


@dataclass(frozen=True)
class ReliabilityRow:
    """Spearman of r over clips with its interval, and AUROC of r at each severity of reliability.AGAINST."""

    what: str
    modality: str
    clips: int
    spearman: str
    interval: str
    auroc: list[str]


def reliability_rows(results: Results) -> Section[list[ReliabilityRow]]:
    """Return Spearman and AUROC of r, one row per slice, kind and modality; no row without QA-MoE."""
    rows: list[ReliabilityRow] = []
    numbers: Numbers = {}
    if MODEL not in results.models:
        return Section(rows, numbers)
    for name in (n for n in reliability.GRADED if n in results.slices_of(MODEL)):
        columns = ["clip_id", "source", "slice", "cell", "draw"]
        columns += [f"{c}_{m}" for m in tables.MODALITIES for c in ("frames", "severity", "lost", "r")]
        predictions = results.predictions(MODEL, name, columns=columns)
        areas = reliability.auroc(predictions).set_index(reliability.BY)
        for where, rho in reliability.spearman(predictions).groupby(reliability.BY, sort=False):
            slice_, kind, modality = map(str, where)
            prefix = f"{MODEL}.reliability.{slice_}.{kind}.{modality}"
            all_seeds = rho[rho["seed"] == "all"].iloc[0]
            auroc = _auroc(prefix, areas.loc[[where]] if where in areas.index else areas.iloc[:0])
            numbers |= _spearman_numbers(prefix, rho, all_seeds) | auroc.numbers
            rows.append(
                ReliabilityRow(
                    what=slice_ if kind == slice_ else f"{slice_}, {kind}",
                    modality=modality,
                    clips=int(all_seeds["clips"]),
                    spearman=number(all_seeds["spearman"], "corr"),
                    interval=f"{number(all_seeds['low'], 'corr')} to {number(all_seeds['high'], 'corr')}",
                    auroc=auroc.context,
                )
            )
    return Section(rows, numbers)


def _spearman_numbers(prefix: str, rho: pd.DataFrame, all_seeds: "pd.Series[Any]") -> Numbers:
    by_seed = rho.set_index("seed")["spearman"]
    return {
        f"{prefix}.clips": int(all_seeds["clips"]),
        **{f"{prefix}.spearman.{'mean' if s == 'all' else f'seed{s}'}": float(v) for s, v in by_seed.items()},
        **{f"{prefix}.spearman.{end}": float(all_seeds[end]) for end in ("low", "high")},
    }


def _auroc(prefix: str, areas: pd.DataFrame) -> Section[list[str]]:
    """Return the mean over seeds at each severity of AGAINST. areas: reliability.auroc of one modality and kind."""
    means = []
    numbers: Numbers = {}
    for severity in reliability.AGAINST:
        at = areas[areas["severity"] == severity]
        name = f"{prefix}.auroc.{tables.severity_key(severity)}"
        numbers |= {f"{name}.seed{s}": float(v) for s, v in zip(at["seed"], at["auroc"], strict=True)}
        numbers[f"{name}.mean"] = float(at["auroc"].mean()) if len(at) else None
        means.append(number(at["auroc"].mean(), "corr"))
    return Section(means, numbers)


@dataclass(frozen=True)
class PermutedQualityRow:
    """The error with each clip's own r and with the r of another clip, formatted for the page."""

    what: str
    intact: str
    permuted: str
    rise: str
    interval: str


def permuted_quality(results: Results) -> Section[list[PermutedQualityRow]]:
    """Return the increase of the error when clips exchange r, across draws or within one.

    No row without broken.parquet. The names of its numbers start with `broken`, see evaluation/quality_permutation.py.
    """
    rows: list[PermutedQualityRow] = []
    numbers: Numbers = {}
    folders = results.folders.get(MODEL, {})
    if not folders or not all((folder / PERMUTED_QUALITY).is_file() for folder in folders.values()):
        return Section(rows, numbers)
    permuted = results.compared(MODEL, file=PERMUTED_QUALITY)
    intact = results.compared(MODEL, cells=list(permuted["cell"].unique()))
    for within, label in ((False, "between clips of all draws"), (True, "between clips of one draw")):
        exchanged = permuted[permuted["within"] == within]
        if exchanged.empty:
            continue
        error = reliability.permuted_quality(intact, exchanged)
        prefix = f"{MODEL}.broken.{'within' if within else 'across'}"
        numbers |= {f"{prefix}.{name}": value for name, value in error._asdict().items()}
        rows.append(
            PermutedQualityRow(
                what=label,
                intact=number(error.intact, "mae"),
                permuted=number(error.mae, "mae"),
                rise=percent(error.rise),
                interval=f"{percent(error.low)} to {percent(error.high)}",
            )
        )
    return Section(rows, numbers)


@dataclass(frozen=True)
class AllMissing:
    """SD of the predictions over that of the labels; MAE over that of the mean predictor, empty if not evaluated."""

    spread: str
    ratio: str = ""
    interval: str = ""


def all_missing(results: Results) -> Section[AllMissing | None]:
    """Return how much predictions vary when every modality is missing; None if that cell was not evaluated."""
    if MODEL not in results.models or tables.error_metric(results.cells) != "mae":
        return Section(None, {})
    if ALL_MISSING not in set(results.cells.loc[results.cells["model"] == MODEL, "cell"]):
        return Section(None, {})
    rows = results.compared(MODEL, cells=[ALL_MISSING])
    spread = reliability.spread_when_all_is_lost(rows)
    numbers: Numbers = {f"{MODEL}.lost.spread.seed{seed}": float(value) for seed, value in spread.items()}
    numbers[f"{MODEL}.lost.spread.mean"] = float(spread.mean())
    spread_text = f"{100 * spread.mean():.1f} %"
    if "mean" not in results.models:
        return Section(AllMissing(spread_text), numbers)
    pair = compare(rows, results.compared("mean", cells=[ALL_MISSING]))
    for end, value in zip(("", ".low", ".high"), pair[4:], strict=True):
        numbers[f"{MODEL}.lost.mae_ratio_to_mean{end}"] = value
    interval = f"{pair.ratio_low:.3f} to {pair.ratio_high:.3f}"
    return Section(AllMissing(spread_text, f"{pair.ratio:.3f}", interval), numbers)


@dataclass(frozen=True)
class UncertaintyRow:
    model: str
    values: list[str]


@dataclass(frozen=True)
class UncertaintyTable:
    """Metrics of uncertainty on one slice, one row per model."""

    slice: str
    columns: list[str]
    rows: list[UncertaintyRow]


@dataclass(frozen=True)
class CoverageRow:
    """The share of targets inside the interval over a set of cells."""

    what: str
    cells: str
    share: str
    interval: str


@dataclass(frozen=True)
class Calibration:
    models: UncertaintyTable
    coverage: list[CoverageRow]
    images: list[Image]


def calibration(results: Results, measured: Numbers) -> Section[Calibration]:
    """Return the uncertainty metrics of every model on slice mixed, and QA-MoE's coverage cell by cell.

    Without slice mixed, the first evaluated slice. measured: the numbers of sections.slices.
    """
    coverage, images = _coverage(results), _coverage_figures(results)
    context = Calibration(_uncertainty(results, measured), coverage.context, images.context)
    return Section(context, merged(coverage.numbers, images.numbers))


def _uncertainty(results: Results, measured: Numbers) -> UncertaintyTable:
    slices = results.cells["slice"].unique()
    name = "mixed" if "mixed" in slices else str(slices[0])
    present = set(results.cells.loc[results.cells["slice"] == name, "metric"])
    metrics = [m for m in UNCERTAINTY if m in present]
    rows = []
    for model in results.models:
        values = [measured.get(f"{model}.{name}.{metric}.area.mean") for metric in metrics]
        if any(value is not None for value in values):
            texts = [number(float("nan") if v is None else v, m) for v, m in zip(values, metrics, strict=True)]
            rows.append(UncertaintyRow(model, texts))
    return UncertaintyTable(name, [LABELS[m] for m in metrics], rows)


def _covered(results: Results, cells: Iterable[str]) -> pd.DataFrame | None:
    """Return QA-MoE's rows of some cells with the column covered; None if it predicts classes."""
    sigmas: dict[Any, dict[str, float]] = {
        seed: results.config(MODEL, seed).get("calibration", {}).get("sigmas", {}) for seed in results.folders[MODEL]
    }
    if not all(f"{LEVEL:g}" in by_level for by_level in sigmas.values()):
        return None
    return reliability.coverage(results.compared(MODEL, cells=list(cells)), sigmas, LEVEL)


def _selection(results: Results) -> list[str]:
    """Return the test cells with the kinds and severities that select checkpoints and fit intervals on validation."""
    config = results.config(MODEL, next(iter(results.folders[MODEL])))
    chosen = (config.get("train") or {}).get("selection", {}).get("severities", {})
    evaluated = results.cells[(results.cells["model"] == MODEL) & results.cells["slice"].isin([*chosen, "clean"])]
    wanted = {
        (kind if severity else "clean", round(severity, 6))
        for kind, severities in chosen.items()
        for severity in severities
    }
    cells = evaluated.drop_duplicates("cell")[["cell", "slice", "severity"]].fillna({"severity": 0.0})
    return [cell for cell, name, at in cells.itertuples(index=False) if (name, round(float(at), 6)) in wanted]


def _coverage(results: Results) -> Section[list[CoverageRow]]:
    """Return the share of targets inside the interval, over the selection cells and over each slice."""
    rows: list[CoverageRow] = []
    numbers: Numbers = {}
    if MODEL not in results.models:
        return Section(rows, numbers)
    model_cells = results.cells[results.cells["model"] == MODEL]
    slices = {name: group["cell"].unique() for name, group in model_cells.groupby("slice")}
    # Blind cells have weight 0 in the summary of a slice as well.
    counted = {n: [c for c in slices[n] if not str(c).endswith(BLIND)] for n in results.slices_of(MODEL)}
    for name, cells in ({"selection": _selection(results)} | counted).items():
        covered = _covered(results, cells) if cells else None
        if covered is None:
            continue
        value, low, high = reliability.covered_share(covered)
        prefix = f"{MODEL}.coverage_90.{name}"
        numbers |= {prefix: value, f"{prefix}.low": low, f"{prefix}.high": high, f"{prefix}.cells": len(cells)}
        texts = [number(v, "coverage") for v in (value, low, high)]
        label = "selection cells" if name == "selection" else name
        rows.append(CoverageRow(label, str(len(cells)), texts[0], f"{texts[1]} to {texts[2]}"))
    return Section(rows, numbers)


def _coverage_figures(results: Results) -> Section[list[Image]]:
    """Draw coverage against severity on each graded slice, with its interval at each severity."""
    images: list[Image] = []
    numbers: Numbers = {}
    model_cells = results.cells[results.cells["model"] == MODEL]
    for name in tables.graded_slices(model_cells):
        cells = model_cells.loc[model_cells["slice"] == name].drop_duplicates("cell").sort_values("severity")
        covered = _covered(results, cells["cell"])
        if covered is None:
            continue
        points = []
        for cell, severity in zip(cells["cell"], cells["severity"], strict=True):
            value, low, high = reliability.covered_share(covered[covered["cell"] == cell])
            points.append({"severity": severity, "value": value, "low": low, "high": high})
            prefix = f"{MODEL}.coverage_90.{name}.{tables.severity_key(severity)}"
            numbers |= {prefix: value, f"{prefix}.low": low, f"{prefix}.high": high}
        figure = plots.coverage_curve(name, pd.DataFrame(points), LEVEL)
        alt = f"Share of targets in the 90 % interval of {MODEL} against severity on slice {name}"
        images.append(Image(plots.data_uri(figure), alt))
    return Section(images, numbers)
