"""A table of models as text: for a terminal, as Markdown, LaTeX or CSV.

Shares are printed in per cent, and their column says so; CSV holds plain numbers instead.
"""

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from qamoe.report.tables import is_share

if TYPE_CHECKING:
    from rich.console import Console

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


class Measure(NamedTuple):
    """A column: its name in CSV, the metric that decides how it is written, and its heading."""

    name: str
    metric: str
    label: str

    @property
    def heading(self) -> str:
        return f"{self.label} (%)" if is_share(self.metric) else self.label


class Line(NamedTuple):
    """A row: the model, how many seeds, (mean, SD) a measure, and whose figures they are where not ours."""

    model: str
    seeds: int
    values: list[tuple[float, float]]
    source: str = ""


class ResultTable(NamedTuple):
    """Models by measures, with a title above and notes below."""

    title: str
    measures: list[Measure]
    lines: list[Line]
    notes: list[str]


def _value(value: float, metric: str, digits: int) -> str:
    if pd.isna(value):
        return ""
    if is_share(metric):
        return f"{100 * value:.{digits}f}"
    return f"{value:+.3f}" if metric == "mean_error" else f"{value:.3f}"


def _with_sd(value: tuple[float, float], metric: str, sign: str, digits: int = 2) -> str:
    """Mean and SD with `sign` between them; `digits` of the per cent."""
    mean, sd = _value(value[0], metric, digits), _value(value[1], metric, digits).lstrip("+")
    return f"{mean}{sign}{sd}" if sd else mean


def _name(line: Line) -> str:
    return f"{line.model} *" if line.source else line.model


def markdown(table: ResultTable) -> str:
    """The table as GitHub's Markdown has it, its title above and its notes below."""
    heads = ["Model", "Seeds", *(m.heading for m in table.measures)]
    rows = [
        [
            _name(line).replace("|", "\\|"),
            str(line.seeds),
            *(_with_sd(v, m.metric, " ± ") for v, m in zip(line.values, table.measures, strict=True)),
        ]
        for line in table.lines
    ]
    rule = ["---", *(["---:"] * (len(heads) - 1))]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rule, *rows)]
    return "\n".join([table.title, "", *lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: ResultTable) -> str:
    """The table as a LaTeX tabular with booktabs' rules; others' rows stand below a rule of their own."""
    heads = ["Model", "Seeds", *(m.heading for m in table.measures)]
    latex_lines = [
        *(f"% {text}" for text in (table.title, *table.notes)),
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, heads)) + r" \\",
        r"\midrule",
    ]
    ours = True
    for line in table.lines:
        if ours and line.source:
            latex_lines.append(r"\midrule")
        ours = not line.source
        values = (_with_sd(v, m.metric, r" $\pm$ ") for v, m in zip(line.values, table.measures, strict=True))
        latex_lines.append(" & ".join([_escaped(_name(line)), str(line.seeds), *values]).replace(" -", " $-$") + r" \\")
    return "\n".join([*latex_lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def comma_separated(table: ResultTable) -> str:
    """The table with plain numbers: model, seeds, source, then mean and SD of each measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "seeds", "source", *(n for m in table.measures for n in (m.name, f"{m.name}.sd"))])
    for line in table.lines:
        numbers = ["" if pd.isna(v) else f"{v:.6g}" for value in line.values for v in value]
        writer.writerow([line.model, line.seeds, line.source or "measured here", *numbers])
    return text.getvalue()


def terminal(table: ResultTable, console: "Console | None" = None) -> None:
    """Print the table with each SD below its mean, so that nine measures fit 80 characters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    grid = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    grid.add_column("", no_wrap=True)
    texts = [
        [_with_sd(v, m.metric, "\n±", 1) for v, m in zip(line.values, table.measures, strict=True)]
        for line in table.lines
    ]
    for measure, column in zip(table.measures, zip(*texts, strict=True), strict=True):
        widest = max(len(part) for text in column for part in text.split("\n"))
        grid.add_column(measure.heading, justify="right", min_width=widest)  # the heading wraps, values never
    ours = True
    for line, values in zip(table.lines, texts, strict=True):
        if ours and line.source:
            grid.add_section()
        ours = not line.source
        seeds = "" if line.source else "\n1 seed" if line.seeds == 1 else f"\n{line.seeds} seeds"
        grid.add_row(*map(Text, (_name(line) + seeds, *values)))
    console.print(grid)
    for note in table.notes:
        console.print(note, highlight=False, markup=False)


FORMATS: dict[str, Callable[[ResultTable], str]] = {"md": markdown, "latex": latex, "csv": comma_separated}
