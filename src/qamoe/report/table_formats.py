"""Write a table of models for a terminal, or as Markdown, LaTeX or CSV.

Shares are printed in per cent, as the heading of their column says; CSV holds plain numbers from 0 to 1.
"""

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from qamoe.report.tables import is_share, stdout_console

if TYPE_CHECKING:
    from rich.console import Console

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


class Measure(NamedTuple):
    """A column: its name in CSV, the metric that decides its format, and its heading."""

    name: str
    metric: str
    label: str

    @property
    def heading(self) -> str:
        return f"{self.label} (%)" if is_share(self.metric) else self.label


class TableRow(NamedTuple):
    """A row: the model, the number of seeds, one (mean, SD) per measure, and the source of published results."""

    model: str
    seeds: int
    values: list[tuple[float, float]]
    source: str = ""


class ResultTable(NamedTuple):
    """One row per model, one column per measure, with a title above and notes below."""

    title: str
    measures: list[Measure]
    rows: list[TableRow]
    notes: list[str]


def _value(value: float, metric: str, digits: int) -> str:
    if pd.isna(value):
        return ""
    if is_share(metric):
        return f"{100 * value:.{digits}f}"
    return f"{value:+.3f}" if metric == "mean_error" else f"{value:.3f}"


def _with_sd(value: tuple[float, float], metric: str, sign: str, digits: int = 2) -> str:
    """Format mean and SD with `sign` between them. digits: decimals of a value in per cent."""
    mean, sd = _value(value[0], metric, digits), _value(value[1], metric, digits).lstrip("+")
    return f"{mean}{sign}{sd}" if sd else mean


def _name(row: TableRow) -> str:
    return f"{row.model} *" if row.source else row.model


def markdown(table: ResultTable) -> str:
    """Return the table as GitHub Markdown, with its title above and its notes below."""
    heads = ["Model", "Seeds", *(m.heading for m in table.measures)]
    rows = [
        [
            _name(row).replace("|", "\\|"),
            str(row.seeds),
            *(_with_sd(v, m.metric, " ± ") for v, m in zip(row.values, table.measures, strict=True)),
        ]
        for row in table.rows
    ]
    rule = ["---", *(["---:"] * (len(heads) - 1))]
    lines = [f"| {' | '.join(texts)} |" for texts in (heads, rule, *rows)]
    return "\n".join([table.title, "", *lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: ResultTable) -> str:
    """Return the table as a LaTeX tabular with booktabs rules; a rule separates published results from ours."""
    heads = ["Model", "Seeds", *(m.heading for m in table.measures)]
    latex_lines = [
        *(f"% {text}" for text in (table.title, *table.notes)),
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, heads)) + r" \\",
        r"\midrule",
    ]
    ours = True
    for row in table.rows:
        if ours and row.source:
            latex_lines.append(r"\midrule")
        ours = not row.source
        values = (_with_sd(v, m.metric, r" $\pm$ ") for v, m in zip(row.values, table.measures, strict=True))
        latex_lines.append(" & ".join([_escaped(_name(row)), str(row.seeds), *values]).replace(" -", " $-$") + r" \\")
    return "\n".join([*latex_lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def comma_separated(table: ResultTable) -> str:
    """Return the table as CSV with plain numbers: model, seeds, source, then mean and SD of each measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "seeds", "source", *(n for m in table.measures for n in (m.name, f"{m.name}.sd"))])
    for row in table.rows:
        numbers = ["" if pd.isna(v) else f"{v:.6g}" for mean_and_sd in row.values for v in mean_and_sd]
        writer.writerow([row.model, row.seeds, row.source or "measured here", *numbers])
    return text.getvalue()


def terminal(table: ResultTable, console: "Console | None" = None) -> None:
    """Print the table with each SD below its mean; this way nine measures fit in 80 characters."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or stdout_console()
    grid = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    grid.add_column("", no_wrap=True)
    texts = [
        [_with_sd(v, m.metric, "\n±", 1) for v, m in zip(row.values, table.measures, strict=True)] for row in table.rows
    ]
    for measure, column in zip(table.measures, zip(*texts, strict=True), strict=True):
        widest = max(len(part) for text in column for part in text.split("\n"))
        grid.add_column(measure.heading, justify="right", min_width=widest)  # only the heading may wrap
    ours = True
    for row, values in zip(table.rows, texts, strict=True):
        if ours and row.source:
            grid.add_section()
        ours = not row.source
        seeds = "" if row.source else "\n1 seed" if row.seeds == 1 else f"\n{row.seeds} seeds"
        grid.add_row(*map(Text, (_name(row) + seeds, *values)))
    console.print(grid)
    for note in table.notes:
        console.print(note, highlight=False, markup=False)


FORMATS: dict[str, Callable[[ResultTable], str]] = {"md": markdown, "latex": latex, "csv": comma_separated}
