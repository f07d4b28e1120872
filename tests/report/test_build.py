import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qamoe.errors import UserError
from qamoe.evaluation.bootstrap import holm
from qamoe.evaluation.metrics import of_predictions
from qamoe.evaluation.summary import summarise
from qamoe.report import build, comparisons, curves, plots, sections, tables
from qamoe.report.results import read
from qamoe.report.section import merged

pytestmark = pytest.mark.integration

Maker = Callable[..., None]


class Page(HTMLParser):
    """The tags of a page, the addresses it refers to, and its text without the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"] or "{" not in data:
            self.text += f" {data}"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes most of the time of a report, in tests that do not look at figures."""
    monkeypatch.setattr(plots, "svg", lambda figure: b"<svg/>")


def write(root: Path) -> build.Written:
    return build.write(root / "evaluate", root / "train", root / "report")


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    build.write(results / "evaluate", results / "train", out)
    return out


@pytest.fixture(scope="module")
def summary(written: Path) -> dict:
    return json.loads((written / "summary.json").read_text())


def test_the_page_is_self_contained(written: Path) -> None:
    html = (written / "index.html").read_text()
    page = Page(html)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?:", html)


def test_the_page_describes_data_and_models(written: Path) -> None:
    text = " ".join(Page((written / "index.html").read_text()).text.split())
    assert "Test clips 62" in text
    assert "Test sources 24" in text
    assert "mean × 1, concat × 3, qamoe × 3" in text
    assert "generated corpus" in text
    assert "second-hand and unverified, and for another corpus" in text
    assert "dvc repro report" in text
    assert "single training seed: mean." in text
    assert "constant predictions is undefined and counted as 0: mean, slice clean, 1 of 1 cells" in text
    assert "MAE of qamoe relative to that of another model" in text
    assert "left of 0, qamoe is better" in text
    assert "Below zero, qamoe is better" in text


def test_the_summary_agrees_with_the_cells_and_with_the_headline(written: Path, summary: dict, results: Path) -> None:
    cells = pd.read_parquet(results / "evaluate" / "qamoe" / "2" / "cells.parquet")
    of_seed_2 = summarise(cells).set_index(["slice", "metric"])
    assert summary["qamoe.missing.mae.area.seed2"] == pytest.approx(of_seed_2.loc[("missing", "mae"), "area"])
    assert summary["qamoe.missing.mae.worst.seed2"] == pytest.approx(of_seed_2.loc[("missing", "mae"), "worst"])
    seeds = [summary[f"qamoe.missing.mae.area.seed{seed}"] for seed in (1, 2, 3)]
    assert summary["qamoe.missing.mae.area.mean"] == pytest.approx(sum(seeds) / 3)
    assert summary["mean.missing.mae.area.sd"] is None
    assert summary["reference.paper.mosi.acc7"] == 0.536
    assert summary["qamoe.training.best_epoch.seed1"] == 2
    text = (written / "index.html").read_text()
    assert f"{summary['qamoe.missing.mae.area.mean']:.3f}" in text
    assert f"{100 * summary['qamoe.clean.acc2_non0.clean.mean']:.1f} %" in text


def test_each_number_of_the_headline_is_in_its_row_and_column(written: Path, summary: dict) -> None:
    html = (written / "index.html").read_text()
    table = re.search(r'<table class="headline.*?</table>', html, flags=re.S)
    assert table is not None
    shown: dict[tuple[str, str], str] = {}
    for row in re.findall(r"<tr.*?</tr>", table[0], flags=re.S):
        cells = re.findall(r'data-label="(.*?)"><span>([^<]*?)(?:&thinsp;|\u2009)?†? ?<span', row)
        if heading := re.search(r'scope="row">(\w+)<', row):
            shown |= {(heading[1], label): value.strip() for label, value in cells}
    checked = 0
    for name in ("mean", "concat", "qamoe"):
        for column in tables.REGRESSION:
            value = summary.get(f"{name}.{column.name}.mean")
            if value is not None and column.metric == "mae":
                assert shown[name, column.label] == f"{value:.3f}"
                checked += 1
    assert checked > 12
    assert len(set(shown.values())) > 12


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_only_the_chosen_models(results: Path, tmp_path: Path) -> None:
    written = build.write(results / "evaluate", results / "train", tmp_path / "report", models=["qamoe", "mean"])
    assert list(written.headline["model"]) == ["mean", "qamoe"]
    assert not any("concat" in name for name in json.loads((tmp_path / "report" / "summary.json").read_text()))


