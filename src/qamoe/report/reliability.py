"""Whether quality is used, and whether what a model says of itself holds: reliability and calibration on the page.

Everything shown goes into the flat summary too, rounded nowhere. r, broken quality and coverage are QA-MoE's.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from qamoe.evaluation import reliability
from qamoe.evaluation.bootstrap import compare
from qamoe.evaluation.summary import BLIND
from qamoe.report import plots, tables
from qamoe.report.results import PERMUTED_QUALITY, Results
from qamoe.report.tables import number, percent

Summary = dict[str, float | int | bool | None]

MODEL = "qamoe"
LOST = "missing-1.0"  # the cell where nothing is left
LEVEL = 0.9
UNCERTAINTY = ("coverage_90", "calibration_error", "nll", "risk_coverage")  # of all models, a column each
LABELS = {
    "coverage_90": "90 % interval covers",
    "calibration_error": "Calibration error",
    "nll": "NLL",
    "risk_coverage": "Risk-coverage area",
}


def reliability_rows(results: Results, summary: Summary) -> list[dict[str, Any]]:
    """Spearman and AUROC of r, a row a slice, kind and modality; none where no model has r."""
    if MODEL not in results.models:
        return []
    lines = []
    for name in (n for n in reliability.GRADED if n in results.slices_of(MODEL)):
        columns = ["clip_id", "source", "slice", "cell", "draw"]
        columns += [f"{c}_{m}" for m in tables.MODALITIES for c in ("frames", "severity", "lost", "r")]
        rows = results.predictions(MODEL, name, columns=columns)
        areas = reliability.auroc(rows).set_index(reliability.BY)
        for where, own in reliability.spearman(rows).groupby(reliability.BY, sort=False):
            slice_, kind, modality = where
            prefix = f"{MODEL}.reliability.{slice_}.{kind}.{modality}"
            rho = own.set_index("seed")["spearman"]
            whole = own[own["seed"] == "all"].iloc[0]
            summary[f"{prefix}.clips"] = int(whole["clips"])
            summary |= {f"{prefix}.spearman.{'mean' if s == 'all' else f'seed{s}'}": float(v) for s, v in rho.items()}
            summary |= {f"{prefix}.spearman.{end}": float(whole[end]) for end in ("low", "high")}
            shown = []
            of_where = areas.loc[[where]] if where in areas.index else areas.iloc[:0]
            for severity in reliability.AGAINST:
                at = of_where[of_where["severity"] == severity]
                name_ = f"{prefix}.auroc.{tables.severity_key(severity)}"
                summary |= {f"{name_}.seed{s}": float(v) for s, v in zip(at["seed"], at["auroc"], strict=True)}
                summary[f"{name_}.mean"] = float(at["auroc"].mean()) if len(at) else None
                shown.append(number(at["auroc"].mean(), "corr"))
            lines.append(
                {
                    "what": slice_ if kind == slice_ else f"{slice_}, {kind}",
                    "modality": modality,
                    "clips": int(whole["clips"]),
                    "spearman": number(whole["spearman"], "corr"),
                    "interval": f"{number(whole['low'], 'corr')} to {number(whole['high'], 'corr')}",
                    "auroc": shown,
                }
            )
    return lines


def permuted_quality(results: Results, summary: Summary) -> list[dict[str, str]]:
    """Rise of the error when r is another clip's, of any draw or of the same; none without broken.parquet."""
    folders = results.folders.get(MODEL, {})
    if not folders or not all((folder / PERMUTED_QUALITY).is_file() for folder in folders.values()):
        return []
    exchanged = results.compared(MODEL, file=PERMUTED_QUALITY)
    rows = results.compared(MODEL, cells=list(exchanged["cell"].unique()))
    lines = []
    for within, words in ((False, "between clips of all draws"), (True, "between clips of one draw")):
        own = exchanged[exchanged["within"] == within]
        if own.empty:
            continue
        found = reliability.permuted_quality(rows, own)
        prefix = f"{MODEL}.broken.{'within' if within else 'across'}"
        summary |= {f"{prefix}.{name}": value for name, value in found._asdict().items()}
        lines.append(
            {
                "what": words,
                "intact": number(found.intact, "mae"),
                "mae": number(found.mae, "mae"),
                "rise": percent(found.rise),
                "interval": f"{percent(found.low)} to {percent(found.high)}",
            }
        )
    return lines


def nothing_left(results: Results, summary: Summary) -> dict[str, str]:
    """What a prediction still depends on when every modality is gone; empty where that cell was not measured."""
    if MODEL not in results.models or tables.error_metric(results.cells) != "mae":
        return {}
    if LOST not in set(results.cells.loc[results.cells["model"] == MODEL, "cell"]):
        return {}
    rows = results.compared(MODEL, cells=[LOST])
    spread = reliability.spread_when_all_is_lost(rows)
    summary |= {f"{MODEL}.lost.spread.seed{seed}": float(value) for seed, value in spread.items()}
    summary[f"{MODEL}.lost.spread.mean"] = float(spread.mean())
    made = {"spread": f"{100 * spread.mean():.1f} %", "ratio": "", "interval": ""}
    if "mean" in results.models:
        pair = compare(rows, results.compared("mean", cells=[LOST]))
        for end, value in zip(("", ".low", ".high"), pair[4:], strict=True):
            summary[f"{MODEL}.lost.mae_ratio_to_mean{end}"] = value
        made |= {"ratio": f"{pair.ratio:.3f}", "interval": f"{pair.ratio_low:.3f} to {pair.ratio_high:.3f}"}
    return made


