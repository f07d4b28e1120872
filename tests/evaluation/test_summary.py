"""Summaries of worked examples: area, the field's average, worst and clean cell."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.config import params
from qamoe.evaluation import bootstrap, protocol
from qamoe.evaluation.summary import summarise, weights


def cells(slice_: str, values: dict[float, list[float]], metric: str = "mae") -> pd.DataFrame:
    """Return rows of cells.parquet; a list has the draws of a severity."""
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


def test_unevenly_spaced_cells_are_weighted_by_distance() -> None:
    (row,) = summarise(cells("noise", {0.2: [1.0], 0.3: [1.0], 0.8: [3.0]})).to_dict("records")
    assert row["area"] == pytest.approx((0.1 * 1 + 0.5 * 2) / 0.6)
    assert np.isnan(row["clean"]), "a slice that does not start at 0 has no clean cell"


def test_the_order_of_rows_does_not_matter() -> None:
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
    summary: Any = summarise(table).set_index("slice")
    assert summary.loc["mixed", "area"] == pytest.approx(3.0)
    assert np.isnan(summary.loc["mixed", "clean"])
    assert np.isnan(summary.loc["mixed", "area09"])
    assert summary.loc["clean", ["area", "worst", "clean"]].tolist() == [0.7] * 3


def grid(slice_: str, values: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Return rows of cells.parquet from severity and value by cell name."""
    return pd.DataFrame(
        [
            {"slice": slice_, "cell": cell, "severity": severity, "draw": 0, "metric": "mae", "value": value}
            for cell, (severity, value) in values.items()
        ]
    )


def test_alone_is_the_mean_of_the_areas_of_its_curves() -> None:
    table = grid(
        "alone",
        {
            "alone-text-missing-0.0": (0.0, 1.0),
            "alone-text-missing-0.5": (0.5, 2.0),
            "alone-text-missing-1.0": (1.0, 5.0),
            "alone-audio-noise-0.0": (0.0, 1.0),
            "alone-audio-noise-1.0": (1.0, 2.0),
        },
    )
    (row,) = summarise(table).to_dict("records")
    assert row["area"] == pytest.approx(((1 + 2 * 2 + 5) / 4 + 1.5) / 2)
    assert row["area09"] == pytest.approx((1 + 2 + 1) / 3)
    assert (row["clean"], row["worst"]) == (1.0, 5.0)


def test_held_out_is_the_mean_of_its_two_areas() -> None:
    values = {f"held_out-{k}-{s}": (s, v) for k, v in (("additive", 1.0), ("desync", 3.0)) for s in (0.0, 0.5, 1.0)}
    assert summarise(grid("held_out", values))["area"].item() == pytest.approx(2.0)


def test_joint_and_swap_are_the_mean_over_cells() -> None:
    swap = grid("swap", {"swap-text-0.25": (0.25, 1.0), "swap-text-1.00": (1.0, 2.0), "swap-audio-0.25": (0.25, 6.0)})
    (row,) = summarise(swap).to_dict("records")
    assert row["area"] == pytest.approx(3.0)
    assert np.isnan(row["area09"])
    assert np.isnan(row["clean"]), "swap has no cell at severity 0"
    levels = [(m, n) for m in (0.0, 1.0) for n in (0.0, 1.0)]
    joint = grid("joint", {f"joint-{m:.2f}-{n:.2f}": (float("nan"), 1 + m + 2 * n) for m, n in levels})
    joint = joint.assign(severity_missing=[m for m, _ in levels], severity_noise=[n for _, n in levels])
    (row,) = summarise(joint).to_dict("records")
    assert row["area"] == pytest.approx(2.5)
    assert (row["clean"], row["worst"]) == (1.0, 4.0)


def test_blind_subsets_have_weight_0() -> None:
    values = {"subsets-t": (1.0, 2.0), "subsets-a": (1.0, 3.0), "subsets-ta": (0.0, 1.0), "subsets-a-blind": (1.0, 9.0)}
    (row,) = summarise(grid("subsets", values)).to_dict("records")
    assert row["area"] == pytest.approx(2.0)
    assert (row["clean"], row["worst"]) == (1.0, 3.0)


def test_a_metric_that_is_not_defined_in_a_cell_has_no_area() -> None:
    table = cells("missing", {0.0: [1.0], 0.5: [float("nan")], 1.0: [2.0]}, "acc2_non0")
    assert np.isnan(summarise(table)["area"].item())


@pytest.mark.parametrize("severities", [[0.0, 0.5, 0.5], [0.0, float("nan"), 1.0]])
def test_cells_that_are_not_a_curve_are_refused(severities: list[float]) -> None:
    with pytest.raises(ValueError, match="missing-0, missing-1, missing-2"):
        weights("missing", pd.Series(severities, [f"missing-{i}" for i in range(3)]))


@pytest.mark.parametrize("name", ["missing", "mixed", "alone", "joint", "subsets", "swap", "held_out"])
def test_comparisons_and_summaries_weight_cells_equally(name: str) -> None:
    settings = params.load(Path(__file__).parents[2] / "params.yaml").evaluate
    plan = protocol.plan((name,), settings)
    value = np.random.default_rng(0).uniform(1, 2, len(plan))
    table = pd.DataFrame(
        {
            "slice": name,
            "cell": [c.name for c in plan],
            "severity": [c.severity for c in plan],
            "severity_missing": [c.severity_missing for c in plan],
            "severity_noise": [c.severity_noise for c in plan],
            "metric": "mae",
            "value": value,
        }
    )
    predictions = table[["slice", "cell"]].copy()
    for modality in ("text", "audio", "vision"):
        levels = [c.severity_missing if name == "joint" else c.severity for c in plan]
        severities = [level if modality in c.modalities else 0.0 for c, level in zip(plan, levels, strict=True)]
        predictions[f"severity_{modality}"] = np.array(severities, np.float32)
    cell_weights = bootstrap.weights(predictions.sample(frac=1, random_state=1))
    assert cell_weights.sum() == pytest.approx(1)
    area = summarise(table.sample(frac=1, random_state=2))["area"].item()
    assert area == pytest.approx(float(cell_weights.reindex([c.name for c in plan]) @ value))
