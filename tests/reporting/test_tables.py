import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from qamoe.evaluation.summary import summarise
from qamoe.reporting import tables
from qamoe.reporting.results import Results, read


@pytest.fixture(scope="module")
def found(results: Path) -> Results:
    return read(results / "evaluate", results / "train")


def test_headline_is_the_mean_and_sd_of_the_seeds_summaries(found: Results, results: Path) -> None:
    made = tables.headline(found.cells).set_index("model")
    assert list(made.index) == ["mean", "concat", "qamoe"]
    areas, coverage = [], []
    for seed in (1, 2, 3):
        own = summarise(pd.read_parquet(results / "evaluate" / "qamoe" / str(seed) / "cells.parquet"))
        own = own.set_index(["slice", "metric"])
        areas.append(own.loc[("missing", "mae"), "area"])
        coverage.append(own.loc[("mixed", "coverage_90"), "area"])
    assert made.loc["qamoe", "missing.mae.area"] == pytest.approx(np.mean(areas))
    assert made.loc["qamoe", "missing.mae.area.sd"] == pytest.approx(np.std(areas, ddof=1))
    assert made.loc["qamoe", "mixed.coverage_90.area"] == pytest.approx(np.mean(coverage))
    assert made.loc["mean", "seeds"] == 1
    assert np.isnan(made.loc["mean", "missing.mae.area.sd"])


def test_headline_in_a_terminal_fits_80_characters_and_names_every_model(found: Results) -> None:
    screen = io.StringIO()
    tables.print_headline(tables.headline(found.cells), Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert all(word in text for word in ("mean", "concat", "qamoe", "1 seed", "3 seeds", "MAE, mixed"))
    assert "…" not in text


def test_headline_of_accuracies_takes_what_exists() -> None:
    cells = pd.DataFrame({
        "slice": ["clean", "missing", "missing"], "cell": ["clean", "missing-0.0", "missing-1.0"],
        "severity": [0.0, 0.0, 1.0], "draw": 0, "metric": "accuracy", "value": [0.8, 0.8, 0.4],
        "model": "qamoe", "seed": 1,
    })  # fmt: skip
    made = tables.headline(cells)
    assert made.loc[0, "missing.accuracy.area"] == pytest.approx(0.6)
    assert "clean.mae.clean" not in made


def test_only_lines_of_cells_are_graded(found: Results) -> None:
    assert tables.graded_slices(found.cells) == ["missing", "noise"]


def test_curves_are_means_over_draws_then_seeds(found: Results) -> None:
    made = tables.curves(found.cells)
    assert list(made.columns[:4]) == ["model", "slice", "severity", "mae"]
    row = made[(made["model"] == "concat") & (made["slice"] == "noise") & (made["severity"] == 0.3)]
    own = found.cells.query("model == 'concat' and cell == 'noise-0.3' and metric == 'mae'")
    assert row["mae"].item() == pytest.approx(own.groupby("seed")["value"].mean().mean())
    assert len(made) == 3 * 2 * 11


def test_trust_falls_with_severity_and_leaves_out_clips_without_frames(found: Results) -> None:
    rows = found.predictions["qamoe"]
    made = tables.by_severity(rows, "missing", "audio", "trust")
    assert list(made["severity"]) == pytest.approx(np.arange(11) / 10)
    assert made["median"].is_monotonic_decreasing
    assert (made["low"] <= made["median"]).all()
    assert (made["median"] <= made["high"]).all()
    silent = rows.copy()
    silent.loc[silent["clip_id"] == "clip-000", ["frames_audio", "trust_audio"]] = 0
    assert set(tables.by_severity(silent, "missing", "audio", "trust")["clips"]) == {61}


def test_usage_sums_to_one_and_its_entropy_is_in_bits(found: Results) -> None:
    made = tables.usage_by_severity(found.predictions["qamoe"], "noise")
    experts = [f"expert_{i}" for i in range(1, 9)]
    assert made[experts].sum(axis=1).to_numpy() == pytest.approx(1)
    assert made["entropy"].max() == pytest.approx(3, abs=0.01)
    certain = found.predictions["qamoe"].assign(routing=[np.eye(8)[2]] * len(found.predictions["qamoe"]))
    assert (tables.usage_by_severity(certain, "noise")["entropy"] == 0).all()
    assert tables.usage_by_severity(found.predictions["mean"], "noise").empty


def test_bins_of_mean_severity_hold_the_rows_that_they_say(found: Results) -> None:
    rows = found.predictions["qamoe"].query("slice == 'mixed' and seed == 1")
    made = tables.error_by_mean_severity(rows)
    level = rows[["severity_text", "severity_audio", "severity_vision"]].astype(float).mean(axis=1)
    inside = rows[(level >= 0.4) & (level < 0.5)]
    row = made[made["bin"] == 4].iloc[0]
    assert row["rows"] == len(inside)
    assert row["mae"] == pytest.approx((inside["prediction"] - inside["target"]).abs().mean())
    assert (made["rows"] >= tables.FEWEST).all()


def test_mean_severity_is_over_the_modalities_that_there_are(make_run: Callable[..., None], tmp_path: Path) -> None:
    make_run(tmp_path, "qamoe", 1, present=("text", "audio"))
    rows = read(tmp_path / "evaluate", tmp_path / "train").predictions["qamoe"]
    made = tables.error_by_mean_severity(rows)
    assert made["severity"].between(0, 1).all()
    assert tables.modalities_of(rows, "trust") == ["text", "audio"]
