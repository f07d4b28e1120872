"""Open MLflow's pages on a real server in a real browser."""

import json
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qamoe.pipeline import promote, record
from qamoe.pipeline.shared import data_digest
from qamoe.tracking import dashboard
from tests.fixtures.browser import CHROMIUM, Tab, tab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"),
]
MODELS = {"qamoe": 0.0, "concat": 0.1, "mean": 0.6}  # model -> offset of its errors


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


@pytest.fixture(scope="module")
def recorded(
    server: str, folder: Path, tiny_params: Any, tiny_corpus: Callable[..., None], tiny_checkpoint: Callable[..., Path]
) -> Iterator[str]:
    """The same server after recording three models from their folders and promoting one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        patch.setenv("QAMOE_DEVICE", "cpu")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # generous; it only ends a request that hangs
        patch.chdir(folder)
        out = Path("artifacts")
        tiny_corpus(out)
        digests = {"params": "p" * 64, "data": data_digest(out), "code": "c" * 64}
        folders = [tiny_checkpoint(out / "train" / m / "1", model=m, answer=1.0, digests=digests) for m in MODELS]
        for model, offset in MODELS.items():
            evaluated = out / "evaluate" / model / "1"
            evaluated.mkdir(parents=True)
            cells(offset).to_parquet(evaluated / "cells.parquet")
            (evaluated / "digest").write_text(model)
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
    shows(browser, dashboard.NAME, "Group: qamoe", "Group: concat", "Group: mean", "Spectrum")
    missing = curves(browser, "missing/mae")
    assert set(missing) == {f"param.model.{model}" for model in MODELS}
    for model, offset in MODELS.items():
        x, y = missing[f"param.model.{model}"]
        assert x == [0, 30, 100]
        assert y == pytest.approx([0.5 + offset, 0.65 + offset, 1.0 + offset], abs=1e-6)
    curves(browser, "noise/mae")
    follow(browser, "table")
    shows(browser, "Group: mean", "clean/mae", "missing/mae.area")
    browser.until("document.body.innerText.includes('0.6')")


def test_the_comparison_of_three_runs_has_the_table_and_the_curves(recorded, browser):
    import mlflow

    client = mlflow.MlflowClient(recorded)
    experiment = client.get_experiment_by_name("qa-moe").experiment_id
    seeds = client.search_runs([experiment], "tags.`qamoe.seed` = '1'")
    runs = {run.info.run_name: run.info.run_id for run in seeds}
    chosen = {"runs": json.dumps(list(runs.values())), "experiments": json.dumps([experiment])}
    browser.open(f"{recorded}/#/compare-runs?{urllib.parse.urlencode(chosen, quote_via=urllib.parse.quote)}")
    shows(browser, "Comparing 3 Runs", "qamoe-seed1", "concat-seed1", "mean-seed1", "clean/mae", "missing/mae.area")
    wanted = chosen | {"metric": '"missing/mae"', "plot_metric_keys": '["missing/mae"]', "x_axis": "step"}
    browser.open(f"{recorded}/#/metric?{urllib.parse.urlencode(wanted, quote_via=urllib.parse.quote)}")
    drawn = curves(browser, "missing/mae")
    assert set(drawn) == set(runs.values())
    assert {tuple(x) for x, _ in drawn.values()} == {(0, 30, 100)}
    assert len({tuple(y) for _, y in drawn.values()}) == 3


def test_the_page_of_the_model_shows_alias_and_decision(recorded, browser):
    browser.open(f"{recorded}/#/models/qa-moe/versions/1")
    shows(browser, "champion", "qa-moe, version 1: promoted", "beats_the_mean", "predicting the training mean")
    browser.open(f"{recorded}/#/models/qa-moe")
    shows(browser, "champion", "Version 1")
