"""QA-MoE against every control, ablation and specialist: what the page says about differences, with their intervals."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from qamoe.evaluation.bootstrap import DRAWS, Comparison, Resampled, compare_resampled, holm, non_inferior, resample
from qamoe.report import tables
from qamoe.report.pairwise import texts, verdict
from qamoe.report.results import Results
from qamoe.report.section import Numbers, Section
from qamoe.report.tables import number, percent

COMPARED = ("qamoe", "concat")  # the first minus the second, in full
FAMILY = (("concat", "moe"), ("mixed", "alone"))  # named before any result was seen; Holm corrects over it
JUDGED = ("mixed", "missing")  # where QA-MoE must be no worse than the best control
SIGNIFICANT = 0.05  # below it, Holm's p of a member of FAMILY is a difference
MARGIN = 0.01  # by how much of its MAE it may be worse there
FROM = 0.3  # severity from which the clean specialist should lose

Areas = dict[tuple[str, str], Resampled]  # (model, slice) -> the error under the same draws of sources
Pairs = dict[tuple[str, str], Comparison]  # (other model, slice)


class Row(NamedTuple):
    """The first of COMPARED against a model on a slice; `corrected` is Holm's p, None outside the family."""

    against: str
    slice: str
    metric: str
    pair: Comparison
    corrected: float | None


def resampled(results: Results) -> Areas:
    """The error of every model on every slice, specialists apart."""
    metric = tables.error_metric(results.cells)
    if metric is None:
        return {}
    models = [model for model in results.models if not model.startswith("specialist-")]
    return {
        (model, name): resample(results.compared(model, name), metric, DRAWS)
        for model in models
        for name in results.slices_of(model)
    }


def pairs(areas: Areas) -> Pairs:
    """The first of COMPARED against every other model on every slice that both have; none where it is absent."""
    first = COMPARED[0]
    return {
        (model, name): compare_resampled(areas[first, name], area, name)
        for (model, name), area in areas.items()
        if model != first and (first, name) in areas
    }


def rows(pairs: Pairs, metric: str) -> list[Row]:
    """COMPARED, a slice a row, then what else is of the family: the comparison, and its p corrected over the family."""
    corrected = family(pairs)
    chosen = dict.fromkeys([*(key for key in pairs if key[0] == COMPARED[1]), *corrected])
    return [Row(model, name, metric, pairs[model, name], corrected.get((model, name))) for model, name in chosen]


def family(pairs: Pairs) -> dict[tuple[str, str], float]:
    """Holm's p of each member of FAMILY that was measured."""
    members = [(model, name) for model in FAMILY[0] for name in FAMILY[1]]
    measured = [key for key in members if key in pairs and not pd.isna(pairs[key].p)]
    corrected = holm({f"{model}.{name}": pairs[model, name].p for model, name in measured})
    return {(model, name): p for key, p in corrected.items() for model, _, name in [key.partition(".")]}


def shows(pair: Comparison, corrected: float | None) -> bool:
    """Whether a pair shows a difference: its interval leaves out 0 and, in the family, Holm's p is small too."""
    return pair.claimed and (corrected is None or corrected < SIGNIFICANT)


@dataclass(frozen=True)
class Difference:
    """A Row as the page prints it."""

    against: str
    slice: str
    difference: str
    interval: str
    p: str
    corrected: str
    ratio: str
    ratio_interval: str
    verdict: str


def compared_models(pairs: Pairs, rows: list[Row], metric: str) -> Section[list[Difference]]:
    """The rows, and the numbers of every pair."""
    first = COMPARED[0]
    numbers: Numbers = {}
    for (model, name), pair in pairs.items():
        numbers |= _pair_numbers(f"comparison.{first}-{model}.{name}.{metric}", pair)
    for row in rows:
        if row.corrected is not None:
            numbers[f"comparison.{first}-{row.against}.{row.slice}.{metric}.p_holm"] = row.corrected
    return Section([_difference(row) for row in rows], numbers)


def _pair_numbers(prefix: str, pair: Comparison) -> Numbers:
    names = ("difference", "difference.low", "difference.high", "p", "ratio", "ratio.low", "ratio.high")
    return {f"{prefix}.{name}": value for name, value in zip(names, pair, strict=True)}


def _difference(row: Row) -> Difference:
    difference, interval, p, ratio, ratio_interval = texts(row.pair)
    better_or_worse = verdict(row.pair, row.metric) if shows(row.pair, row.corrected) else ""
    return Difference(
        row.against,
        row.slice,
        difference,
        interval,
        p,
        corrected="" if row.corrected is None else f"{row.corrected:.3f}",
        ratio=ratio,
        ratio_interval=ratio_interval,
        verdict=_reading(better_or_worse),
    )


def _reading(better_or_worse: str) -> str:
    return f"{COMPARED[0]} is {better_or_worse}" if better_or_worse else "no difference shown"


@dataclass(frozen=True)
class MatrixCell:
    """A value with its interval, empty where it was not measured; claimed where it is a difference."""

    value: str = ""
    interval: str = ""
    claimed: bool = False


@dataclass(frozen=True)
class MatrixRow:
    model: str
    cells: list[MatrixCell]


@dataclass(frozen=True)
class Matrix:
    """A row a model and a column a slice: each one's error, and how much that of the first of COMPARED exceeds it."""

    title: str
    slices: list[str]
    errors: list[MatrixRow]
    differences: list[MatrixRow]


