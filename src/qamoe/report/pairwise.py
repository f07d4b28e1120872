"""Compare two evaluated models slice by slice, for `qamoe compare`."""

from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import Comparison, compare_resampled, metrics_of, resample
from qamoe.evaluation.metrics import lower_is_better
from qamoe.report.results import Results, evaluations
from qamoe.report.tables import stdout_console
from qamoe.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console


class Pair(NamedTuple):
    """Model a against model b by one metric: one comparison per slice, or that of one part or cell."""

    a: str
    b: str
    metric: str
    rows: dict[str, Comparison]
    sources: int


def between(evaluated: Path, a: str, b: str, name: str | None = None, metric: str | None = None) -> Pair:
    """Compare two models of artifacts/evaluate on every slice that both have, or on `name`: a slice, a part or a cell.

    A part is all cells that share a name prefix, such as alone-text-noise; its cells are weighted as in their slice.
    metric: mae by default, accuracy for classes. Raises UserError for a model or slice that was not evaluated, and
    for models that were evaluated on different grids.
    """
    folders = evaluations(evaluated)
    for model in (a, b):
        if model not in folders:
            raise UserError(f"model {model!r} was not evaluated in {evaluated}; evaluated: {', '.join(folders)}")
    results = Results(pd.DataFrame(), folders, [])
    slices = {model: _slices(results, model) for model in (a, b)}
    comparisons: dict[str, Comparison] = {}
    sources = 0
    for label, selection in _selections(slices, a, b, name).items():
        rows_a, rows_b = (results.compared(model, selection.slice, selection.cells) for model in (a, b))
        by = metric or next(iter(metrics_of(rows_a)))
        comparisons[label] = compare_resampled(resample(rows_a, by), resample(rows_b, by), label)
        sources = rows_a["source"].nunique()
    return Pair(a, b, by, comparisons, sources)


def _slices(results: Results, model: str) -> dict[str, list[str]]:
    """Return the slices of a model in their order, with their cells."""
    rows = results.predictions(model, columns=["slice", "cell"])[["slice", "cell"]].drop_duplicates()
    return {str(name): list(cells) for name, cells in rows.groupby("slice", sort=False)["cell"]}


class Selection(NamedTuple):
    """The predictions to compare: those of a slice, or of some cells."""

    slice: str | None = None
    cells: list[str] | None = None


def _selections(slices: dict[str, dict[str, list[str]]], a: str, b: str, name: str | None) -> dict[str, Selection]:
    """Return label -> predictions to compare. slices: model -> slice -> cells."""
    if name is None:
        both = [slice for slice in slices[a] if slice in slices[b]]
        if not both:
            raise UserError(
                f"{a} and {b} share no slice; slices of {a}: {', '.join(slices[a])}; of {b}: {', '.join(slices[b])}"
            )
        return {slice: Selection(slice) for slice in both}
    selected: list[str] = []
    for model, by_slice in slices.items():
        cells = [cell for slice_cells in by_slice.values() for cell in slice_cells]
        selected = [name] if name in cells else [cell for cell in cells if cell.startswith(f"{name}-")]
        if name not in by_slice and not selected:
            raise UserError(f"{model} was not evaluated on {name!r}; its slices: {', '.join(by_slice)}")
    return {name: Selection(slice=name) if name in slices[a] else Selection(cells=selected)}


def show(pair: Pair, console: "Console | None" = None) -> None:
    """Print the comparisons of a pair as a table, without columns that are empty in every row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or stdout_console()
    table = Table(
        title=f"{pair.metric} of {pair.a} minus {pair.metric} of {pair.b}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    headings = ("difference", "95 % interval", "p", "ratio", "95 % interval", pair.a)
    rows = [(*format_comparison(row), verdict(row, pair.metric)) for row in pair.rows.values()]
    filled = [any(column) for column in zip(*rows, strict=True)]
    table.add_column("", overflow="fold")  # names of cells are long
    for heading in compress(headings, filled):
        table.add_column(heading, justify="left" if heading == pair.a else "right", no_wrap=True)
    for name, row in zip(pair.rows, rows, strict=True):
        table.add_row(*(Text(printable(cell)) for cell in (name, *compress(row, filled))))
    console.print(table)
    claims = any(row[-1] for row in rows)
    console.print(
        f"Paired bootstrap over {pair.sources} sources, training seeds averaged. "
        + ("Better, worse: the interval" if claims else "No interval")
        + " of the difference excludes 0. Nothing is corrected for multiple comparisons.",
        highlight=False,
    )


def format_comparison(comparison: Comparison) -> tuple[str, str, str, str, str]:
    """Return difference, its interval, p, ratio and its interval as text; empty where not defined."""
    signed = [f"{v:+.3f}".replace("-", "−") for v in comparison[:3]]
    return (
        signed[0],
        "" if pd.isna(comparison.low) else f"{signed[1]} to {signed[2]}",
        "" if pd.isna(comparison.p) else f"{comparison.p:.3f}",
        "" if pd.isna(comparison.ratio) else f"{comparison.ratio:.3f}",
        "" if pd.isna(comparison.ratio_low) else f"{comparison.ratio_low:.3f} to {comparison.ratio_high:.3f}",
    )


def verdict(comparison: Comparison, metric: str) -> str:
    """Return "better" or "worse" for the first model; "" if the interval includes 0, and always for mean_error.

    The sign of mean_error gives no order: nearer to 0 is better.
    """
    if metric == "mean_error" or not comparison.claimed:
        return ""
    return "better" if (comparison.high < 0) == lower_is_better(metric) else "worse"
