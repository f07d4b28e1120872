"""Two evaluated models against each other, slice by slice: what `qamoe compare` prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import Comparison, compared, metrics_of, resample
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
    found: dict[str, Comparison] = {}
    sources = 0
    for chosen, wanted in _chosen(slices, a, b, name).items():
        ours, theirs = (results.compared(model, **wanted) for model in (a, b))
        by = metric or next(iter(metrics_of(ours)))
        found[chosen] = compared(resample(ours, by), resample(theirs, by), chosen)
        sources = ours["source"].nunique()
    return Pair(a, b, by, found, sources)


def _slices(results: Results, model: str) -> dict[str, list[str]]:
    """The slices of a model in their order, with their cells."""
    rows = results.predictions(model, columns=["slice", "cell"])[["slice", "cell"]].drop_duplicates()
    return {str(name): list(own) for name, own in rows.groupby("slice", sort=False)["cell"]}


def _chosen(slices: dict[str, dict[str, list[str]]], a: str, b: str, name: str | None) -> dict[str, dict[str, Any]]:
    """What to compare: a label, and the arguments that read its rows."""
    if name is None:
        both = [own for own in slices[a] if own in slices[b]]
        if not both:
            raise UserError(f"{a} and {b} have no slice in common: {', '.join(slices[a])}; {', '.join(slices[b])}.")
        return {own: {"slice": own} for own in both}
    found: list[str] = []
    for model, there in slices.items():
        cells = [cell for own in there.values() for cell in own]
        found = [name] if name in cells else [cell for cell in cells if cell.startswith(f"{name}-")]
        if name not in there and not found:
            raise UserError(f"{model} was not evaluated on {name!r}; its slices are {', '.join(there)}.")
    return {name: {"slice": name} if name in slices[a] else {"cells": found}}


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
    for name, found in pair.rows.items():
        table.add_row(name, *texts(found), verdict(found, pair.metric))
    console.print(table)
    console.print(
        f"Paired bootstrap over {pair.sources} sources, training seeds averaged. Better or worse is said only where "
        "the interval of the difference leaves out 0; no line is corrected for looking at several slices.",
        highlight=False,
    )


def texts(found: Comparison) -> tuple[str, str, str, str, str]:
    """Difference, its interval, p, ratio and its interval as people read them."""
    signed = [f"{v:+.3f}".replace("-", "−") for v in found[:3]]
    return (
        signed[0],
        "" if pd.isna(found.low) else f"{signed[1]} to {signed[2]}",
        "" if pd.isna(found.p) else f"{found.p:.3f}",
        "" if pd.isna(found.ratio) else f"{found.ratio:.3f}",
        "" if pd.isna(found.ratio_low) else f"{found.ratio_low:.3f} to {found.ratio_high:.3f}",
    )


def verdict(found: Comparison, metric: str) -> str:
    """What may be claimed of the first model: nothing where the interval holds 0, or where nearer to 0 is better."""
    if metric == "mean_error" or not found.claimed:
        return ""
    return "better" if (found.high < 0) == lower_is_better(metric) else "worse"
