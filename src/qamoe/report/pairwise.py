"""Two evaluated models against each other, slice by slice: what `qamoe compare` prints."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import Comparison, compare_resampled, metrics_of, resample
from qamoe.evaluation.metrics import lower_is_better
from qamoe.report.results import Results, evaluations

if TYPE_CHECKING:
    from rich.console import Console


class Pair(NamedTuple):
    """Model a against model b by one metric: a comparison a slice, or that of a part of one."""

    a: str
    b: str
    metric: str
    rows: dict[str, Comparison]
    sources: int


def between(evaluated: Path, a: str, b: str, name: str | None = None, metric: str | None = None) -> Pair:
    """Compare two models of artifacts/evaluate on every slice that both have, or on `name`: a slice, a part or a cell.

    A part is all cells whose names begin alike, such as alone-text-noise, weighed as within their slice. metric: by
    default mae, of classes accuracy. Raises UserError for a model or slice that is not there and for different grids.
    """
    folders = evaluations(evaluated)
    for model in (a, b):
        if model not in folders:
            raise UserError(f"No model {model!r} was evaluated in {evaluated}; there are {', '.join(folders)}.")
    results = Results(pd.DataFrame(), folders, [])
    slices = {model: _slices(results, model) for model in (a, b)}
    comparisons: dict[str, Comparison] = {}
    sources = 0
    for label, rows in _chosen(slices, a, b, name).items():
        ours, theirs = (results.compared(model, rows.slice, rows.cells) for model in (a, b))
        by = metric or next(iter(metrics_of(ours)))
        comparisons[label] = compare_resampled(resample(ours, by), resample(theirs, by), label)
        sources = ours["source"].nunique()
    return Pair(a, b, by, comparisons, sources)


def _slices(results: Results, model: str) -> dict[str, list[str]]:
    """The slices of a model in their order, with their cells."""
    rows = results.predictions(model, columns=["slice", "cell"])[["slice", "cell"]].drop_duplicates()
    return {str(name): list(cells) for name, cells in rows.groupby("slice", sort=False)["cell"]}


class Rows(NamedTuple):
    """Which predictions to compare: those of a slice, or of some cells."""

    slice: str | None = None
    cells: list[str] | None = None


def _chosen(slices: dict[str, dict[str, list[str]]], a: str, b: str, name: str | None) -> dict[str, Rows]:
    """What to compare, by its label. slices: model -> slice -> cells."""
    if name is None:
        both = [slice for slice in slices[a] if slice in slices[b]]
        if not both:
            raise UserError(f"{a} and {b} have no slice in common: {', '.join(slices[a])}; {', '.join(slices[b])}.")
        return {slice: Rows(slice) for slice in both}
    chosen: list[str] = []
    for model, by_slice in slices.items():
        cells = [cell for of_slice in by_slice.values() for cell in of_slice]
        chosen = [name] if name in cells else [cell for cell in cells if cell.startswith(f"{name}-")]
        if name not in by_slice and not chosen:
            raise UserError(f"{model} was not evaluated on {name!r}; its slices are {', '.join(by_slice)}.")
    return {name: Rows(slice=name) if name in slices[a] else Rows(cells=chosen)}


def show(pair: Pair, console: "Console | None" = None) -> None:
    """Print a pair in a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(
        title=f"{pair.metric} of {pair.a} minus {pair.metric} of {pair.b}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", overflow="fold")  # names of cells are long
    for heading in ("difference", "95 % interval", "p", "ratio", "95 % interval", pair.a):
        table.add_column(heading, justify="left" if heading == pair.a else "right", no_wrap=True)
    for name, comparison in pair.rows.items():
        table.add_row(name, *texts(comparison), verdict(comparison, pair.metric))
    console.print(table)
    console.print(
        f"Paired bootstrap over {pair.sources} sources, training seeds averaged. Better or worse is said only where "
        "the interval of the difference leaves out 0; no line is corrected for looking at several slices.",
        highlight=False,
    )


def texts(comparison: Comparison) -> tuple[str, str, str, str, str]:
    """Difference, its interval, p, ratio and its interval as people read them."""
    signed = [f"{v:+.3f}".replace("-", "−") for v in comparison[:3]]
    return (
        signed[0],
        "" if pd.isna(comparison.low) else f"{signed[1]} to {signed[2]}",
        "" if pd.isna(comparison.p) else f"{comparison.p:.3f}",
        "" if pd.isna(comparison.ratio) else f"{comparison.ratio:.3f}",
        "" if pd.isna(comparison.ratio_low) else f"{comparison.ratio_low:.3f} to {comparison.ratio_high:.3f}",
    )


def verdict(comparison: Comparison, metric: str) -> str:
    """What may be claimed of the first model: nothing where the interval holds 0, or where nearer to 0 is better."""
    if metric == "mean_error" or not comparison.claimed:
        return ""
    return "better" if (comparison.high < 0) == lower_is_better(metric) else "worse"
