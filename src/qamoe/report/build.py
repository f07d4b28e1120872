"""Write the report: one self-contained HTML page, and files with every number on it.

Reads the outputs of evaluate and train, and of tune after a search. Opens no store and no model. Writes
- index.html    the page: figures are embedded, nothing is loaded, every string of a corpus is escaped
- summary.json  every number on the page, under flat names such as qamoe.missing.mae.area.mean:
                <model>.<slice>.<metric>.<statistic>.<mean|sd|seedN>; s03 is severity 0.3, s025 is 0.25, shares are
                0..1; and `landscape`: its levels, and by model and metric the grid and the volume under it
- metrics.json  the few numbers of `dvc metrics show`
- curves.csv    model, slice, severity, error, then one column per metric
- plots/        the figures of `dvc plots show`: training.svg, error.svg and reliability.svg
"""

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.files import remove_abandoned
from qamoe.report import (
    comparisons,
    curves,
    landscape,
    plots,
    quality_diagnostic,
    questions,
    reliability,
    sections,
    tables,
)
from qamoe.report.results import Results, read
from qamoe.report.section import Numbers, Section, merged
from qamoe.report.tables import number

COMMAND = "dvc repro report"
SLICES = ("clean", "missing", "mixed")  # those in metrics.json; more would not fit the table of `dvc exp show`


@dataclass(frozen=True)
class Report:
    """The page, the numbers of summary.json, and the table of tables.headline."""

    html: str
    numbers: Numbers
    headline: pd.DataFrame


@dataclass(frozen=True)
class Written:
    """The table of tables.headline, and the paths of the page and of summary.json."""

    headline: pd.DataFrame
    page: Path
    summary: Path


def write(
    evaluated: Path, trained: Path, out: Path, tuned: Path | None = None, models: Collection[str] | None = None
) -> Written:
    """Write the folder of the report.

    evaluated, trained, tuned: artifacts/evaluate, artifacts/train and artifacts/tune; the last may be missing.
    out: artifacts/report, replaced as a whole at the end. models: the models to show; None for all evaluated ones.
    Raises UserError for a run with missing files.
    """
    results = read(evaluated, trained, models)
    report = build(results, tuned)
    grid = {landscape.LANDSCAPE: found} if (found := landscape.content(results.cells)) else {}
    curve_table = tables.curves(results.cells)
    error = tables.error_metric(results.cells)
    if error:
        curve_table.insert(3, "error", curve_table[error])
    remove_abandoned(out.parent, f".{out.name}.*[0-9]")
    staging = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        (staging / "index.html").write_text(report.html, encoding="utf-8")
        (staging / "summary.json").write_text(
            _json({name: None if pd.isna(value) else value for name, value in report.numbers.items()} | grid)
        )
        (staging / "metrics.json").write_text(_json(metrics(report.numbers, results)))
        curve_table.to_csv(staging / "curves.csv", index=False, float_format="%.6g")
        (staging / "plots").mkdir()
        for name, figure in curves.for_dvc(results).items():
            (staging / "plots" / f"{name}.svg").write_bytes(plots.svg(figure))
        _replace(out, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Written(report.headline, out / "index.html", out / "summary.json")


def _replace(out: Path, staging: Path) -> None:
    """Replace folder `out` with the finished folder; delete the old one only after the new one is in place."""
    old = out.with_name(f".{out.name}.old.{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def metrics(numbers: Numbers, results: Results) -> dict[str, dict[str, float]]:
    """Return the error of one model on SLICES, for `dvc metrics show|diff` and the columns of `dvc exp show`.

    That model is qamoe or, without it, the last of the report. `best_control` is the error on slice mixed of the best
    control. Values are means over seeds of each slice's area, under the name of the error metric.
    """
    metric = tables.error_metric(results.cells)
    areas = {
        (model, name): round(float(value), 6)
        for model in results.models
        for name in SLICES
        if (value := numbers.get(f"{model}.{name}.{metric}.area.mean")) is not None
    }
    first = comparisons.COMPARED[0] if comparisons.COMPARED[0] in results.models else results.models[-1]
    values = {name: areas[first, name] for name in SLICES if (first, name) in areas}
    controls = [value for (model, name), value in areas.items() if name == "mixed" and tables.is_control(model)]
    if controls and first == comparisons.COMPARED[0]:
        values["best_control"] = min(controls) if metric == "mae" else max(controls)
    return {metric: values} if metric else {}


def build(results: Results, tuned: Path | None = None) -> Report:
    """Compute all sections of the report and render the page."""
    cells = results.cells
    runs = tables.summaries(cells)
    headline = tables.headline(cells, runs)
    metric = tables.error_metric(cells) or ""
    resampled = comparisons.resampled(results)
    pairs = comparisons.pairs(resampled)
    reported = comparisons.reported_pairs(pairs, metric)
    slices = sections.slices(cells, runs)
    non_inferiority = comparisons.non_inferiority(resampled, pairs) if metric == "mae" else Section([], {})
    by_name: dict[str, Section[Any]] = {
        "about": sections.about(results),
        "compared": comparisons.compared_models(pairs, reported, metric),
        "matrix": comparisons.matrix(resampled, pairs, metric),
        "non_inferiority": non_inferiority,
        "specialists": comparisons.specialists(results),
        "slices": slices,
        "reliability": reliability.reliability_rows(results),
        "permuted_quality": reliability.permuted_quality(results),
        "diagnostic": quality_diagnostic.section(results),
        "all_missing": reliability.all_missing(results),
        "calibration": reliability.calibration(results, slices.numbers),
        "training": sections.training(results),
        "references": sections.references(slices.numbers),
        "sources": sections.sources(results),
    }
    groups = [
        curves.spectrum(results),
        landscape.section(results),
        questions.section(results),
        curves.within_slices(results),
        curves.trust(results),
        curves.experts(results),
        sections.search(tuned),
    ]
    context = {
        "headline": sections.headline(headline, cells),
        "glance": curves.at_a_glance(results, curves.glance(results, pairs, reported), non_inferiority.context),
        "groups": [group.context for group in groups],
        "family": comparisons.FAMILY,
        "error_name": "MAE" if metric == "mae" else "Error rate",
        "metric": tables.METRIC_NAMES.get(metric, metric),
        "margin": f"{100 * comparisons.MARGIN:g} %",
        "pair": comparisons.COMPARED,
        "resamplings": comparisons.DRAWS,
        "without_quality_gate": number(sections.WITHOUT_QUALITY_GATE, "mean_error"),
        "notes": sections.notes(results),
        "command": COMMAND,
    }
    context |= {name: section.context for name, section in by_name.items()}
    return Report(_page(context), merged(*(section.numbers for section in [*by_name.values(), *groups])), headline)


def _page(context: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(context)
