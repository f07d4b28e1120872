from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qamoe import params
from qamoe.errors import Refused
from qamoe.evaluation import spectrum, summary
from qamoe.evaluation.compare import METRICS, paired_bootstrap, paired_ratio, weights

SLICES = ("clean", "missing", "mixed")


@pytest.fixture(scope="module")
def cells() -> list[spectrum.Cell]:
    settings = params.load(Path(__file__).parents[2] / "params.yaml").evaluate.model_copy(
        update={"draws": 2, "mixed_draws": 3}
    )
    return spectrum.plan(SLICES, settings)


def predictions(cells: list[spectrum.Cell], seed: int, slope: float) -> pd.DataFrame:
    """14 clips of 5 sources of unequal size; the error grows with severity, not in a straight line."""
    rng = np.random.default_rng(seed)
    target = np.random.default_rng(99).normal(0, 1.3, 14)
    rows = []
    for cell in cells:
        for view in cell.views:
            level = 0.5 if np.isnan(cell.severity) else cell.severity**2
            made = pd.DataFrame({"clip_id": [f"c{i:02d}" for i in range(14)], "target": target})
            made["source"] = ["a"] * 6 + ["b"] * 3 + ["c"] * 2 + ["d"] * 2 + ["e"]
            made["prediction"] = target + (0.4 + slope * level) * rng.normal(0.2, 1, 14)
            for modality in ("text", "audio", "vision"):
                made[f"severity_{modality}"] = np.float32(cell.severity)
            rows.append(made.assign(slice=cell.slice, cell=cell.name, draw=view.number, variance=1.0, seed=seed))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("metric", sorted(METRICS))
def test_the_difference_is_that_of_the_slice_summaries(cells: list[spectrum.Cell], name: str, metric: str) -> None:
    a = [predictions(cells, seed, 1.0) for seed in (1, 2, 3)]
    b = [predictions(cells, seed, 1.6) for seed in (4, 5)]

    def area(runs: list[pd.DataFrame]) -> float:
        tables = [summary.summarise(spectrum.aggregate(run, cells, {})).set_index(["slice", "metric"]) for run in runs]
        return float(np.mean([table.loc[(name, metric), "area"] for table in tables]))

    def only(runs: list[pd.DataFrame]) -> pd.DataFrame:
        rows = pd.concat(runs)
        return rows[rows["slice"] == name]

    difference, low, high = paired_bootstrap(only(a), only(b), metric, draws=200)
    assert difference == pytest.approx(area(a) - area(b), abs=1e-9)
    assert low < high


def test_the_ratio_is_that_of_the_slice_summaries(cells: list[spectrum.Cell]) -> None:
    a, b = predictions(cells, 1, 1.0), predictions(cells, 2, 1.6)
    a, b = a[a["slice"] == "missing"], b[b["slice"] == "missing"]
    assert paired_ratio(a, b)[0] * paired_ratio(b, a)[0] == pytest.approx(1)
    assert paired_ratio(a, a) == (1.0, 1.0, 1.0)
    perfect = b.assign(prediction=b["target"])
    with pytest.raises(Refused, match="above 0"):
        paired_ratio(a, perfect)


def two_sources(first: float, second: float) -> pd.DataFrame:
    """40 clips, each with an error that its source decides."""
    source = np.repeat(["a", "b"], 20)
    return pd.DataFrame({
        "clip_id": [f"c{i}" for i in range(40)], "source": source, "slice": "clean", "cell": "clean", "draw": 0,
        "target": np.arange(40.0), "prediction": np.arange(40.0) + np.where(source == "a", first, second),
    })  # fmt: skip


def test_sources_are_drawn_not_clips() -> None:
    difference, low, high = paired_bootstrap(two_sources(1, 0), two_sources(0, 0))
    assert (difference, low, high) == (0.5, 0.0, 1.0)  # drawing clips would give about 0.35 to 0.65


def test_what_both_share_leaves_no_width() -> None:
    difference, low, high = paired_bootstrap(two_sources(1.5, 3.25), two_sources(1.25, 3))
    assert (difference, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_seed_gives_the_same_interval_again() -> None:
    rng = np.random.default_rng(0)
    a = two_sources(0, 0).assign(source=[f"s{i % 10}" for i in range(40)], prediction=rng.normal(0, 1, 40))
    assert paired_bootstrap(a, two_sources(0, 0).assign(source=a["source"]), seed=4) == paired_bootstrap(
        a, two_sources(0, 0).assign(source=a["source"]), seed=4
    )


def test_a_constant_prediction_correlates_with_nothing() -> None:
    constant = two_sources(0, 0).assign(prediction=0.1)
    assert paired_bootstrap(constant, constant.assign(prediction=0.7), "corr") == (0.0, 0.0, 0.0)


def test_weights_are_the_trapezoid_and_sum_to_one(cells: list[spectrum.Cell]) -> None:
    rows = predictions(cells, 1, 1.0)
    found = weights(rows[rows["slice"] == "missing"])
    assert found.sum() == pytest.approx(1)
    assert list(found) == pytest.approx([0.05, *[0.1] * 9, 0.05])


def test_different_grids_are_refused(cells: list[spectrum.Cell]) -> None:
    a = two_sources(1, 0)
    with pytest.raises(Refused, match=r"39 rows, the first seed 40"):
        paired_bootstrap(a, a.iloc[:-1])
    with pytest.raises(Refused, match="not measured on the same"):
        paired_bootstrap(a, a.assign(target=a["target"] + 1))
    with pytest.raises(Refused, match="twice"):
        paired_bootstrap(a, pd.concat([a, a]))
    with pytest.raises(Refused, match="one slice, not about clean, mixed"):
        paired_bootstrap(a, a.assign(slice="mixed"))
    with pytest.raises(Refused, match="'acc9'; allowed are mae"):
        paired_bootstrap(a, a, "acc9")
