"""Open MLflow's pages on a real server in a real browser."""

import json
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from qamoe.models import checkpoint
from qamoe.pipeline import promote, record
from qamoe.pipeline.shared import data_digest
from qamoe.tracking import dashboard, mlflow_store, runs
from tests.fixtures.browser import CHROMIUM, Tab, tab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"),
]
# Title of a training -> model, learning rate, seeds, and the offset of its errors.
MODELS = ("qamoe", "concat", "mean")
TRAININGS = {
    "qamoe": ("qamoe", 0.001, (1, 2, 3), 0.0),
    "qamoe lr=0.002": ("qamoe", 0.002, (1, 2, 3), 0.2),
    "concat": ("concat", 0.001, (1,), 0.1),
    "mean": ("mean", 0.001, (1,), 0.6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def server(folder: Path, mlflow_server: Callable[[Path], AbstractContextManager[int]]) -> Iterator[str]:
    """The address of an MLflow server with an empty store."""
    with mlflow_server(folder) as port:
        yield f"http://127.0.0.1:{port}"


def cells(offset: float) -> pd.DataFrame:
    rows = []
    for name, severities in (
        ("clean", [0.0]),
        ("missing", [0.0, 0.3, 1.0]),
        ("noise", [0.0, 0.5, 1.0]),
        ("mixed", [None]),
    ):
        for severity in severities:
            shared = {"slice": name, "cell": f"{name}-{severity}", "kind": name, "severity": severity, "draw": 0}
            rows.append({**shared, "metric": "mae", "value": 0.5 + (severity or 0.0) / 2 + offset})
    return pd.DataFrame(rows)


def commit_params(params: Any) -> None:
    """Commit params.yaml to a new repository in the working folder: runs are named by what differs from it."""
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)


@pytest.fixture(scope="module")
def recorded(
    server: str, folder: Path, tiny_params: Any, tiny_corpus: Callable[..., None], tiny_checkpoint: Callable[..., Path]
) -> Iterator[str]:
    """The same server after recording three models, one with two learning rates, and promoting one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        patch.setenv("QAMOE_DEVICE", "cpu")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # generous; it only ends a request that hangs
        patch.chdir(folder)
        out = Path("artifacts")
        tiny_corpus(out)
        commit_params(tiny_params)
        folders = []
        for title, (model, lr, seeds, offset) in TRAININGS.items():
            digests = {"params": title, "data": data_digest(out), "code": "c" * 64}
            train = tiny_params.train.common.model_dump(mode="json") | {"lr": lr}
            for seed in seeds:
                # The candidate of the promotion is where the pipeline has it, in artifacts/.
                root = out if title in MODELS else Path("other")
                written = root / "train" / model / str(seed)
                folders.append(
                    tiny_checkpoint(written, model=model, seed=seed, answer=1.0, digests=digests, train=train)
                )
                evaluated = root / "evaluate" / model / str(seed)
                evaluated.mkdir(parents=True)
                cells(offset).to_parquet(evaluated / "cells.parquet")
                (evaluated / "digest").write_text(title)
        record.run(folders, "qa-moe")
        one = tiny_params.model_copy(update={"seeds": {"qamoe": [1]}})
        assert promote.decide(one, out).outcome == "promoted"
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("chromium")) as page:
        page.size(1800, 1100)
        yield page


def click(browser: Tab, element: str) -> None:
    """Wait for the element that a JavaScript expression finds, and click it."""
    browser.until(f"({element}) !== undefined && ({element}) !== null")
    browser.run(f"({element}).click()")


def link(text: str) -> str:
    return f"[...document.querySelectorAll('a')].find((a) => a.textContent.trim() === {json.dumps(text)})"


def follow(browser: Tab, text: str) -> None:
    """Open a link of a description, which the browser would open in a new tab."""
    browser.until(f"({link(text)}) !== undefined")
    assert browser.run(f"({link(text)}).target") == "_blank"
    address = browser.run(f"({link(text)}).href")
    browser.open("about:blank")  # otherwise only the fragment of the address changes and the page is not loaded
    browser.open(address)


def shows(browser: Tab, *texts: str) -> None:
    for text in texts:
        browser.until(f"document.body.innerText.includes({json.dumps(text)})")


def shows_groups(browser: Tab, *titles: str) -> None:
    for title in titles:
        browser.until(f"/[0-9a-f]{{6}} {title}/.test(document.body.innerText)")


# For each chart drawn by plotly, per line: the group or run, the metric, x and y.
CHARTS = (
    "[...document.querySelectorAll('.js-plotly-plot')]"
    ".map((plot) => (plot.data || []).filter((line) => line.metricKey && line.x && line.y)"
    ".map((line) => [line.uuid, line.metricKey, [...line.x], [...line.y]])).filter((lines) => lines.length)"
)


def curves(browser: Tab, metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """Wait for the chart of a metric and return its lines."""
    browser.until(f"{CHARTS}.some((lines) => lines[0][1] === {json.dumps(metric)})")
    drawn = json.loads(browser.run(f"JSON.stringify({CHARTS})"))
    (chart,) = (lines for lines in drawn if lines[0][1] == metric)
    return {name: (x, y) for name, _, x, y in chart}


def test_three_clicks_lead_from_the_experiments_to_curves_and_table_of_the_models(recorded, browser):
    browser.open(f"{recorded}/#/experiments")
    click(browser, link("qa-moe"))
    follow(browser, "Curves")
    shows(browser, dashboard.NAME, "Spectrum")
    shows_groups(browser, *TRAININGS)
    missing = curves(browser, "missing/mae")
    assert {name.removeprefix("tag.training.").partition(" ")[2] for name in missing} == set(TRAININGS)
    for name, (x, y) in missing.items():
        offset = TRAININGS[name.removeprefix("tag.training.").partition(" ")[2]][3]
        assert x == [0, 30, 100]
        assert y == pytest.approx([0.5 + offset, 0.65 + offset, 1.0 + offset], abs=1e-6)
    curves(browser, "noise/mae")
    follow(browser, "table")
    shows(browser, "clean/mae", "missing/mae.area")
    shows_groups(browser, "mean", "qamoe lr=0.002")
    browser.until("document.body.innerText.includes('0.6')")


def test_the_comparison_of_three_runs_has_the_table_and_the_curves(recorded, browser):
    import mlflow

    client = mlflow.MlflowClient(recorded)
    experiment = client.get_experiment_by_name("qa-moe").experiment_id
    seeds = client.search_runs([experiment], "tags.`qamoe.seed` = '1' and params.train.common.lr = '0.001'")
    compared = {run.info.run_name: run.info.run_id for run in seeds}
    chosen = {"runs": json.dumps(list(compared.values())), "experiments": json.dumps([experiment])}
    browser.open(f"{recorded}/#/compare-runs?{urllib.parse.urlencode(chosen, quote_via=urllib.parse.quote)}")
    shows(browser, "Comparing 3 Runs", "qamoe seed1", "concat seed1", "mean seed1", "clean/mae", "missing/mae.area")
    wanted = chosen | {"metric": '"missing/mae"', "plot_metric_keys": '["missing/mae"]', "x_axis": "step"}
    browser.open(f"{recorded}/#/metric?{urllib.parse.urlencode(wanted, quote_via=urllib.parse.quote)}")
    drawn = curves(browser, "missing/mae")
    assert set(drawn) == set(compared.values())
    assert {tuple(x) for x, _ in drawn.values()} == {(0, 30, 100)}
    assert len({tuple(y) for _, y in drawn.values()}) == 3


def test_the_page_of_the_model_shows_alias_and_decision(recorded, browser):
    browser.open(f"{recorded}/#/models/qa-moe/versions/1")
    shows(browser, "champion", "qa-moe, version 1: promoted", "beats_the_mean", "predicting the training mean")
    browser.open(f"{recorded}/#/models/qa-moe")
    shows(browser, "champion", "Version 1")


def test_the_page_of_a_run_has_sections(recorded, browser):
    import mlflow

    client = mlflow.MlflowClient(recorded)
    experiment = client.get_experiment_by_name("qa-moe").experiment_id
    (champion,) = client.search_runs([experiment], "tags.champion = 'qa-moe'")
    page = f"{recorded}/#/experiments/{experiment}/runs/{champion.info.run_id}"
    browser.open("about:blank")
    browser.open(f"{page}/model-metrics")
    for section in ("train", "valid", "missing", "mixed"):
        browser.until(f"/^{section}\\s*\\(\\d+\\)/m.test(document.body.innerText)")


def test_the_report_opens_in_the_page_of_its_run(recorded: str, folder: Path, browser: Tab) -> None:
    written = folder / "index.html"
    written.write_text("<!DOCTYPE html><title>Report</title><h1>Evaluation on the test split</h1>")
    trained = folder / "artifacts/train/qamoe/1"
    runs.record_report(written, [trained])
    client = mlflow_store.connect()
    run = mlflow_store.find(client, qamoe__artifact_digest=checkpoint.digest(trained))
    assert run is not None
    page = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/report/index.html"
    browser.open("about:blank")
    browser.open(f"{recorded}/#/{page}")
    frame = "document.querySelector('iframe[src^=\"blob:\"]')"
    browser.until(f"{frame} !== null")
    assert "Evaluation on the test split" in browser.run(f"fetch({frame}.src).then((answer) => answer.text())")
