from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qamoe.config import params
from qamoe.errors import UserError
from qamoe.evaluation import protocol, summary
from qamoe.evaluation.bootstrap import (
    CLASSIFICATION,
    REGRESSION,
    compare,
    holm,
    interval,
    non_inferior,
    paired_bootstrap,
    resample,
    weights,
)
from qamoe.evaluation.metrics import classification

SLICES = ("clean", "missing", "mixed")


@pytest.fixture(scope="module")
def cells() -> list[protocol.Cell]:
    settings = params.load(Path(__file__).parents[2] / "params.yaml").evaluate.model_copy(
        update={"draws": 2, "mixed_draws": 3}
    )
    return protocol.plan(SLICES, settings)


def predictions(cells: list[protocol.Cell], seed: int, slope: float) -> pd.DataFrame:
    """Return 14 clips of 5 sources of unequal size; the error grows with severity, but not linearly."""
    rng = np.random.default_rng(seed)
    target = np.random.default_rng(99).normal(0, 1.3, 14)
    rows = []
    for cell in cells:
        for view in cell.views:
            level = 0.5 if np.isnan(cell.severity) else cell.severity**2
            clips = pd.DataFrame({"clip_id": [f"c{i:02d}" for i in range(14)], "target": target})
            clips["source"] = ["a"] * 6 + ["b"] * 3 + ["c"] * 2 + ["d"] * 2 + ["e"]
            clips["prediction"] = target + (0.4 + slope * level) * rng.normal(0.2, 1, 14)
            for modality in ("text", "audio", "vision"):
                clips[f"severity_{modality}"] = np.float32(cell.severity)
            rows.append(clips.assign(slice=cell.slice, cell=cell.name, draw=view.number, variance=1.0, seed=seed))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.integration
@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("metric", sorted(REGRESSION))
def test_the_difference_is_that_of_the_slice_summaries(cells: list[protocol.Cell], name: str, metric: str) -> None:
    a = [predictions(cells, seed, 1.0) for seed in (1, 2, 3)]
    b = [predictions(cells, seed, 1.6) for seed in (4, 5)]

    def area(runs: list[pd.DataFrame]) -> float:
        tables = [summary.summarise(protocol.aggregate(run, cells, {})).set_index(["slice", "metric"]) for run in runs]
        return float(np.mean([table.loc[(name, metric), "area"] for table in tables]))

    def only(runs: list[pd.DataFrame]) -> pd.DataFrame:
        rows = pd.concat(runs)
        return rows[rows["slice"] == name]

    difference, low, high = paired_bootstrap(only(a), only(b), metric, draws=200)
    assert difference == pytest.approx(area(a) - area(b), abs=1e-9)
    assert low < high


def test_the_ratio_is_that_of_the_slice_summaries(cells: list[protocol.Cell]) -> None:
    a, b = predictions(cells, 1, 1.0), predictions(cells, 2, 1.6)
    a, b = a[a["slice"] == "missing"], b[b["slice"] == "missing"]
    assert compare(a, b).ratio * compare(b, a).ratio == pytest.approx(1)
    assert compare(a, a)[4:] == (1.0, 1.0, 1.0)
    against_none = compare(a, b.assign(prediction=b["target"]))
    assert np.isnan(against_none[4:]).all()


def two_sources(first: float, second: float) -> pd.DataFrame:
    """Return 40 clips; the source of a clip determines its error."""
    source = np.repeat(["a", "b"], 20)
    return pd.DataFrame({
        "clip_id": [f"c{i}" for i in range(40)], "source": source, "slice": "clean", "cell": "clean", "draw": 0,
        "target": np.arange(40.0), "prediction": np.arange(40.0) + np.where(source == "a", first, second),
    })  # fmt: skip


def test_sources_are_resampled_instead_of_clips() -> None:
    difference, low, high = paired_bootstrap(two_sources(1, 0), two_sources(0, 0))
    assert (difference, low, high) == (0.5, 0.0, 1.0)  # resampling clips would give about 0.35 to 0.65


