"""The report: one page that stands alone, and every number on it as a file.

Reads what evaluate and train wrote, and tune where there was a search, opens no store and no model, and writes
- index.html    the page: figures inside it, nothing loaded from anywhere, every string of a corpus escaped
- summary.json  every number that the page shows, under flat names such as qamoe.missing.mae.area.mean:
                <model>.<slice>.<metric>.<statistic>.<mean|sd|seedN>; s03 is severity 0.3, s025 is 0.25, shares are 0..1
- metrics.json  the few numbers of `dvc metrics show`
- curves.csv    model, slice, severity, error (what `dvc plots` draws), then a column a metric
"""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.report import comparisons, curves, reliability, sections, tables
from qamoe.report.comparisons import Summary
from qamoe.report.results import Results, read
from qamoe.report.tables import number

COMMAND = "dvc repro report"


def write(
    evaluated: Path, trained: Path, out: Path, tuned: Path | None = None, models: Collection[str] | None = None
) -> dict[str, Any]:
    """Write the report's folder and return what a terminal shows.

    evaluated, trained, tuned: artifacts/evaluate, artifacts/train, and artifacts/tune, which need not be there. out:
    artifacts/report, replaced as a whole at the end. models: those it is about, None for all that were evaluated.
    Returns `headline` (tables.headline), `comparison` (rows of controls.rows), `page` and `summary` (paths). Raises
    UserError where a run is not complete.
    """
    results = read(evaluated, trained, models)
    summary, page = build(results, tuned)
    curves = tables.curves(results.cells)
    error = tables.error_metric(results.cells)
    if error:
        curves.insert(3, "error", curves[error])
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        (aside / "index.html").write_text(page["html"], encoding="utf-8")
        (aside / "summary.json").write_text(
            _json({n: None if pd.isna(value) else value for n, value in summary.items()})
        )
        (aside / "metrics.json").write_text(_json(metrics(summary, results.cells)))
        curves.to_csv(aside / "curves.csv", index=False, float_format="%.6g")
        _replace(out, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {
        "headline": page["headline"],
        "comparison": page["comparison"],
        "page": out / "index.html",
        "summary": out / "summary.json",
    }


def _replace(out: Path, aside: Path) -> None:
    """Put a finished folder in the place of an older one, which is gone only once the new one stands."""
    old = out.with_name(f".{out.name}.old.{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def metrics(summary: Summary, cells: pd.DataFrame) -> dict[str, Any]:
    """model -> slice -> metric: means over seeds of each slice's area, for `dvc metrics show|diff`."""
    wanted = ("mae", "corr", "accuracy", "macro_f1")
    made: dict[str, Any] = {}
    for model, name, metric in cells[["model", "slice", "metric"]].drop_duplicates().itertuples(index=False):
        value = summary.get(f"{model}.{name}.{metric}.area.mean")
        if metric in wanted and value is not None:
            made.setdefault(model, {}).setdefault(name, {})[metric] = round(float(value), 6)
    return made


def build(results: Results, tuned: Path | None = None) -> tuple[Summary, dict[str, Any]]:
    """Everything that the report says: the flat summary, and the page (html, headline, comparison)."""
    summary: Summary = {}
    runs = tables.summaries(results.cells)
    headline = tables.headline(results.cells, runs)
    metric = tables.error_metric(results.cells) or ""
    resampled = comparisons.values(results, summary)
    pairs = comparisons.pairs(resampled, metric, summary)
    compared = comparisons.rows(pairs, metric, summary)
    judged = comparisons.no_worse(resampled, pairs, summary) if metric == "mae" else []
    slices = sections.slices(results.cells, runs, summary)
    context = {
        "about": sections.about(results, summary),
        "headline": sections.headline(headline, results.cells),
        "glance": curves.at_a_glance(results, curves.glance(results, pairs, compared), judged),
        "compared": [comparisons.shown(row) for row in compared],
        "family": comparisons.FAMILY,
        "broken_error": "MAE" if metric == "mae" else "Share of misses",
        "metric": tables.METRIC_NAMES.get(metric, metric),
        "matrix": comparisons.matrix(resampled, pairs, metric),
        "no_worse": judged,
        "margin": f"{100 * comparisons.MARGIN:g} %",
        "specialists": comparisons.specialists(results, summary),
        "pair": comparisons.COMPARED,
        "resamplings": comparisons.DRAWS,
        "slices": slices,
        "groups": [
            curves.spectrum(results, summary),
            curves.within_slices(results, summary),
            curves.trust(results, summary),
            curves.experts(results, summary),
            sections.search(tuned, summary),
        ],
        "reliability": reliability.reliability_rows(results, summary),
        "broken": reliability.permuted_quality(results, summary),
        "lost": reliability.nothing_left(results, summary),
        "calibration": reliability.calibration(results, summary),
        "training": sections.training(results, summary),
        "references": sections.references(results.cells, summary),
        "gate": number(sections.WITHOUT_QUALITY_GATE, "mean_error"),
        "sources": sections.sources(results, summary),
        "notes": sections.notes(results),
        "command": COMMAND,
    }
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(template).render(context)
    return summary, {"html": html, "headline": headline, "comparison": compared}
