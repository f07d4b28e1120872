"""The questions of the paper: measures of a checkpoint, and verdicts by intervals over test sources."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.errors import UserError
from qamoe.evaluation import bootstrap
from qamoe.report import questions
from qamoe.report.build import build
from qamoe.report.results import read

SOURCES = [f"source-{number}" for number in range(12)]
SCATTER = np.linspace(-0.1, 0.1, len(SOURCES))


def line(model: str, seed: int, error: float, scatter: Any = 0.0, **further: Any) -> dict[str, Any]:
    values = error + np.broadcast_to(scatter, len(SOURCES))
    by_source = {source: [10, float(value)] for source, value in zip(SOURCES, values, strict=True)}
    return {"model": model, "seed": seed, "errors": {"landscape": by_source}} | further


def claims(*lines: dict[str, Any]) -> dict[str, questions.Claim]:
    return {claim.key: claim for claim in questions.questions(lines)}


@pytest.mark.parametrize(("error", "words"), [(1.2, "holds"), (0.8, "does not hold"), (1.001, "cannot be told")])
def test_a_claim_is_decided_by_the_interval_of_the_difference(error: float, words: str) -> None:
    found = claims(line("paper", 1, 1.0), line("paper--no-gate", 1, error, SCATTER))
    assert list(found) == ["paper.paper--no-gate.landscape"]
    verdict = found["paper.paper--no-gate.landscape"].verdict
    assert verdict.words == words
    assert verdict.value == pytest.approx(1.0 - error)
    assert verdict.low < verdict.value < verdict.high


def test_one_source_decides_nothing() -> None:
    lines = [line("paper", 1, 1.0), line("concat", 1, 2.0)]
    for one in lines:
        one["errors"]["landscape"] = {"source-0": one["errors"]["landscape"]["source-0"]}
    verdict = claims(*lines)["paper.concat.landscape"].verdict
    assert verdict.value == pytest.approx(-1.0)
    assert verdict.words == "cannot be told"
    assert np.isnan([verdict.low, verdict.high]).all()


def test_seeds_are_averaged_and_clips_weigh_the_sources() -> None:
    ours = [line("paper", 1, 1.0), line("paper", 2, 2.0)]
    theirs = line("concat", 1, 0.0)
    for one in ours:
        one["errors"]["landscape"]["source-0"] = [990, one["errors"]["landscape"]["source-0"][1] + 1.0]
    verdict = claims(*ours, theirs)["paper.concat.landscape"].verdict
    assert verdict.value == pytest.approx(1.5 + 990 / 1100)


def test_reliability_and_routing_are_decided_over_seeds() -> None:
    clean, other = [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]
    routing = {"clean": clean, "half": [0.49, 0.51, 0.0], "noisy": other, "lost": clean}
    lines = [
        line("paper", seed, 1.0, r={"text": -0.5 + seed / 100, "audio": 0.1 * (-1) ** seed}, routing=routing)
        for seed in (1, 2, 3)
    ]
    found = claims(*lines)
    assert found["r.text"].verdict.words == "holds"
    assert found["r.text"].verdict.value == pytest.approx(-0.48)
    assert found["r.audio"].verdict.words == "cannot be told"
    assert found["routing.noisy"].verdict.words == "holds"
    assert found["routing.noisy"].verdict.value == pytest.approx(0.01 - 0.5)
    assert found["routing.lost"].verdict.words == "does not hold"
    (alone,) = (claim for claim in questions.questions(lines[:1]) if claim.key == "r.text")
    assert alone.verdict.words == "cannot be told", "one seed has no interval"
    assert questions.rows_of([alone])[0][2] == "−0.490 [not known, not known]"


def test_models_that_no_question_compares_decide_nothing() -> None:
    assert claims(line("text", 1, 1.0), line("concat", 1, 1.0)) == {}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, make_run: Any) -> Any:
    root = tmp_path_factory.mktemp("questions")
    for model, seed in (("qamoe", 1), ("qamoe", 2), ("concat", 1)):
        make_run(root, model, seed, slices=("clean", "mixed", "landscape"))
    return read(root / "evaluate", root / "train")


def test_measures_are_those_of_the_summary(evaluated: Any) -> None:
    from qamoe.evaluation.summary import summarise

    measured = questions.measure(evaluated, "qamoe", 2)
    assert set(measured["errors"]) == {"clean", "mixed", "landscape"}
    cells = evaluated.cells.query("model == 'qamoe' and seed == 2").drop(columns=["model", "seed"])
    areas = summarise(cells).query("metric == 'mae'").set_index("slice")["area"]
    for name, by_source in measured["errors"].items():
        counts, errors = np.array(list(by_source.values())).T
        assert counts.sum() == 62
        assert (counts * errors).sum() / 62 == pytest.approx(areas[name])
    assert set(measured["r"]) == {"text", "audio", "vision"}
    assert all(value < -0.5 for value in measured["r"].values()), "the planted r falls with severity"
    assert {name: len(weights) for name, weights in measured["routing"].items()} == dict.fromkeys(
        ("clean", "noisy", "lost", "half"), 8
    )
    silent = questions.measure(evaluated, "concat", 1)
    assert silent["r"] == {}
    assert silent["routing"] == {}


def test_a_landscape_without_its_undegraded_cell_has_no_routing(tmp_path: Path, make_run: Any) -> None:
    make_run(tmp_path, "qamoe", 1, slices=("landscape",))
    file = tmp_path / "evaluate/qamoe/1/predictions.parquet"
    rows = pd.read_parquet(file)
    rows[~rows["cell"].str.contains("0.00", regex=False)].to_parquet(file)
    measured = questions.measure(read(tmp_path / "evaluate", tmp_path / "train"), "qamoe", 1)
    assert measured["routing"] == {}
    assert set(measured["r"]) == {"text", "audio", "vision"}


def test_an_interval_is_that_of_the_comparison_of_two_models(evaluated: Any) -> None:
    lines = [questions.measure(evaluated, *run) for run in (("qamoe", 1), ("qamoe", 2), ("concat", 1))]
    by_model = {"qamoe": lines[:2], "concat": lines[2:]}
    for name in ("clean", "landscape"):
        ours, theirs = (evaluated.compared(model, name) for model in by_model)
        expected = bootstrap.compare(ours, theirs)
        assert questions.compare(by_model, name, "qamoe", "concat") == pytest.approx(expected[:3], abs=1e-12)


def test_the_section_has_the_numbers_of_the_claims(evaluated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert questions.section(evaluated).numbers == {}, "without the paper's model there are no questions"
    monkeypatch.setattr(questions, "SUBJECT", "qamoe")
    monkeypatch.setattr(questions, "COMPARISONS", (("Ours is better", "", "landscape", "qamoe", "concat"),))
    monkeypatch.setattr(questions, "_MODELS", {"qamoe", "concat"})
    section = questions.section(evaluated)
    key = "questions.qamoe.concat.landscape"
    assert section.numbers[f"{key}.low"] <= section.numbers[key] <= section.numbers[f"{key}.high"]  # type: ignore[operator]
    assert section.context.columns == questions.COLUMNS
    assert section.context.rows[0][0] == "Ours is better"
    assert len(section.context.rows) == 1 + 3 + 2
    page = build(evaluated).html
    assert '<th scope="col" class="words">Verdict</th>' in page, "columns of words begin at the left"
    assert f'<td class="words">{section.context.rows[0][3]}</td>' in page
    assert '<th scope="col">Acc-7, volume</th>' in page


def test_a_line_that_was_cut_is_measured_again(tmp_path: Path) -> None:
    from scripts.questions import read as read_lines

    file = tmp_path / "lines.jsonl"
    assert read_lines(file) == []
    file.write_text('{"model": "paper", "seed": 1}\n{"model": "pap')
    assert read_lines(file) == [{"model": "paper", "seed": 1}]
    assert pd.DataFrame(read_lines(file)).shape == (1, 2)


def test_a_line_that_is_damaged_or_double_is_not_lost(tmp_path: Path) -> None:
    from scripts.questions import read as read_lines

    file = tmp_path / "lines.jsonl"
    file.write_text('{"model": "paper", "seed": 1}\n<<<<<<< HEAD\n{"model": "moe", "seed": 1}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 2: '<<<<<<< HEAD'"):
        read_lines(file)
    file.write_text('{"model": "moe", "seed": 1}\n{"model": "moe", "seed": 2}\n{"model": "moe", "seed": 1}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 3: .*moe, seed 1"):
        read_lines(file)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the parameters and overlays of the repository, which is the present one."""
    for name in ("params.yaml", "experiments"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_measures_of_other_clips_are_not_mixed(checkout: Path) -> None:
    from scripts.questions import answer

    file = checkout / "docs/notebook/questions/paper-table-54.jsonl"
    file.parent.mkdir(parents=True)
    text = '{"model": "paper", "seed": 1, "clips": 3200}\n'
    file.write_text(text)
    with pytest.raises(UserError, match=r"960.*paper-table-54\.jsonl.*3200"):
        answer("paper-table", 54, 960)
    assert file.read_text() == text
    manifest = checkout / "artifacts-paper-table-55/data/manifest.csv"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("clip_id\none\ntwo\n")
    with pytest.raises(UserError, match=r"960.*manifest\.csv.* 2 "):
        answer("paper-table", 55, 960)
    with pytest.raises(UserError, match="'mmsa'"):
        answer("mosi", 54, 960)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("arguments", [[], ["paper-sample"], ["paper-sample", "--page"]])
def test_the_seed_of_the_corpus_is_given(
    arguments: list[str], checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.questions import main

    monkeypatch.setattr("sys.argv", ["questions", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "seed" in capsys.readouterr().err
    assert sorted(path.name for path in checkout.iterdir()) == ["experiments", "params.yaml"]


def test_a_file_without_a_line_has_no_table(checkout: Path) -> None:
    from scripts.questions import LINES, PAGE, write_page

    LINES.mkdir(parents=True)
    (LINES / "paper-sample-54.jsonl").touch()
    PAGE.parent.mkdir(parents=True)
    page = "one\n<!-- generated by scripts/questions.py -->\nold\n<!-- end -->\n"
    PAGE.write_text(page)
    write_page()
    assert "old" not in PAGE.read_text()