def test_every_number_of_the_tables_is_in_the_summary(written: Path, summary: dict) -> None:
    """Each number in a table cell must be a rounded value of summary.json."""
    html = (written / "index.html").read_text()
    values = [abs(float(v)) for v in summary.values() if v is not None]
    known = {f"{v:.3f}" for v in values} | {f"{100 * v:.1f}" for v in values} | {f"{v:g}" for v in values}
    cells = [re.sub(r"<[^>]+>", " ", cell) for cell in re.findall(r"<td.*?</td>", html, flags=re.S)]
    printed = {number for cell in cells for number in re.findall(r"(?<![\w-])\d+(?:\.\d+)?(?![\w-])", cell)}
    labels = {"0", "0.9"}  # from the label "mean over severities 0 to 0.9"
    seeds_and_clips = {str(n) for n in range(10)}
    assert len(printed) > 100
    assert printed - labels - seeds_and_clips <= known


def test_the_comparison_finds_the_better_model(summary: dict) -> None:
    for name in ("missing", "noise", "mixed"):
        prefix = f"comparison.qamoe-concat.{name}.mae"
        areas = [summary[f"{model}.{name}.mae.area.mean"] for model in ("qamoe", "concat")]
        assert summary[f"{prefix}.difference"] == pytest.approx(areas[0] - areas[1])
        assert summary[f"{prefix}.difference.low"] < summary[f"{prefix}.difference"] < 0
        assert summary[f"{prefix}.difference.high"] < 0
        assert summary[f"{prefix}.ratio.high"] < 1


