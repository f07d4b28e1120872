"""Compare QA-MoE with every control, ablation and specialist: differences with their intervals, for the page."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from qamoe.evaluation.bootstrap import DRAWS, Comparison, Resampled, compare_resampled, holm, non_inferior, resample
from qamoe.report import tables
from qamoe.report.pairwise import format_comparison, verdict
from qamoe.report.results import Results
from qamoe.report.section import Numbers, Section
from qamoe.report.tables import number, percent

COMPARED = ("qamoe", "concat")  # the page reports the first minus the second on every slice
FAMILY = (("concat", "moe"), ("mixed", "alone"))  # models and slices; fixed before any result; Holm corrects over it
NON_INFERIORITY_SLICES = ("mixed", "missing")  # where QA-MoE must be no worse than the best control
SIGNIFICANT = 0.05  # for Holm's p of a member of FAMILY
MARGIN = 0.01  # non-inferiority margin, relative to the MAE of the control
FROM = 0.3  # lowest severity at which the clean specialist is expected to lose

Areas = dict[tuple[str, str], Resampled]  # (model, slice) -> the error under the same draws of sources
Pairs = dict[tuple[str, str], Comparison]  # (other model, slice)


class ReportedPair(NamedTuple):
    """COMPARED[0] against a model on a slice; `corrected` is Holm's p, None outside FAMILY."""

    against: str
    slice: str
    metric: str
    pair: Comparison
    corrected: float | None


def resampled(results: Results) -> Areas:
    """Return the error of every model except the specialists on every slice."""
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
    """Compare COMPARED[0] with every other model on every slice that both have; empty if it was not evaluated."""
    first = COMPARED[0]
    return {
        (model, name): compare_resampled(areas[first, name], area, name)
        for (model, name), area in areas.items()
        if model != first and (first, name) in areas
    }


def reported_pairs(pairs: Pairs, metric: str) -> list[ReportedPair]:
    """Return the pair COMPARED on every slice, then the other members of FAMILY, each with its corrected p."""
    corrected = family(pairs)
    chosen = dict.fromkeys([*(key for key in pairs if key[0] == COMPARED[1]), *corrected])
    return [
        ReportedPair(model, name, metric, pairs[model, name], corrected.get((model, name))) for model, name in chosen
    ]


def family(pairs: Pairs) -> dict[tuple[str, str], float]:
    """Return Holm's p of each member of FAMILY that was measured."""
    members = [(model, name) for model in FAMILY[0] for name in FAMILY[1]]
    measured = [key for key in members if key in pairs and not pd.isna(pairs[key].p)]
    corrected = holm({f"{model}.{name}": pairs[model, name].p for model, name in measured})
    return {(model, name): p for key, p in corrected.items() for model, _, name in [key.partition(".")]}


def shows_difference(pair: Comparison, corrected: float | None) -> bool:
    """Return whether the interval of a pair excludes 0 and, within FAMILY, Holm's p is below SIGNIFICANT."""
    return pair.claimed and (corrected is None or corrected < SIGNIFICANT)


@dataclass(frozen=True)
class DifferenceRow:
    """A ReportedPair formatted for the page."""

    against: str
    slice: str
    difference: str
    interval: str
    p: str
    corrected: str
    ratio: str
    ratio_interval: str
    verdict: str


def compared_models(pairs: Pairs, reported: list[ReportedPair], metric: str) -> Section[list[DifferenceRow]]:
    """Return the reported pairs for the page, and the numbers of every pair."""
    first = COMPARED[0]
    numbers: Numbers = {}
    for (model, name), pair in pairs.items():
        numbers |= _pair_numbers(f"comparison.{first}-{model}.{name}.{metric}", pair)
    for row in reported:
        if row.corrected is not None:
            numbers[f"comparison.{first}-{row.against}.{row.slice}.{metric}.p_holm"] = row.corrected
    return Section([_difference_row(row) for row in reported], numbers)


def _pair_numbers(prefix: str, pair: Comparison) -> Numbers:
    names = ("difference", "difference.low", "difference.high", "p", "ratio", "ratio.low", "ratio.high")
    return {f"{prefix}.{name}": value for name, value in zip(names, pair, strict=True)}