def calibration(results: Results, summary: Summary) -> dict[str, Any]:
    """Uncertainty of every model on slice mixed, or what there is, and QA-MoE's coverage cell by cell."""
    return {
        "models": _of_models(results, summary),
        "coverage": _coverage(results, summary),
        "figures": _coverage_figures(results, summary),
    }


def _of_models(results: Results, summary: Summary) -> dict[str, Any]:
    slices = results.cells["slice"].unique()
    name = "mixed" if "mixed" in slices else str(slices[0])
    present = set(results.cells.loc[results.cells["slice"] == name, "metric"])
    metrics = [m for m in UNCERTAINTY if m in present]
    rows = []
    for model in results.models:
        values = [summary.get(f"{model}.{name}.{metric}.area.mean") for metric in metrics]
        if any(value is not None for value in values):
            shown = [number(float("nan") if v is None else v, m) for v, m in zip(values, metrics, strict=True)]
            rows.append({"model": model, "values": shown})
    return {"slice": name, "columns": [LABELS[m] for m in metrics], "rows": rows}


def _covered(results: Results, cells: Iterable[str]) -> pd.DataFrame | None:
    """QA-MoE's rows of some cells with the column covered; None where it predicts classes."""
    sigmas = {s: results.config(MODEL, s).get("calibration", {}).get("sigmas", {}) for s in results.folders[MODEL]}
    if not all(f"{LEVEL:g}" in own for own in sigmas.values()):
        return None
    return reliability.coverage(results.compared(MODEL, cells=list(cells)), sigmas, LEVEL)


def _selection(results: Results) -> list[str]:
    """The test cells of the kinds and severities by which checkpoints are chosen and intervals are fitted."""
    config = results.config(MODEL, next(iter(results.folders[MODEL])))
    chosen = (config.get("train") or {}).get("selection", {}).get("severities", {})
    own = results.cells[(results.cells["model"] == MODEL) & results.cells["slice"].isin([*chosen, "clean"])]
    wanted = {(kind if severity else "clean", round(severity, 6)) for kind, some in chosen.items() for severity in some}
    cells = own.drop_duplicates("cell")[["cell", "slice", "severity"]].fillna({"severity": 0.0})
    return [cell for cell, name, at in cells.itertuples(index=False) if (name, round(float(at), 6)) in wanted]


def _coverage(results: Results, summary: Summary) -> list[dict[str, str]]:
    if MODEL not in results.models:
        return []
    lines = []
    slices = {n: own["cell"].unique() for n, own in results.cells[results.cells["model"] == MODEL].groupby("slice")}
    # As in a slice's summary, where blind cells weigh nothing.
    chosen = {n: [c for c in slices[n] if not str(c).endswith(BLIND)] for n in results.slices_of(MODEL)}
    for name, cells in ({"selection": _selection(results)} | chosen).items():
        covered = _covered(results, cells) if cells else None
        if covered is None:
            continue
        value, low, high = reliability.covered_share(covered)
        prefix = f"{MODEL}.coverage_90.{name}"
        summary |= {prefix: value, f"{prefix}.low": low, f"{prefix}.high": high}
        shown = [number(v, "coverage") for v in (value, low, high)]
        label = "the cells of selection" if name == "selection" else name
        lines.append(
            {"what": label, "cells": str(len(cells)), "share": shown[0], "interval": f"{shown[1]} to {shown[2]}"}
        )
        summary[f"{prefix}.cells"] = len(cells)
    return lines


def _coverage_figures(results: Results, summary: Summary) -> list[dict[str, str]]:
    """Coverage along each graded slice, with its interval at each severity."""
    if MODEL not in results.models:
        return []
    own = results.cells[results.cells["model"] == MODEL]
    made = []
    for name in tables.graded_slices(own):
        cells = own.loc[own["slice"] == name].drop_duplicates("cell").sort_values("severity")
        points = []
        covered = _covered(results, cells["cell"])
        if covered is None:
            return []
        for cell, severity in zip(cells["cell"], cells["severity"], strict=True):
            value, low, high = reliability.covered_share(covered[covered["cell"] == cell])
            points.append({"severity": severity, "value": value, "low": low, "high": high})
            prefix = f"{MODEL}.coverage_90.{name}.{tables.severity_key(severity)}"
            summary |= {prefix: value, f"{prefix}.low": low, f"{prefix}.high": high}
        made.append(
            {
                "uri": plots.data_uri(plots.coverage_curve(name, pd.DataFrame(points), LEVEL)),
                "alt": f"Share of targets in the 90 % interval of {MODEL} along slice {name}",
                "caption": "",
            }
        )
    return made