@pytest.fixture(scope="module")
def all_written(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on every type of model."""
    out = tmp_path_factory.mktemp("all") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "data_uri", lambda figure: "data:,")
        build.write(many / "evaluate", many / "train", out)
    return out


@pytest.fixture(scope="module")
def all_models(all_written: Path) -> tuple[str, dict]:
    """The text and the summary of that report."""
    text = " ".join(Page((all_written / "index.html").read_text()).text.split())
    return text, json.loads((all_written / "summary.json").read_text())


def test_differences_are_bold_if_their_interval_excludes_0(all_written: Path, all_models: tuple[str, dict]) -> None:
    _, summary = all_models
    claimed = 0
    for model in ("mean", "concat", "moe", "oracle", "ablation-gate"):
        for name in ("clean", "missing", "noise", "mixed"):
            prefix = f"comparison.qamoe-{model}.{name}.mae.difference"
            claimed += not summary[f"{prefix}.low"] <= 0 <= summary[f"{prefix}.high"]
    assert 0 < claimed < 20
    assert (all_written / "index.html").read_text().count("<b>") == claimed


def test_every_model_has_an_interval_and_a_difference_on_every_slice(all_models: tuple[str, dict]) -> None:
    text, summary = all_models
    for model in ("mean", "concat", "moe", "oracle", "ablation-gate"):
        for name in ("clean", "missing", "noise", "mixed"):
            area = summary[f"{model}.{name}.mae.area.mean"]
            assert summary[f"{model}.{name}.mae.area.low"] < area < summary[f"{model}.{name}.mae.area.high"]
            difference = summary[f"comparison.qamoe-{model}.{name}.mae.difference"]
            assert difference == pytest.approx(summary[f"qamoe.{name}.mae.area.mean"] - area)
    assert "Controls" in text
    assert "Ablations" in text
    assert text.index("Ablations") > text.index("Controls")


def test_holm_corrects_over_the_evaluated_members_of_the_family(all_models: tuple[str, dict]) -> None:
    _, summary = all_models
    names = [name for name in summary if name.endswith(".p_holm")]
    assert sorted(names) == [f"comparison.qamoe-{m}.mixed.mae.p_holm" for m in ("concat", "moe")]
    plain = [summary[name.replace("p_holm", "p")] for name in sorted(names)]
    assert [summary[name] for name in sorted(names)] == pytest.approx(
        list(holm(dict(zip("ab", plain, strict=True))).values())
    )


@pytest.mark.slow
def test_the_first_figure_claims_what_the_table_claims(many: Path) -> None:
    drawn: list[pd.DataFrame] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "data_uri", lambda figure: "data:,")
        patch.setattr(plots, "at_a_glance", lambda cells, r, pairs, metric, first: drawn.append(pairs))
        patch.setattr(comparisons, "SIGNIFICANT", -1.0)  # Holm rejects no member of the family
        results = read(many / "evaluate", many / "train")
        build.build(results)
    (pairs,) = drawn
    assert set(pairs["against"]) == {"concat", "moe"}
    in_family = pairs["slice"].isin(comparisons.FAMILY[1])
    assert not pairs.loc[in_family, "claimed"].any()
    rest = pairs[~in_family]
    assert rest["claimed"].any()
    assert list(rest["claimed"]) == list((rest["low"] > 1) | (rest["high"] < 1))


def test_the_first_figure_names_the_best_control_if_it_is_not_drawn(many: Path) -> None:
    results = read(many / "evaluate", many / "train")
    non_inferiority = [
        comparisons.NonInferiorityRow("mixed", "moe", "−1.0 %", "−0.5 %", "no worse"),
        comparisons.NonInferiorityRow("missing", "text", "+5.6 %", "+6.1 %", "not shown to be no worse"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "data_uri", lambda figure: "data:,")
        (shown,) = curves.at_a_glance(results, object(), non_inferiority)  # type: ignore[arg-type]
    not_shown = shown.caption.partition("Not shown: ")[2]
    assert not_shown == "text, the control with the lowest MAE on missing (MAE of qamoe relative to text: +5.6 %)."


def test_the_best_control_is_not_an_oracle_or_ablation(all_models: tuple[str, dict]) -> None:
    text, summary = all_models
    assert "Non-inferiority to the best control" in text
    for name in ("mixed", "missing"):
        upper = summary[f"non_inferior.{name}.moe.mae.upper"]
        assert upper == pytest.approx(summary[f"comparison.qamoe-moe.{name}.mae.ratio.high"] - 1)
        assert summary[f"non_inferior.{name}"] is (upper < 0.01)


def test_specialists_are_compared_in_their_own_cell_and_the_clean_one_in_worse_cells(
    all_models: tuple[str, dict],
) -> None:
    text, summary = all_models
    prefix = "comparison.qamoe-specialist-missing-03.missing-s03.mae"
    assert summary[f"{prefix}.ratio.low"] < summary[f"{prefix}.ratio"] < summary[f"{prefix}.ratio.high"]
    assert summary["specialists.specialist-missing-03.missing-s03.mae"] > 0
    assert not any("specialist-missing-03.missing-s05" in name for name in summary)
    cells = {name.split(".")[2] for name in summary if name.startswith("comparison.qamoe-specialist-clean.")}
    worse = {f"{kind}-s{tenths:02d}" for kind in ("missing", "noise") for tenths in range(3, 11)}
    assert cells == worse | {"clean"}
    ratios = [summary[f"{prefix}.ratio"], summary["comparison.qamoe-specialist-clean.clean.mae.ratio"]]
    assert summary["specialists.mean_ratio"] == pytest.approx(sum(ratios) / 2)
    assert "Comparison with specialists" in text


def test_reliability_is_computed_from_the_predictions(all_models: tuple[str, dict]) -> None:
    """The generated r falls with severity, apart from small noise; permuted quality adds 20 % and 10 % of error."""
    text, summary = all_models
    assert summary["qamoe.reliability.noise.noise.text.spearman.mean"] > 0.95
    assert summary["qamoe.reliability.missing.missing.vision.auroc.s10.mean"] == 1
    assert summary["qamoe.reliability.noise.noise.text.clips"] == 62
    rises = [summary[f"qamoe.broken.{way}.rise"] for way in ("across", "within")]
    assert rises == pytest.approx([0.2, 0.1])
    assert "Permuted quality" in text
    ratio = summary["qamoe.lost.mae_ratio_to_mean"]
    assert summary["qamoe.lost.mae_ratio_to_mean.low"] < ratio < summary["qamoe.lost.mae_ratio_to_mean.high"]
    assert f"is {100 * summary['qamoe.lost.spread.mean']:.1f} % of the standard deviation of the labels" in text


def test_coverage_is_shown_per_slice_and_for_the_selection_cells(many: Path, all_models: tuple[str, dict]) -> None:
    text, summary = all_models
    cells = pd.read_parquet(many / "evaluate" / "qamoe" / "1" / "cells.parquet").query("metric == 'coverage_90'")
    by_cell = cells.groupby("cell")["value"].mean()
    assert summary["qamoe.coverage_90.missing.s07"] == pytest.approx(by_cell["missing-0.7"])
    chosen = by_cell[["clean", "missing-0.5", "noise-1.0"]]
    assert summary["qamoe.coverage_90.selection"] == pytest.approx(chosen.mean())
    assert summary["qamoe.coverage_90.selection.low"] < summary["qamoe.coverage_90.selection"]
    assert "selection cells 3" in text


@pytest.mark.usefixtures("undrawn")
def test_without_broken_parquet_the_page_has_no_permuted_quality(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, "qamoe", 1)
    (tmp_path / "evaluate" / "qamoe" / "1" / "broken.parquet").unlink()
    write(tmp_path)
    text = Page((tmp_path / "report" / "index.html").read_text()).text
    assert "Permuted quality" not in text
    assert "Spearman" in text


def test_metrics_for_dvc_are_a_handful(written: Path, summary: dict) -> None:
    (metric, values), *others = json.loads((written / "metrics.json").read_text()).items()
    assert (metric, others) == ("mae", [])
    assert values.keys() == {"best_control", "clean", "missing", "mixed"}
    for name in ("clean", "missing", "mixed"):
        assert values[name] == pytest.approx(summary[f"qamoe.{name}.mae.area.mean"], abs=1e-6)
    controls = [summary[f"{model}.mixed.mae.area.mean"] for model in ("concat", "mean")]
    assert values["best_control"] == pytest.approx(min(controls), abs=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_metrics_without_qamoe_are_those_of_the_last_model(tmp_path: Path, make_run: Maker) -> None:
    for model in ("mean", "concat"):
        make_run(tmp_path, model, 1, slices=("clean", "mixed"))
    written = write(tmp_path)
    summary = json.loads(written.summary.read_text())
    values = json.loads(written.page.with_name("metrics.json").read_text())["mae"]
    assert values == {
        name: pytest.approx(summary[f"concat.{name}.mae.area.mean"], abs=1e-6) for name in ("clean", "mixed")
    }


def test_the_figures_of_dvc_name_what_they_show(written: Path) -> None:
    figures = {path.name: path.read_text() for path in (written / "plots").iterdir()}
    assert figures.keys() == {"training.svg", "error.svg", "reliability.svg"}
    # Text of these figures is drawn as shapes; matplotlib names it in comments.
    for name, words in {
        "training.svg": ("epoch", "validation error", "qamoe", "concat"),
        "error.svg": ("missing", "qamoe", "concat"),
        "reliability.svg": ("severity", "text", "audio", "vision"),
    }.items():
        assert [word for word in words if f"<!-- {word} -->" not in figures[name]] == [], name


def test_slices_without_severities_are_reported_with_a_header_of_curves(
    tmp_path: Path, make_run: Maker, undrawn: None
) -> None:
    for model in ("concat", "qamoe"):
        make_run(tmp_path, model, 1, slices=("clean", "mixed"))
    written = write(tmp_path)
    curves = pd.read_csv(written.page.with_name("curves.csv"))
    assert list(curves.columns[:5]) == ["model", "slice", "severity", "error", "mae"]
    assert curves.empty
    values = json.loads(written.page.with_name("metrics.json").read_text())["mae"]
    assert values.keys() == {"best_control", "clean", "mixed"}
    assert [path.stem for path in written.page.with_name("plots").glob("*.svg")] == ["training"]


def test_curves_for_dvc(written: Path, summary: dict) -> None:
    curves = pd.read_csv(written / "curves.csv")
    assert list(curves.columns[:5]) == ["model", "slice", "severity", "error", "mae"]
    of_qamoe = curves.query("model == 'qamoe' and slice == 'missing'").set_index("severity")
    assert of_qamoe["error"][0.7] == pytest.approx(summary["qamoe.missing.mae.s07.mean"], abs=1e-5)


@pytest.mark.slow
def test_a_second_report_has_the_same_bytes_and_replaces_the_first(written: Path, results: Path) -> None:
    before = {path.name: path.read_bytes() for path in written.rglob("*.*")}
    (written / "stale.png").write_bytes(b"of an older version")
    build.write(results / "evaluate", results / "train", written)
    assert {path.name: path.read_bytes() for path in written.rglob("*.*")} == before
    assert [path.name for path in written.parent.iterdir()] == ["report"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_failed_report_keeps_the_old_one(
    written: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    shutil.copytree(written, out)
    before = (out / "index.html").read_bytes()

    def disk_full(*_: object) -> dict:
        raise OSError("no space left")

    monkeypatch.setattr(build, "metrics", disk_full)
    with pytest.raises(OSError, match="no space"):
        build.write(results / "evaluate", results / "train", out)
    assert (out / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.usefixtures("undrawn")
def test_strings_of_a_corpus_are_escaped(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, "qamoe", 1, odd='<script>alert("&")</script>', modalities=["<b>text</b>", "audio", "vision"])
    write(tmp_path)
    html = (tmp_path / "report" / "index.html").read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert "<b>text" not in html
    assert "&lt;b&gt;text" in html


@pytest.mark.usefixtures("undrawn")
def test_an_odd_source_is_shown_and_escaped(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, "qamoe", 1, odd="<script>")
    path = tmp_path / "evaluate" / "qamoe" / "1" / "predictions.parquet"
    rows = pd.read_parquet(path)
    rows.loc[rows["source"] == "<script>", "prediction"] += 9  # a large error puts the source on the page
    rows.to_parquet(path)
    write(tmp_path)
    html = (tmp_path / "report" / "index.html").read_text()
    assert "&lt;script&gt;" in html
    assert "<script" not in html


@pytest.mark.usefixtures("undrawn")
def test_a_corpus_without_vision_has_no_row_for_it(tmp_path: Path, make_run: Maker) -> None:
    for model in ("concat", "qamoe"):
        make_run(tmp_path, model, 1, present=("text", "audio"))
    write(tmp_path)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert any(name.startswith("qamoe.missing.trust.audio") for name in summary)
    assert not any("vision" in name for name in summary)
    assert "this corpus does not have: vision" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_models_without_trust_and_routing_give_a_page_without_them(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, "mean", 1)
    write(tmp_path)
    text = Page((tmp_path / "report" / "index.html").read_text()).text
    assert "Experts" not in text
    assert "qamoe and concat were not both evaluated" in text
    assert "At a glance" not in text
    assert "Paired comparison" in text
    assert "of another model" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_page_notes_trust_without_rescaling(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path, "qamoe", 4, trust={"audio": {"clean": 0.6, "fully_degraded": 0.7, "rescaled": False}})
    write(tmp_path)
    text = " ".join(Page((tmp_path / "report" / "index.html").read_text()).text.split())
    assert "(qamoe, audio, seed 4)" in text


def as_classes(root: Path, model: str) -> None:
    """Turn a run into a two-class run: the class is the sign of the target, p_yes grows with the prediction."""
    folder = root / "evaluate" / model / "1"
    rows, cells = pd.read_parquet(folder / "predictions.parquet"), pd.read_parquet(folder / "cells.parquet")
    positive = 1 / (1 + np.exp(-rows["prediction"]))
    rows = rows.assign(target=(rows["target"] > 0).astype(float), p_no=1 - positive, p_yes=positive)
    rows = rows.assign(prediction=(positive > 0.5).astype(float), variance=np.nan)
    rows.to_parquet(folder / "predictions.parquet", index=False)
    keys = cells.drop(columns=["metric", "value"]).drop_duplicates()
    records = []
    for key in keys.to_dict("records"):
        cell_rows = rows[(rows["cell"] == key["cell"]) & (rows["draw"] == key["draw"])]
        records += [key | {"metric": m, "value": v} for m, v in of_predictions(cell_rows, {}).items()]
    pd.DataFrame(records).to_parquet(folder / "cells.parquet", index=False)
    for name in ("broken.parquet", "diagnostic.parquet"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_classification_shows_its_metrics(tmp_path: Path, make_run: Maker) -> None:
    task = {"kind": "classification", "classes": ["no", "yes"]}
    for model in ("concat", "qamoe"):
        make_run(tmp_path, model, 1, task=task, calibration={"temperature": 1.3})
        as_classes(tmp_path, model)
    write(tmp_path)
    text = " ".join(Page((tmp_path / "report" / "index.html").read_text()).text.split())
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert "Accuracy, clean" in text
    assert "Accuracy of qamoe minus Accuracy of another model" in text
    assert "MAE of" not in text
    assert "right of 0, qamoe is better" in text
    assert "Above zero, qamoe is better" in text
    difference = [summary[f"{model}.mixed.accuracy.area.mean"] for model in ("qamoe", "concat")]
    assert summary["comparison.qamoe-concat.mixed.accuracy.difference"] == pytest.approx(difference[0] - difference[1])
    assert summary["qamoe.reliability.noise.noise.audio.spearman.mean"] > 0.9
    assert "Calibration error" in text
    assert "qamoe.coverage_90.mixed" not in summary


def test_a_name_set_by_two_sections_is_an_error() -> None:
    assert merged({"a": 1}, {"b": None}) == {"a": 1, "b": None}
    with pytest.raises(ValueError, match=r"summary\.json.*\bb\b"):
        merged({"a": 1, "b": 2}, {"b": 2})


def test_an_incomplete_run_is_refused_with_the_missing_file(tmp_path: Path, make_run: Maker) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/evaluate.*run the stage evaluate"):
        write(tmp_path)
    make_run(tmp_path, "qamoe", 1)
    (tmp_path / "train" / "qamoe" / "1" / "model.json").unlink()
    with pytest.raises(UserError, match=r"train/qamoe/1/model\.json.*run the stage train"):
        write(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_the_page_shows_a_search_if_there_is_one(results: Path, undrawn: None, tmp_path: Path) -> None:
    tuned = tmp_path / "tune"
    folders = (results / "evaluate", results / "train", tmp_path / "report", tuned)
    assert "Search" not in Page(build.write(*folders).page.read_text()).text
    (tuned / "plots").mkdir(parents=True)
    rows = ["number,state,value,lr", "0,COMPLETE,0.75,0.001", "1,PRUNED,0.71,0.002", "2,COMPLETE,0.73,0.003"]
    (tuned / "trials.csv").write_text("\n".join(rows) + "\n")
    for name in ("history", "slice"):
        (tuned / "plots" / f"{name}.svg").write_text(f"<svg>{name}</svg>")
    written = build.write(*folders)
    page = Page(written.page.read_text())
    assert "Completed trials: 2; pruned trials: 1; lowest validation error: 0.730." in page.text
    drawn = [plots.svg_uri(f"<svg>{name}</svg>".encode()) for name in ("history", "slice")]
    assert [address for address in page.addresses if address in drawn] == drawn
    summary = json.loads(written.summary.read_text())
    names = ("trials.complete", "trials.pruned", "selection.best")
    assert [summary[f"tune.{name}"] for name in names] == [2, 1, 0.73]
    assert "tune.trials.front" not in summary


def test_the_front_of_a_search_is_a_table_sorted_by_error(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text(
        "number,state,value,trust,front,train.common.lr,train.common.schedule\n"
        "0,COMPLETE,0.75,0.9,True,0.001,linear\n1,PRUNED,,,False,0.002,linear\n"
        "2,COMPLETE,0.76,0.8,False,0.003,cosine\n3,COMPLETE,0.73,0.85,True,0.00123456,cosine\n"
    )
    section = sections.search(tmp_path)
    assert section.context.columns == ["trial", "error", "trust", "train.common.lr", "train.common.schedule"]
    assert section.context.rows == [
        ["3", "0.73", "0.85", "0.001235", "cosine"],
        ["0", "0.75", "0.9", "0.001", "linear"],
    ]
    assert section.numbers["tune.trials.front"] == 2
