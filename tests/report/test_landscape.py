"""The landscape: a grid over lambda and eta, and the volume under it."""

import math
from typing import Any

import pandas as pd
import pytest

from qamoe.evaluation.summary import summarise, weights
from qamoe.report import landscape
from qamoe.report.results import read

LEVELS = (0.0, 0.3, 0.7)
VALUES = {  # by model and seed, a row for each lambda and a column for each eta
    ("qamoe", 1): [[1.0, 1.2, 1.4], [1.1, 1.3, 1.5], [1.3, 1.6, 2.0]],
    ("qamoe", 2): [[1.2, 1.4, 1.6], [1.3, 1.5, 1.7], [1.5, 1.8, 2.2]],
}
TRAPEZOID = [0.15 / 0.7, 0.35 / 0.7, 0.2 / 0.7]


def cells() -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"model": model, "seed": seed, "slice": "landscape", "cell": f"landscape-{noise:.2f}-{missing:.2f}"}
        | {"kind": "paper_noise+missing", "severity": None, "severity_noise": noise, "severity_missing": missing}
        | {"draw": draw, "metric": "mae", "value": values[i][j] + (0.1 if draw else -0.1)}
        for (model, seed), values in VALUES.items()
        for i, noise in enumerate(LEVELS)
        for j, missing in enumerate(LEVELS)
        for draw in range(2 if noise or missing else 1)
    ]
    return pd.DataFrame(rows).astype({"severity": float})


def test_the_volume_is_the_trapezoid_over_both_levels() -> None:
    names = pd.Series(float("nan"), [f"landscape-{n:.2f}-{m:.2f}" for n in LEVELS for m in LEVELS])
    weight = weights("landscape", names)
    assert weight.to_list() == pytest.approx([a * b for a in TRAPEZOID for b in TRAPEZOID])
    assert weight["landscape-0.30-0.70"] == pytest.approx(TRAPEZOID[1] * TRAPEZOID[2])
    assert weights("landscape", names.iloc[:1]).to_list() == [1.0]


def test_the_summary_has_the_volume_and_the_worst_cell() -> None:
    summary = summarise(cells().query("seed == 1").drop(columns=["model", "seed"]))
    area, area09, worst = summary[["area", "area09", "worst"]].to_numpy()[0]
    expected = (
        sum(TRAPEZOID[i] * TRAPEZOID[j] * VALUES["qamoe", 1][i][j] for i in range(3) for j in range(3))
        - 0.1 * TRAPEZOID[0] * TRAPEZOID[0]
    )  # the undegraded cell has one draw
    assert area == pytest.approx(expected)
    assert worst == pytest.approx(2.0)
    assert math.isnan(area09)


def test_the_content_has_levels_grids_and_volumes_over_seeds() -> None:
    content = landscape.content(cells())
    assert content is not None
    assert (content["noise"], content["missing"]) == (list(LEVELS), list(LEVELS))
    mae = content["models"]["qamoe"]["mae"]
    assert mae["grid"][1] == pytest.approx([1.2, 1.4, 1.6])
    assert mae["grid"][0][0] == pytest.approx(1.0)
    by_seed = [
        summarise(cells().query(f"seed == {seed}").drop(columns=["model", "seed"]))["area"][0] for seed in (1, 2)
    ]
    assert mae["volume"] == pytest.approx(sum(by_seed) / 2)
    assert landscape.content(cells().assign(slice="joint")) is None


@pytest.mark.integration
def test_the_section_has_a_spread_only_over_several_seeds(
    tmp_path_factory: pytest.TempPathFactory, make_run: Any
) -> None:
    root = tmp_path_factory.mktemp("landscape")
    for model, seed in (("qamoe", 1), ("qamoe", 2), ("concat", 1)):
        make_run(root, model, seed, slices=("clean", "landscape"))
    context = landscape.section(read(root / "evaluate", root / "train")).context
    assert context.columns == ["Model", "MAE, volume", "Acc-7, volume"]
    by_model = {row[0]: row[1:] for row in context.rows}
    assert all("±" in value for value in by_model["qamoe"])
    assert not any("±" in value for value in by_model["concat"])
    assert len(context.images) == 1
