import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from qamoe.evaluation.summary import summarise
from qamoe.report import tables
from qamoe.report.results import Results, read


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


def test_many_models_stand_below_each_other_in_80_characters(found: Results) -> None:
    made = tables.headline(found.cells)
    many = pd.concat([made.assign(model=[f"{m}-{i}" for m in made["model"]]) for i in range(3)])
    screen = io.StringIO()
    tables.print_headline(many, Console(file=screen, width=80))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("MAE, mixed" in line for line in lines) == 3
    assert all(any(model in line for line in lines) for model in many["model"])
    assert "…" not in screen.getvalue()


def test_models_stand_from_the_simplest_to_qamoe_and_what_is_no_control_after_it() -> None:
    names = ["specialist-clean", "oracle", "qamoe", "ablation-gate", "moe", "own", "concat", "mean", "text"]
    ordered = ["mean", "text", "concat", "moe", "own", "qamoe", "oracle", "ablation-gate", "specialist-clean"]
    assert sorted(names, key=tables.model_order) == ordered
    assert [m for m in ordered if tables.is_control(m)] == ["mean", "text", "concat", "moe", "own"]


def test_curves_inside_a_slice_are_told_by_kind_and_modality() -> None:
    rows = [
        {"slice": "alone", "kind": kind, "modalities": modality, "severity": s, "cell": f"alone-{modality}-{kind}-{s}"}
        for kind in ("missing", "noise")
        for modality in ("text", "audio")
        for s in (0.0, 0.5, 1.0)
    ]
    rows += [{"slice": "subsets", "kind": "missing", "modalities": m, "severity": 1.0, "cell": m} for m in "tav"]
    rows += [{"slice": "noise", "kind": "noise", "modalities": "text+audio", "severity": s, "cell": s} for s in (0, 1)]
    rows += [{"slice": "mixed", "kind": "mixed", "modalities": "text+audio", "severity": np.nan, "cell": "mixed"}]
    made = tables.curves_within(pd.DataFrame(rows))
    assert made == [("alone", k, m) for k in ("missing", "noise") for m in ("text", "audio")]


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
    rows = found.predictions("qamoe")
    made = tables.by_severity(rows, "missing", "audio", "trust")
    assert list(made["severity"]) == pytest.approx(np.arange(11) / 10)
    assert made["median"].is_monotonic_decreasing
    assert (made["low"] <= made["median"]).all()
    assert (made["median"] <= made["high"]).all()
    silent = rows.copy()
    silent.loc[silent["clip_id"] == "clip-000", ["frames_audio", "trust_audio"]] = 0
    assert set(tables.by_severity(silent, "missing", "audio", "trust")["clips"]) == {61}


def test_usage_sums_to_one_and_its_entropy_is_in_bits(found: Results) -> None:
    rows = found.predictions("qamoe", "noise")
    made = tables.usage_by_severity(rows, "noise")
    experts = [f"expert_{i}" for i in range(1, 9)]
    assert made[experts].sum(axis=1).to_numpy() == pytest.approx(1)
    assert made["entropy"].max() == pytest.approx(3, abs=0.01)
    certain = rows.assign(routing=[np.eye(8)[2]] * len(rows))
    assert (tables.usage_by_severity(certain, "noise")["entropy"] == 0).all()
    assert tables.usage_by_severity(found.predictions("mean"), "noise").empty


def test_bins_of_mean_severity_hold_the_rows_that_they_say(found: Results) -> None:
    rows = found.predictions("qamoe", "mixed").query("seed == 1")
    made = tables.error_by_mean_severity(rows)
    level = rows[["severity_text", "severity_audio", "severity_vision"]].astype(float).mean(axis=1)
    inside = rows[(level >= 0.4) & (level < 0.5)]
    row = made[made["bin"] == 4].iloc[0]
    assert row["rows"] == len(inside)
    assert row["mae"] == pytest.approx((inside["prediction"] - inside["target"]).abs().mean())
    assert (made["rows"] >= tables.FEWEST).all()


def test_mean_severity_is_over_the_modalities_that_there_are(make_run: Callable[..., None], tmp_path: Path) -> None:
    make_run(tmp_path, "qamoe", 1, present=("text", "audio"))
    rows = read(tmp_path / "evaluate", tmp_path / "train").predictions("qamoe")
    made = tables.error_by_mean_severity(rows)
    assert made["severity"].between(0, 1).all()
    assert tables.modalities_of(rows, "trust") == ["text", "audio"]
