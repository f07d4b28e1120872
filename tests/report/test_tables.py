import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from qamoe.evaluation.summary import summarise
from qamoe.report import tables
from qamoe.report.results import Results, read


@pytest.fixture(scope="module")
def evaluated(results: Path) -> Results:
    return read(results / "evaluate", results / "train")


@pytest.mark.integration
def test_headline_is_the_mean_and_sd_of_the_seeds_summaries(evaluated: Results, results: Path) -> None:
    headline: Any = tables.headline(evaluated.cells).set_index("model")
    assert list(headline.index) == ["mean", "concat", "qamoe"]
    areas, coverage = [], []
    for seed in (1, 2, 3):
        summary: Any = summarise(pd.read_parquet(results / "evaluate" / "qamoe" / str(seed) / "cells.parquet"))
        summary = summary.set_index(["slice", "metric"])
        areas.append(summary.loc[("missing", "mae"), "area"])
        coverage.append(summary.loc[("mixed", "coverage_90"), "area"])
    assert headline.loc["qamoe", "missing.mae.area"] == pytest.approx(np.mean(areas))
    assert headline.loc["qamoe", "missing.mae.area.sd"] == pytest.approx(np.std(areas, ddof=1))
    assert headline.loc["qamoe", "mixed.coverage_90.area"] == pytest.approx(np.mean(coverage))
    assert headline.loc["mean", "seeds"] == 1
    assert np.isnan(headline.loc["mean", "missing.mae.area.sd"])


