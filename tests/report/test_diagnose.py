"""The diagnostic of r on the page, in summary.json and from `qamoe diagnose`."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from qamoe.cli import app
from qamoe.errors import UserError
from qamoe.evaluation.reliability import Effect
from qamoe.report import build, plots, quality_diagnostic
from qamoe.report.quality_diagnostic import Diagnosis, sentence
from qamoe.report.results import read

NONE, UP, DOWN = Effect(0.5, 0.0, -0.1, 0.1), Effect(0.6, 0.1, 0.05, 0.15), Effect(0.4, -0.1, -0.15, -0.05)


def diagnosis(**effects: tuple[Effect, Effect]) -> Diagnosis:
    """Return a diagnosis with (MAE, accuracy) of each intervention; without effect where not given."""
    pairs = dict.fromkeys(("native", "permuted", "corruption", "correctness"), (NONE, NONE)) | effects
    return Diagnosis("m", {name: {"mae": pair[0], "acc2_non0": pair[1]} for name, pair in pairs.items()}, 9)


@pytest.mark.parametrize(
    ("effects", "raising", "worse"),
    [
        ({}, [], []),
        ({"corruption": (DOWN, UP), "correctness": (NONE, UP)}, ["corruption", "correctness"], []),
        ({"correctness": (DOWN, UP), "permuted": (UP, NONE)}, ["correctness"], ["MAE"]),
        ({"corruption": (DOWN, NONE), "permuted": (NONE, DOWN)}, [], ["Acc-2 Non0"]),
        ({"corruption": (NONE, DOWN), "permuted": (UP, DOWN)}, [], ["MAE", "Acc-2 Non0"]),
        ({"permuted": (DOWN, UP)}, [], []),
    ],
)
def test_the_sentence_follows_the_intervals(
    effects: dict[str, tuple[Effect, Effect]], raising: list[str], worse: list[str]
) -> None:
    text = sentence(diagnosis(**effects))
    clauses = text.removeprefix("m: ").removesuffix(".").split("; ")
    raised = next((clause for clause in clauses if " raises " in clause), "")
    assert [name for name in ("corruption", "correctness") if name in raised] == raising
    assert [name for name in ("corruption", "correctness") if name in text] == ["corruption", "correctness"]
    assert ("not shown" in clauses[-1]) == (not worse)
    if worse:
        assert [name for name in ("MAE", "Acc-2 Non0") if name in clauses[-1]] == worse


def test_without_an_interval_nothing_is_claimed() -> None:
    nan = float("nan")
    alone = Effect(0.6, 0.1, nan, nan)
    text = sentence(diagnosis(permuted=(alone, alone), corruption=(alone, alone), correctness=(alone, alone)))
    assert text.count("not shown") == 2
    screen = io.StringIO()
    quality_diagnostic.show(diagnosis(permuted=(alone, alone)), Console(file=screen, width=80))
    assert "nan" not in screen.getvalue()


@pytest.mark.integration
def test_page_and_summary_have_every_model_with_r(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "svg", lambda figure: b"<svg/>")
    written = build.write(
        many / "evaluate", many / "train", tmp_path / "report", models=["mean", "qamoe", "ablation-gate"]
    )
    summary = json.loads(written.summary.read_text())
    rows = pd.read_parquet(many / "evaluate/qamoe/1/predictions.parquet").query("slice == 'mixed'")
    mae = (rows["prediction"] - rows["target"]).abs().mean()
    for name, growth in (("permuted", 1.5), ("corruption", 0.99), ("correctness", 0.5)):
        prefix = f"qamoe.diagnostic.{name}.mae"
        assert summary[prefix] == pytest.approx(growth * mae)
        assert summary[f"{prefix}.difference"] == pytest.approx((growth - 1) * mae)
        assert (
            summary[f"{prefix}.difference.low"] < summary[f"{prefix}.difference"] < summary[f"{prefix}.difference.high"]
        )
        for end in ("", ".low", ".high"):
            assert summary[f"ablation-gate.diagnostic.{name}.acc2_non0.difference{end}"] == 0
    hit = ((rows["prediction"] > 0) == (rows["target"] > 0))[rows["target"] != 0].mean()
    assert summary["qamoe.diagnostic.native.acc2_non0"] == pytest.approx(hit)
    assert not [key for key in summary if key.startswith("mean.diagnostic") or "diagnostic.native.mae." in key]
    page = re.sub(r"\s+", " ", written.page.read_text())
    assert "2606.26473" in page
    for name in ("native", "permuted", "corruption", "correctness"):
        for model in ("qamoe", "ablation-gate"):
            assert re.search(rf'<th scope="row">{model}</th><td class="words">{name}</td>', page)
    assert [page.count(f"<p>{model}: ") for model in ("qamoe", "ablation-gate", "mean")] == [1, 1, 0]


@pytest.mark.integration
def test_without_the_file_of_a_seed_the_model_is_not_on_the_page(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "evaluate", tmp_path / "evaluate")
    evaluated = build.read(tmp_path / "evaluate", results / "train", ["qamoe"])
    table = quality_diagnostic.section(evaluated).context
    assert table is not None
    assert len(table.rows) == 4
    (tmp_path / "evaluate/qamoe/2/diagnostic.parquet").unlink()
    assert quality_diagnostic.section(evaluated) == build.Section(None, {})


@pytest.mark.integration
def test_diagnose_prints_the_mean_over_seeds_or_one_seed(results: Path) -> None:
    whole = quality_diagnostic.of_model(results / "evaluate", "qamoe")
    seeds = [quality_diagnostic.of_model(results / "evaluate", "qamoe", seed) for seed in (1, 2, 3)]
    for name, by_metric in whole.effects.items():
        for metric, effect in by_metric.items():
            assert effect.value == pytest.approx(sum(seed.effects[name][metric].value for seed in seeds) / 3)
    screen = io.StringIO()
    quality_diagnostic.show(whole, Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "24 sources" in " ".join(text.split())
    run = CliRunner().invoke(app.app, ["diagnose", "qamoe", "--seed", "2", "--out", str(results)])
    assert run.exit_code == 0, run.output
    assert f"{seeds[1].effects['permuted']['mae'].value:.3f}" in run.stdout


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "seen", "allowed"),
    [
        (["x"], "'x'", "mean, concat, qamoe"),
        (["concat"], "'concat'", "no r"),
        (["qamoe", "--seed", "9"], "seed 9 of qamoe", "1, 2, 3"),
    ],
)
def test_diagnose_refuses_in_one_sentence(results: Path, arguments: list[str], seen: str, allowed: str) -> None:
    run = CliRunner().invoke(app.app, ["diagnose", *arguments, "--out", str(results)])
    assert (run.exit_code, run.stdout, run.stderr.count("\n")) == (1, "", 1)
    assert seen in run.stderr
    assert allowed in run.stderr
    assert str(results / "evaluate") in run.stderr


@pytest.mark.integration
def test_diagnose_names_the_folder_without_mixed_or_without_the_file(tmp_path: Path, make_run: Any) -> None:
    make_run(tmp_path, "qamoe", 1, slices=("clean", "missing"))
    folder = tmp_path / "evaluate/qamoe/1"
    refused = CliRunner().invoke(app.app, ["diagnose", "qamoe", "--out", str(tmp_path)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert all(part in refused.stderr for part in (str(folder), "clean, missing", "mixed"))
    shutil.rmtree(tmp_path / "evaluate")
    shutil.rmtree(tmp_path / "train")
    make_run(tmp_path, "qamoe", 1)
    (folder / "diagnostic.parquet").unlink()
    refused = CliRunner().invoke(app.app, ["diagnose", "qamoe", "--out", str(tmp_path)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert all(part in refused.stderr for part in (str(folder), "diagnostic.parquet", "evaluate.quality_permutations"))


@pytest.mark.parametrize("name", ["cells.parquet", "predictions.parquet", "diagnostic.parquet"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path, make_run: Any) -> None:
    make_run(tmp_path, "qamoe", 1)
    file = tmp_path / "evaluate/qamoe/1" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=re.escape(str(file))):
        quality_diagnostic.of_model(tmp_path / "evaluate", "qamoe")
    if name == "cells.parquet":
        with pytest.raises(UserError, match=re.escape(str(file))):
            read(tmp_path / "evaluate", tmp_path / "train")