def matrix(areas: Areas, pairs: Pairs, metric: str) -> Section[list[Matrix]]:
    """Controls, and ablations where there are any."""
    models = list(dict.fromkeys(model for model, _ in areas))
    slices = list(dict.fromkeys(name for _, name in areas))
    groups = (
        ("Controls", [m for m in models if not m.startswith("ablation-")]),
        ("Ablations", [m for m in models if m.startswith("ablation-") or m == COMPARED[0]]),
    )
    matrices = []
    for title, members in groups:
        if len(members) < 2:
            continue
        errors = [MatrixRow(m, [_error_cell(areas.get((m, s)), metric) for s in slices]) for m in members]
        others = [m for m in members if any((m, s) in pairs for s in slices)]
        differences = [MatrixRow(m, [_difference_cell(pairs.get((m, s))) for s in slices]) for m in others]
        matrices.append(Matrix(title, slices, errors, differences))
    numbers: Numbers = {}
    for (model, name), area in areas.items():
        _, low, high = area.interval
        numbers |= {f"{model}.{name}.{metric}.area.low": low, f"{model}.{name}.{metric}.area.high": high}
    return Section(matrices, numbers)


def _error_cell(area: Resampled | None, metric: str) -> MatrixCell:
    if area is None:
        return MatrixCell()
    value, low, high = (number(v, metric) for v in area.interval)
    return MatrixCell(value, f"{low}, {high}")


def _difference_cell(pair: Comparison | None) -> MatrixCell:
    if pair is None:
        return MatrixCell()
    difference, interval = texts(pair)[:2]
    return MatrixCell(difference, interval.replace(" to ", ", "), pair.claimed)


@dataclass(frozen=True)
class NoWorse:
    """The first of COMPARED relative to the best control of a slice, as the page prints it."""

    slice: str
    best: str
    relative: str
    upper: str
    verdict: str


def no_worse(areas: Areas, pairs: Pairs) -> Section[list[NoWorse]]:
    """On the slices of JUDGED: the first of COMPARED against the control that errs least there, by MAE."""
    lines = []
    numbers: Numbers = {}
    for name in JUDGED:
        controls = {m: area for (m, s), area in areas.items() if s == name and tables.is_control(m) and (m, s) in pairs}
        if not controls:
            continue
        best = min(controls, key=lambda m: controls[m].values[0])
        pair = pairs[best, name]
        relative, upper, passed = pair.ratio - 1, pair.ratio_high - 1, non_inferior(pair, MARGIN)
        verdict = "no worse" if passed else "not shown to be no worse"
        lines.append(NoWorse(name, best, percent(relative), percent(upper), verdict))
        numbers |= {
            f"non_inferior.{name}": passed,
            f"non_inferior.{name}.{best}.mae.relative": relative,
            f"non_inferior.{name}.{best}.mae.upper": upper,
        }
    return Section(lines, numbers)


@dataclass(frozen=True)
class SpecialistRow:
    """A specialist in one cell, as the page prints it: the MAE of the first of COMPARED, its own, and their ratio."""

    model: str
    cell: str
    ours: str
    theirs: str
    ratio: str
    interval: str
    verdict: str


@dataclass(frozen=True)
class Specialists:
    """`mean` is the mean ratio over the `count` cells that specialists were trained in, empty where there is none."""

    rows: list[SpecialistRow]
    mean: str = ""
    count: int = 0


def specialists(results: Results) -> Section[Specialists]:
    """One checkpoint against a specialist in each one's own cell; the clean specialist also in all worse ones."""
    first = COMPARED[0]
    if first not in results.models or tables.error_metric(results.cells) != "mae":
        return Section(Specialists([]), {})
    evaluated = set(results.cells.loc[results.cells["model"] == first, "cell"])
    rows = []
    numbers: Numbers = {}
    own_ratios = []
    for model in (m for m in results.models if m.startswith("specialist-")):
        for cell in _cells_of(model, results.cells):
            if cell not in evaluated:
                continue
            ours, theirs = (resample(results.compared(m, cells=[cell]), "mae", DRAWS) for m in (first, model))
            pair = compare_resampled(ours, theirs, cell)
            if cell == _own_cell(model):
                own_ratios.append(pair.ratio)
            rows.append(_specialist_row(model, cell, ours, theirs, pair))
            numbers |= _pair_numbers(f"comparison.{first}-{model}.{_key(cell)}.mae", pair)
            name = f"specialists.{model}.{_key(cell)}"
            numbers |= {f"{name}.mae": float(theirs.values[0]), f"{name}.{first}.mae": float(ours.values[0])}
    if not own_ratios:
        return Section(Specialists(rows), numbers)
    mean = sum(own_ratios) / len(own_ratios)
    return Section(Specialists(rows, f"{mean:.3f}", len(own_ratios)), {**numbers, "specialists.mean_ratio": mean})


def _specialist_row(model: str, cell: str, ours: Resampled, theirs: Resampled, pair: Comparison) -> SpecialistRow:
    _, _, _, ratio, interval = texts(pair)
    maes = [number(side.values[0], "mae") for side in (ours, theirs)]
    return SpecialistRow(model, cell, maes[0], maes[1], ratio, interval, _reading(verdict(pair, "mae")))


def _key(cell: str) -> str:
    """missing-0.3 -> missing-s03: names of the summary hold no dot of their own."""
    return re.sub(r"-(\d)\.(\d)$", r"-s\1\2", cell)


def _own_cell(model: str) -> str:
    """specialist-missing-03 -> missing-0.3; specialist-clean -> clean."""
    kind, _, tenths = model.removeprefix("specialist-").rpartition("-")
    return f"{kind}-{int(tenths) / 10:.1f}" if kind else "clean"


def _cells_of(model: str, cells: pd.DataFrame) -> list[str]:
    trained_in = _own_cell(model)
    if trained_in != "clean":
        return [trained_in]
    graded = cells[cells["slice"].isin(("missing", "noise")) & (cells["severity"] > FROM - 0.05)]
    return [trained_in, *graded["cell"].unique()]