def _difference_row(row: ReportedPair) -> DifferenceRow:
    difference, interval, p, ratio, ratio_interval = format_comparison(row.pair)
    better_or_worse = verdict(row.pair, row.metric) if shows_difference(row.pair, row.corrected) else ""
    return DifferenceRow(
        row.against,
        row.slice,
        difference,
        interval,
        p,
        corrected="" if row.corrected is None else f"{row.corrected:.3f}",
        ratio=ratio,
        ratio_interval=ratio_interval,
        verdict=_result(better_or_worse),
    )


def _result(better_or_worse: str) -> str:
    return f"{COMPARED[0]} is {better_or_worse}" if better_or_worse else "no difference shown"


@dataclass(frozen=True)
class MatrixCell:
    """A value with its interval; both are empty if not measured. claimed: the interval of a difference excludes 0."""

    value: str = ""
    interval: str = ""
    claimed: bool = False


@dataclass(frozen=True)
class MatrixRow:
    model: str
    cells: list[MatrixCell]


@dataclass(frozen=True)
class Matrix:
    """One row per model, one column per slice: the error, and the error of COMPARED[0] minus it."""

    title: str
    slices: list[str]
    errors: list[MatrixRow]
    differences: list[MatrixRow]


def matrix(areas: Areas, pairs: Pairs, metric: str) -> Section[list[Matrix]]:
    """Return the matrix of the controls, and that of the ablations if any were evaluated."""
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
    difference, interval = format_comparison(pair)[:2]
    return MatrixCell(difference, interval.replace(" to ", ", "), pair.claimed)


@dataclass(frozen=True)
class NonInferiorityRow:
    """COMPARED[0] relative to the best control of a slice, formatted for the page."""

    slice: str
    best: str
    relative: str
    upper: str
    verdict: str


def non_inferiority(areas: Areas, pairs: Pairs) -> Section[list[NonInferiorityRow]]:
    """Compare COMPARED[0] with the control of the lowest MAE on each of NON_INFERIORITY_SLICES."""
    rows = []
    numbers: Numbers = {}
    for name in NON_INFERIORITY_SLICES:
        controls = {m: area for (m, s), area in areas.items() if s == name and tables.is_control(m) and (m, s) in pairs}
        if not controls:
            continue
        best = min(controls, key=lambda m: controls[m].values[0])
        pair = pairs[best, name]
        relative, upper, passed = pair.ratio - 1, pair.ratio_high - 1, non_inferior(pair, MARGIN)
        verdict = "no worse" if passed else "not shown to be no worse"
        rows.append(NonInferiorityRow(name, best, percent(relative), percent(upper), verdict))
        numbers |= {
            f"non_inferior.{name}": passed,
            f"non_inferior.{name}.{best}.mae.relative": relative,
            f"non_inferior.{name}.{best}.mae.upper": upper,
        }
    return Section(rows, numbers)


@dataclass(frozen=True)
class SpecialistRow:
    """A specialist in one cell, formatted for the page: the MAE of COMPARED[0], that of the specialist, their ratio."""

    model: str
    cell: str
    ours: str
    theirs: str
    ratio: str
    interval: str
    verdict: str


@dataclass(frozen=True)
class Specialists:
    """`mean`: the mean ratio over the `count` cells that specialists were trained in, empty without such a cell."""

    rows: list[SpecialistRow]
    mean: str = ""
    count: int = 0


def specialists(results: Results) -> Section[Specialists]:
    """Compare COMPARED[0] with each specialist in the specialist's own cell; with the clean one also in worse cells."""
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
    _, _, _, ratio, interval = format_comparison(pair)
    maes = [number(side.values[0], "mae") for side in (ours, theirs)]
    return SpecialistRow(model, cell, maes[0], maes[1], ratio, interval, _result(verdict(pair, "mae")))


def _key(cell: str) -> str:
    """missing-0.3 -> missing-s03: in summary.json a dot separates the parts of a name."""
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
