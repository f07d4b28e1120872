"""Summaries of a slice by hand: area, the field's average, worst and clean cell."""

import numpy as np
import pandas as pd
import pytest

from qamoe.evaluation.summary import summarise


def cells(slice_: str, values: dict[float, list[float]], metric: str = "mae") -> pd.DataFrame:
    """Rows of cells.parquet; a list holds the draws of a severity."""
    return pd.DataFrame(
        [
            {
                "slice": slice_,
                "cell": f"{slice_}-{severity}",
                "severity": severity,
                "draw": d,
                "metric": metric,
                "value": v,
            }
            for severity, draws in values.items()
            for d, v in enumerate(draws)
        ]
    )


def test_the_area_is_the_trapezoid_divided_by_the_range() -> None:
    (row,) = summarise(cells("missing", {0.0: [1.0], 0.5: [2.0, 4.0], 1.0: [5.0]})).to_dict("records")
    assert row["slice"] == "missing"
    assert row["metric"] == "mae"
    assert row["area"] == pytest.approx((0.5 * (1 + 3) / 2 + 0.5 * (3 + 5) / 2) / 1.0)
    assert row["area09"] == pytest.approx((1 + 3) / 2), "the field averages 0 to 0.9 and leaves 1 out"
    assert (row["clean"], row["worst"]) == (1.0, 5.0)


def test_cells_that_are_not_evenly_spaced_weigh_by_their_distance() -> None:
    (row,) = summarise(cells("noise", {0.2: [1.0], 0.3: [1.0], 0.8: [3.0]})).to_dict("records")
    assert row["area"] == pytest.approx((0.1 * 1 + 0.5 * 2) / 0.6)
    assert np.isnan(row["clean"]), "a slice that does not begin at 0 has no clean cell"


def test_rows_may_come_in_any_order() -> None:
    table = cells("missing", {step / 10: [float(step**2)] for step in range(11)})
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(summarise(shuffled), summarise(table))
    area = sum(((s / 10) ** 2 + ((s + 1) / 10) ** 2) / 2 * 0.1 * 100 for s in range(10))
    assert summarise(table)["area"].item() == pytest.approx(area)
    assert summarise(table)["area09"].item() == pytest.approx(np.mean([s**2 for s in range(10)]))


def test_the_worst_is_the_highest_error_and_the_lowest_accuracy() -> None:
    both = pd.concat([cells("noise", {0.0: [0.9], 1.0: [0.4]}, m) for m in ("acc7", "nll", "width_90", "corr")])
    worst = summarise(both).set_index("metric")["worst"].to_dict()
    assert worst == {"acc7": 0.4, "corr": 0.4, "nll": 0.9, "width_90": 0.9}


def test_mixed_and_clean_are_one_cell() -> None:
    table = pd.concat([cells("mixed", {float("nan"): [1.0, 2.0, 6.0]}), cells("clean", {0.0: [0.7]})])
    found = summarise(table).set_index("slice")
    assert found.loc["mixed", "area"] == pytest.approx(3.0)
    assert np.isnan(found.loc["mixed", "clean"])
    assert np.isnan(found.loc["mixed", "area09"])
    assert found.loc["clean", ["area", "worst", "clean"]].tolist() == [0.7] * 3