def test_headline_in_a_terminal_fits_80_characters_and_names_every_model(evaluated: Results) -> None:
    screen = io.StringIO()
    tables.print_headline(tables.headline(evaluated.cells), Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert all(word in text for word in ("mean", "concat", "qamoe", "1 seed", "3 seeds", "MAE, mixed"))
    assert "…" not in text


def test_headline_in_a_pipe_is_one_table_of_all_models(evaluated: Results, capsys: pytest.CaptureFixture[str]) -> None:
    headline = tables.headline(evaluated.cells)
    many = pd.concat(
        [headline.assign(model=[f"{m}-with-a-long-name-{i}" for m in headline["model"]]) for i in range(4)]
    )
    tables.print_headline(many)
    lines = capsys.readouterr().out.splitlines()
    assert sum("MAE, mixed" in line for line in lines) == 1
    assert any(all(model in line for model in many["model"]) for line in lines)


def test_headline_has_only_columns_that_were_evaluated() -> None:
    cells = pd.DataFrame({
        "slice": ["clean", "missing", "missing"], "cell": ["clean", "missing-0.0", "missing-1.0"],
        "severity": [0.0, 0.0, 1.0], "draw": 0, "metric": "accuracy", "value": [0.8, 0.8, 0.4],
        "model": "qamoe", "seed": 1,
    })  # fmt: skip
    headline = tables.headline(cells)
    assert headline.loc[0, "missing.accuracy.area"] == pytest.approx(0.6)
    assert "clean.mae.clean" not in headline


def test_many_models_are_split_into_tables_of_80_characters(evaluated: Results) -> None:
    headline = tables.headline(evaluated.cells)
    many = pd.concat([headline.assign(model=[f"{m}-{i}" for m in headline["model"]]) for i in range(3)])
    screen = io.StringIO()
    tables.print_headline(many, Console(file=screen, width=80))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("MAE, mixed" in line for line in lines) == 3
    assert all(any(model in line for line in lines) for model in many["model"])
    assert "…" not in screen.getvalue()


def test_models_are_ordered_from_the_simplest_control_to_qamoe_then_the_others() -> None:
    names = ["specialist-clean", "oracle", "qamoe", "ablation-gate", "moe", "own", "concat", "mean", "text"]
    ordered = ["mean", "text", "concat", "moe", "own", "qamoe", "oracle", "ablation-gate", "specialist-clean"]
    assert sorted(names, key=tables.model_order) == ordered
    assert [m for m in ordered if tables.is_control(m)] == ["mean", "text", "concat", "moe", "own"]


def test_a_variant_comes_right_after_its_base_and_is_a_control_if_its_base_is() -> None:
    ordered = ["concat", "concat--clean", "cross_attention", "moe--b", "paper", "paper--a", "paper--b", "paper-public"]
    ordered += ["paper-public--a", "qamoe", "qamoe--a", "oracle", "oracle--a", "ablation-gate"]
    assert sorted(ordered, key=tables.model_order) == ordered
    assert [m for m in ordered if tables.is_control(m)] == ordered[:9]


def test_curves_within_a_slice_are_keyed_by_kind_and_modality() -> None:
    rows = [
        {"slice": "alone", "kind": kind, "modalities": modality, "severity": s, "cell": f"alone-{modality}-{kind}-{s}"}
        for kind in ("missing", "noise")
        for modality in ("text", "audio")
        for s in (0.0, 0.5, 1.0)
    ]
    rows += [{"slice": "subsets", "kind": "missing", "modalities": m, "severity": 1.0, "cell": m} for m in "tav"]
    rows += [{"slice": "noise", "kind": "noise", "modalities": "text+audio", "severity": s, "cell": s} for s in (0, 1)]
    rows += [{"slice": "mixed", "kind": "mixed", "modalities": "text+audio", "severity": np.nan, "cell": "mixed"}]
    keys = tables.curves_within(pd.DataFrame(rows))
    assert keys == [("alone", k, m) for k in ("missing", "noise") for m in ("text", "audio")]


def test_only_slices_of_one_curve_are_graded(evaluated: Results) -> None:
    assert tables.graded_slices(evaluated.cells) == ["missing", "noise"]


def test_curves_are_means_over_draws_then_seeds(evaluated: Results) -> None:
    curves = tables.curves(evaluated.cells)
    assert list(curves.columns[:4]) == ["model", "slice", "severity", "mae"]
    row = curves[(curves["model"] == "concat") & (curves["slice"] == "noise") & (curves["severity"] == 0.3)]
    cells = evaluated.cells.query("model == 'concat' and cell == 'noise-0.3' and metric == 'mae'")
    assert row["mae"].item() == pytest.approx(cells.groupby("seed")["value"].mean().mean())
    assert len(curves) == 3 * 2 * 11


def test_trust_falls_with_severity_and_leaves_out_clips_without_frames(evaluated: Results) -> None:
    rows = evaluated.predictions("qamoe")
    trust = tables.by_severity(rows, "missing", "audio", "trust")
    assert list(trust["severity"]) == pytest.approx(np.arange(11) / 10)
    assert trust["median"].is_monotonic_decreasing
    assert (trust["low"] <= trust["median"]).all()
    assert (trust["median"] <= trust["high"]).all()
    silent = rows.copy()
    silent.loc[silent["clip_id"] == "clip-000", ["frames_audio", "trust_audio"]] = 0
    assert set(tables.by_severity(silent, "missing", "audio", "trust")["clips"]) == {61}


def test_usage_sums_to_one_and_its_entropy_is_in_bits(evaluated: Results) -> None:
    rows = evaluated.predictions("qamoe", "noise")
    usage = tables.usage_by_severity(rows, "noise")
    experts = [f"expert_{i}" for i in range(1, 9)]
    assert usage[experts].sum(axis=1).to_numpy() == pytest.approx(1)
    assert usage["entropy"].max() == pytest.approx(3, abs=0.01)
    certain = rows.assign(routing=[np.eye(8)[2]] * len(rows))
    assert (tables.usage_by_severity(certain, "noise")["entropy"] == 0).all()
    assert tables.usage_by_severity(evaluated.predictions("mean"), "noise").empty


def test_bins_of_mean_severity_hold_the_rows_in_their_range(evaluated: Results) -> None:
    rows = evaluated.predictions("qamoe", "mixed").query("seed == 1")
    bins = tables.error_by_mean_severity(rows)
    level = rows[["severity_text", "severity_audio", "severity_vision"]].astype(float).mean(axis=1)
    inside = rows[(level >= 0.4) & (level < 0.5)]
    row = bins[bins["bin"] == 4].iloc[0]
    assert row["rows"] == len(inside)
    assert row["mae"] == pytest.approx((inside["prediction"] - inside["target"]).abs().mean())
    assert (bins["rows"] >= tables.FEWEST).all()


@pytest.mark.integration
def test_mean_severity_is_over_the_modalities_of_the_corpus(make_run: Callable[..., None], tmp_path: Path) -> None:
    make_run(tmp_path, "qamoe", 1, present=("text", "audio"))
    rows = read(tmp_path / "evaluate", tmp_path / "train").predictions("qamoe")
    bins = tables.error_by_mean_severity(rows)
    assert bins["severity"].between(0, 1).all()
    assert tables.modalities_of(rows, "trust") == ["text", "audio"]