def test_errors_common_to_both_models_cancel() -> None:
    difference, low, high = paired_bootstrap(two_sources(1.5, 3.25), two_sources(1.25, 3))
    assert (difference, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    a = two_sources(0, 0).assign(source=[f"s{i % 10}" for i in range(40)], prediction=rng.normal(0, 1, 40))
    assert paired_bootstrap(a, two_sources(0, 0).assign(source=a["source"]), seed=4) == paired_bootstrap(
        a, two_sources(0, 0).assign(source=a["source"]), seed=4
    )


def test_a_constant_prediction_has_correlation_0() -> None:
    constant = two_sources(0, 0).assign(prediction=0.1)
    assert paired_bootstrap(constant, constant.assign(prediction=0.7), "corr") == (0.0, 0.0, 0.0)


def test_weights_are_the_trapezoid_and_sum_to_one(cells: list[protocol.Cell]) -> None:
    rows = predictions(cells, 1, 1.0)
    cell_weights = weights(rows[rows["slice"] == "missing"])
    assert cell_weights.sum() == pytest.approx(1)
    assert list(cell_weights) == pytest.approx([0.05, *[0.1] * 9, 0.05])


def test_different_grids_are_refused(cells: list[protocol.Cell]) -> None:
    a = two_sources(1, 0)
    with pytest.raises(UserError, match=r"\b40\b.*\b39\b"):
        paired_bootstrap(a, a.iloc[:-1])
    for column, value in (("target", a["target"] + 1), ("draw", 1), ("source", a["source"] + "x")):
        with pytest.raises(UserError, match="Slice clean: the first model"):
            paired_bootstrap(a, a.assign(**{column: value}))
    with pytest.raises(UserError, match=r"Slice clean: seed 0\b"):
        paired_bootstrap(a, pd.concat([a, a]))
    with pytest.raises(UserError, match="clean, mixed"):
        paired_bootstrap(a, pd.concat([a, a.assign(slice="mixed")]))
    with pytest.raises(UserError, match=r"'acc9'.*mae"):
        paired_bootstrap(a, a, "acc9")
    uneven = pd.concat([a.assign(seed=1), a.iloc[1:].assign(seed=2)])
    with pytest.raises(UserError, match=r"\bseed 2\b.*\b39\b.*\b40\b"):
        resample(uneven)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    a = two_sources(0, 0).assign(source=[f"s{i % 10}" for i in range(40)])
    a, b = a.assign(prediction=rng.normal(0, 1, 40)), a.assign(prediction=rng.normal(0, 1, 40))
    shuffled = a.sample(frac=1, random_state=1)
    assert compare(shuffled, b) == pytest.approx(compare(a, b))


def test_one_cell_can_be_compared_alone(cells: list[protocol.Cell]) -> None:
    a, b = predictions(cells, 1, 1.0), predictions(cells, 2, 1.6)
    a, b = a[a["cell"] == "missing-0.7"], b[b["cell"] == "missing-0.7"]
    mae = [float((rows["prediction"] - rows["target"]).abs().mean()) for rows in (a, b)]
    assert compare(a, b, draws=100).difference == pytest.approx(mae[0] - mae[1])


def test_a_p_value_agrees_with_its_interval() -> None:
    """Shift the errors of sources: all of them are then on one side of 0, or half of them."""
    rng = np.random.default_rng(2)
    source = [f"s{i % 20:02d}" for i in range(400)]
    zero = pd.DataFrame({
        "clip_id": [f"c{i}" for i in range(400)], "source": source, "slice": "clean", "cell": "clean", "draw": 0,
        "target": 0.0, "prediction": 0.0,
    })  # fmt: skip
    effect = rng.normal(0, 1, 20)
    for shift in (0.0, 0.3, 0.6, 2.0):
        shifted = effect - effect.mean() + shift
        comparison = compare(zero.assign(prediction=5 + np.tile(shifted, 20)), zero.assign(prediction=5.0))
        assert comparison.difference == pytest.approx(shift)
        assert (comparison.p < 0.05) == (comparison.low > 0 or comparison.high < 0)
        assert 0 < comparison.p <= 1
    # 1 / 2001 is 3.29 deviations of a normal; with 20 sources, 3.21 of Student's t.
    assert comparison.p == pytest.approx(0.0046, abs=1e-4)
    assert compare(zero, zero).p == 1


@pytest.mark.parametrize(("sources", "tail"), [(2, 0.0), (13, 0.0117), (32, 0.0191), (10_000, 0.025)])
def test_fewer_sources_widen_the_interval(sources: int, tail: float) -> None:
    values = np.concatenate([[7.0], np.linspace(0, 1, 10_001)])
    assert interval(values, sources) == (7.0, pytest.approx(tail, abs=1e-4), pytest.approx(1 - tail, abs=1e-4))


def test_one_source_or_a_draw_without_a_value_gives_no_claim() -> None:
    rows = two_sources(1, 0)
    one_source = rows.assign(source="a")
    comparison = compare(one_source, one_source.assign(prediction=one_source["target"]))
    assert (comparison.difference, comparison.claimed) == (0.5, False)
    assert np.isnan([comparison.low, comparison.high, comparison.p, comparison.ratio]).all()
    unsigned = rows.assign(target=np.where(rows["source"] == "a", 0.0, 1.0), prediction=1.0)
    # A draw that has only source a has no target other than 0.
    comparison = compare(unsigned.assign(prediction=-1.0), unsigned, "acc2_non0")
    assert (comparison.difference, comparison.claimed) == (-1.0, False)
    assert np.isnan([comparison.low, comparison.high, comparison.p]).all()


def test_non_inferiority_is_judged_by_the_upper_limit() -> None:
    a, b = two_sources(1.0, 1.02), two_sources(1, 1)
    comparison = compare(a, b)
    assert comparison.ratio == pytest.approx(1.01)
    assert comparison.ratio_high == pytest.approx(1.02)
    assert not non_inferior(comparison, 0.01)
    assert non_inferior(comparison, 0.03)
    assert not non_inferior(compare(a, b, "mean_error")._replace(ratio_high=float("nan")), 0.5)


def test_holm_on_an_example() -> None:
    """.01 * 4, .02 * 3, .03 * 2 (equal to .06) and .9 * 1; the order of the family is kept."""
    adjusted = holm({"a": 0.03, "b": 0.01, "c": 0.9, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.9, "d": 0.06})
    assert holm({"a": 0.5, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"only": 0.04}) == {"only": 0.04}
    assert holm({}) == {}


@pytest.mark.parametrize("metric", sorted(CLASSIFICATION))
def test_classes_are_compared_by_their_own_metrics(metric: str) -> None:
    rng = np.random.default_rng(0)
    base = two_sources(0, 0).assign(source=[f"s{i % 8}" for i in range(40)], target=rng.integers(0, 3, 40))
    names = ["p_low", "p_middle", "p_high"]
    a, b = (base.assign(**dict(zip(names, rng.dirichlet(np.ones(3), 40).T, strict=True))) for _ in range(2))
    values = [classification(rows[names].to_numpy(), rows["target"].to_numpy())[metric] for rows in (a, b)]
    comparison = compare(a, b, metric, draws=300)
    assert comparison.difference == pytest.approx(values[0] - values[1])
    assert comparison.low < comparison.difference < comparison.high
    with pytest.raises(UserError, match=r"'mae'.*accuracy, macro_f1"):
        compare(a, b, "mae")
