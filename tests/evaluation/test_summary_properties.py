"""Properties of the weights of cells and of the summary of a slice, for any cells in any order."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qamoe.evaluation.summary import BLIND, EQUALLY_WEIGHTED, summarise, weights

pytestmark = pytest.mark.integration

CURVES = ("missing", "noise", "alone", "held_out")
METRICS = ("mae", "corr", "mean_error")
Rows = list[dict[str, Any]]

values = st.floats(-5, 5)
of_tables = settings(max_examples=25)  # pandas takes milliseconds for each
of_weights = settings(max_examples=50)


@st.composite
def curves(draw: st.DrawFn) -> tuple[str, dict[str, float]]:
    """A slice of one or several curves: severity by cell."""
    name = draw(st.sampled_from(CURVES))
    count = draw(st.integers(1, 3)) if name in ("alone", "held_out") else 1
    cells: dict[str, float] = {}
    for number in range(count):
        prefix = f"{name}-{'abc'[number]}-x" if count > 1 or name in ("alone", "held_out") else name
        steps = draw(st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True))
        cells |= {f"{prefix}-{step}": step / 100 for step in steps}
    return name, cells


@st.composite
def even(draw: st.DrawFn) -> tuple[str, dict[str, float]]:
    """A slice whose cells weigh alike; of subsets, some are blind."""
    name = draw(st.sampled_from(EQUALLY_WEIGHTED))
    count = draw(st.integers(1, 6))
    cells = {f"{name}-{number}": draw(st.sampled_from([0.0, 0.5, 1.0])) for number in range(count)}
    if name == "subsets":
        cells |= {f"{name}-{number}{BLIND}": 1.0 for number in range(draw(st.integers(0, count)))}
    return name, cells


def single() -> st.SearchStrategy[tuple[str, dict[str, float]]]:
    return st.sampled_from([("mixed", {"mixed": math.nan}), ("clean", {"clean": 0.0})])


slices = curves() | even() | single()


@st.composite
def measured(draw: st.DrawFn) -> Rows:
    """Rows of cells.parquet: up to three slices with draws and metrics."""
    rows: Rows = []
    chosen = draw(st.lists(slices, min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
    for name, cells in chosen:
        for cell, severity in cells.items():
            for number in range(draw(st.integers(1, 2))):
                about = {"slice": name, "cell": cell, "severity": severity, "draw": number}
                rows += [{**about, "metric": metric, "value": draw(values)} for metric in METRICS]
    return rows


def series(cells: dict[str, float]) -> pd.Series:
    return pd.Series(list(cells.values()), list(cells), dtype=float)


def naive_weights(name: str, cells: dict[str, float]) -> dict[str, float]:
    """Weights by their definition: what each cell adds to the area when it alone is 1."""
    if name in EQUALLY_WEIGHTED:
        counted = [cell for cell in cells if not cell.endswith(BLIND)]
        return {cell: (cell in counted) / len(counted) for cell in cells}
    if len(cells) == 1:
        return dict.fromkeys(cells, 1.0)
    by_curve: dict[str, list[str]] = {}
    for cell in cells:
        by_curve.setdefault(cell[: cell.rindex("-")], []).append(cell)
    found = {}
    for members in by_curve.values():
        members.sort(key=cells.__getitem__)
        severities = [cells[cell] for cell in members]
        for place, cell in enumerate(members):
            height = [float(place == other) for other in range(len(members))]
            area = sum(
                (severities[i + 1] - severities[i]) * (height[i] + height[i + 1]) / 2 for i in range(len(members) - 1)
            )
            found[cell] = area / (severities[-1] - severities[0]) / len(by_curve)
    return found


def naive_summary(rows: Rows) -> dict[tuple[str, str], dict[str, float]]:
    """The summary with loops instead of tables."""
    found = {}
    for name, metric in {(row["slice"], row["metric"]) for row in rows}:
        own = [row for row in rows if (row["slice"], row["metric"]) == (name, metric)]
        cells = {row["cell"]: row["severity"] for row in own}
        mean = {cell: np.mean([row["value"] for row in own if row["cell"] == cell]) for cell in cells}
        weight = naive_weights(name, cells)
        counted = [mean[cell] for cell in cells if weight[cell] > 0]
        below = [mean[cell] for cell in cells if cells[cell] < 0.95]
        clean = [mean[cell] for cell in cells if cells[cell] == 0]
        is_curve = name not in EQUALLY_WEIGHTED and len(cells) > 1
        worst: dict[str, float] = {"mae": max(counted), "corr": min(counted), "mean_error": max(counted, key=abs)}
        found[name, metric] = {
            "area": sum(weight[cell] * mean[cell] for cell in cells),
            "area09": float(np.mean(below)) if is_curve and below else math.nan,
            "worst": worst[metric],
            "clean": float(np.mean(clean)) if clean else math.nan,
        }
    return found


def summary_of(rows: Rows) -> dict[tuple[str, str], dict[str, float]]:
    table = summarise(pd.DataFrame(rows))
    assert not table.duplicated(["slice", "metric"]).any()
    figures = ["area", "area09", "worst", "clean"]
    return {(row["slice"], row["metric"]): {name: row[name] for name in figures} for row in table.to_dict("records")}


def assert_close(found: dict[tuple[str, str], dict[str, float]], expected: dict[tuple[str, str], Any]) -> None:
    assert found.keys() == expected.keys()
    for key, figures in expected.items():
        assert found[key] == pytest.approx(figures, abs=1e-9, nan_ok=True), key


@of_weights
@given(pair=slices)
def test_the_weights_of_a_slice_sum_to_one_and_none_is_negative(pair: tuple[str, dict[str, float]]) -> None:
    name, cells = pair
    found = weights(name, series(cells))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert list(found.index) == list(cells)


@of_weights
@given(pair=slices)
def test_weights_are_those_of_the_definition(pair: tuple[str, dict[str, float]]) -> None:
    name, cells = pair
    assert weights(name, series(cells)).to_dict() == pytest.approx(naive_weights(name, cells))


@of_weights
@given(pair=slices, order=st.randoms(use_true_random=False))
def test_weights_do_not_depend_on_the_order_of_the_cells(pair: tuple[str, dict[str, float]], order: Any) -> None:
    name, cells = pair
    shuffled = list(cells)
    order.shuffle(shuffled)
    found = weights(name, series({cell: cells[cell] for cell in shuffled}))
    assert found.to_dict() == pytest.approx(weights(name, series(cells)).to_dict())


@of_weights
@given(pair=curves(), offset=st.integers(-50, 50), scale=st.integers(1, 5))
def test_the_weights_of_a_curve_do_not_depend_on_the_unit_of_severity(
    pair: tuple[str, dict[str, float]], offset: int, scale: int
) -> None:
    name, cells = pair
    moved = {cell: severity * scale + offset / 100 for cell, severity in cells.items()}
    assert weights(name, series(moved)).to_dict() == pytest.approx(weights(name, series(cells)).to_dict())


@of_tables
@given(pair=slices, constant=values, draws=st.integers(1, 3))
def test_a_constant_slice_has_that_constant_everywhere(
    pair: tuple[str, dict[str, float]], constant: float, draws: int
) -> None:
    name, cells = pair
    about = [{"slice": name, "cell": cell, "severity": s, "draw": d} for cell, s in cells.items() for d in range(draws)]
    (figures,) = summary_of([{**row, "metric": "mae", "value": constant} for row in about]).values()
    assert figures["area"] == pytest.approx(constant)
    assert figures["worst"] == pytest.approx(constant)
    assert all(math.isnan(figures[f]) or figures[f] == pytest.approx(constant) for f in ("area09", "clean"))


@of_tables
@given(cells=st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True), slope=values, start=values)
def test_the_area_under_a_line_is_its_middle(cells: list[int], slope: float, start: float) -> None:
    about = [{"slice": "noise", "cell": f"noise-{c}", "severity": c / 100, "draw": 0, "metric": "mae"} for c in cells]
    rows = [{**row, "value": start + slope * row["severity"]} for row in about]  # type: ignore[operator]
    middle = start + slope * (min(cells) + max(cells)) / 200
    assert summary_of(rows)["noise", "mae"]["area"] == pytest.approx(middle, abs=1e-9)


@of_tables
@given(rows=measured())
def test_a_summary_is_that_of_the_definition(rows: Rows) -> None:
    assert_close(summary_of(rows), naive_summary(rows))


@of_tables
@given(rows=measured(), order=st.randoms(use_true_random=False))
def test_a_summary_does_not_depend_on_the_order_of_the_rows(rows: Rows, order: Any) -> None:
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert_close(summary_of(shuffled), summary_of(rows))


@of_tables
@given(shown=st.lists(values, min_size=1, max_size=4), blind=st.lists(values, min_size=1, max_size=4))
def test_blind_cells_have_no_part_in_the_summary(shown: list[float], blind: list[float]) -> None:
    measured_cells = [(f"subsets-{i}", value) for i, value in enumerate(shown)]
    blind_cells = [(f"subsets-{i}{BLIND}", value) for i, value in enumerate(blind)]
    about = {"slice": "subsets", "severity": 1.0, "draw": 0}
    with_blind, without = (
        [{**about, "cell": cell, "metric": metric, "value": value} for cell, value in cells for metric in METRICS]
        for cells in (measured_cells + blind_cells, measured_cells)
    )
    assert_close(summary_of(with_blind), summary_of(without))


@given(pair=curves(), data=st.data())
def test_two_cells_of_one_severity_are_refused(pair: tuple[str, dict[str, float]], data: st.DataObject) -> None:
    name, cells = pair
    first = data.draw(st.sampled_from(list(cells)))
    curve = first[: first.rindex("-")]
    doubled = cells | {f"{curve}-again": cells[first]}
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        weights(name, series(doubled))
    assert first in str(refused.value)
    assert f"{curve}-again" in str(refused.value)
