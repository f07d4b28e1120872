"""The pictures of docs/ and of the README's pages, of what is recorded and trained here.

    python -m scripts.pictures artifacts-evidence    # after make experiment NAME=evidence, of docs/log.md, L04
    python -m scripts.pictures                       # after make demo, from the root of the checkout; needs chromium

The first draws docs/glance.png, as that experiment's report does. The second starts MLflow's own server on the records
and `qamoe serve` on the champion, opens their pages as a user would, and writes docs/mlflow-curves.png,
mlflow-table.png, mlflow-compare.png, mlflow-champion.png and serve.png.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import mlflow

from qamoe.config import settings
from qamoe.config.params import load
from qamoe.report import comparisons, curves, results, tables
from qamoe.tracking import mlflow_store
from tests.fixtures.browser import Tab, tab

DOCS = Path("docs")
PORT = 5199
TOOLS = "<style>.modebar-container { display: none }</style>"  # plotly shows them under a mouse, of which there is none


@contextmanager
def started(command: list[str], ready: str) -> Iterator[str]:
    """A server that has said a line with `ready` in it, which is yielded."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        said = next(line for line in process.stdout if ready in line)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        yield said
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def keep(page: Tab, name: str, width: int, height: int) -> None:
    """What is in the window, as a picture."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = page.call("Page.captureScreenshot", clip=clip)
    (DOCS / name).write_bytes(base64.b64decode(shot["data"]))
    print(DOCS / name)


def of_mlflow(page: Tab, address: str, name: str) -> None:
    """Experiment, comparison and registered model; `name` is that of both."""
    client = mlflow.MlflowClient(address, address)
    place = client.get_experiment_by_name(name).experiment_id
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([place])}
    chosen = [runs[each] for each in ("qamoe-seed1", "concat-seed1", "mean-seed1")]
    runs_page = f"{address}/#/experiments/{place}/runs?viewStateShareKey=qamoe"
    plots = "[...document.querySelectorAll('.js-plotly-plot')].filter((plot) => plot.data).length"
    aside = "document.querySelector('[aria-label=\"Close\"]')?.click(), true"
    for file, height, where, ready in (
        ("mlflow-curves.png", 760, f"{runs_page}&compareRunsMode=CHART", f"{plots} >= 3"),
        ("mlflow-table.png", 780, runs_page, "document.body.innerText.includes('Group: qamoe')"),
        (
            "mlflow-compare.png",
            760,
            f"{address}/#/metric?runs={quote(json.dumps(chosen))}&experiments={quote(json.dumps([place]))}"
            f"&metric={quote(json.dumps('missing.mae'))}&plot_metric_keys={quote(json.dumps(['missing.mae']))}"
            "&x_axis=step",
            f"{plots} >= 1",
        ),
        (
            "mlflow-champion.png",
            640,
            f"{address}/#/models/{name}/versions/{client.get_model_version_by_alias(name, 'champion').version}",
            "document.body.innerText.includes('predicts_the_same')",
        ),
    ):
        page.size(1440, height)
        page.open("about:blank")
        page.open(where)
        page.until(ready)
        page.run(aside)
        page.run(f"document.head.insertAdjacentHTML('beforeend', {json.dumps(TOOLS)}), true")
        page.run("new Promise((done) => setTimeout(done, 3000))")  # until the page has settled after its last answer
        keep(page, file, 1440, height)


def of_glance(out: Path) -> None:
    """The first figure of the report of `out`, an experiment's folder; specialists are not in it."""
    shown = results.read(out / "evaluate", out / "train", curves.SHOWN)
    pairs = comparisons.pairs(comparisons.resampled(shown))
    rows = comparisons.reported_pairs(pairs, tables.error_metric(shown.cells) or "")
    figure = curves.glance(shown, pairs, rows)
    assert figure is not None
    figure.savefig(DOCS / "glance.png", dpi=100)
    print(DOCS / "glance.png")


def of_serve(page: Tab, address: str) -> None:
    """The page with the first sample, its face half gone."""
    page.size(1280, 1180)
    page.open(f"{address}/")
    page.until("clip !== null && !asking && document.getElementById('player').readyState >= 2")
    page.run("document.getElementById('vision-missing').click()")
    page.run("document.getElementById('vision-severity').value = 60")
    page.run("document.getElementById('vision-severity').dispatchEvent(new Event('input'))")
    page.until("!asking")
    page.run("new Promise((done) => setTimeout(done, 500))")
    keep(page, "serve.png", 1280, 1180)


@contextmanager
def served_records() -> Iterator[str]:
    """The address of a server on the records: the one that they are on, or one that is started here."""
    uri = mlflow_store.uri()
    if uri.startswith("http"):
        yield uri
        return
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    with started([*server, "--backend-store-uri", uri], "Application startup complete"):
        yield f"http://127.0.0.1:{PORT}"


def main() -> None:
    """Make the picture of an experiment, or all of pages."""
    settings.go_offline()
    if len(sys.argv) > 1:
        of_glance(Path(sys.argv[1]))
        return
    name = load(Path("params.yaml")).registry.name
    mlflow_store.experiment_id(mlflow_store.connect(), name)
    serve = [sys.executable, "-m", "qamoe", "serve", "--clips", "data", "--port", "0"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, tab(Path(home)) as page:
        with served_records() as address:
            of_mlflow(page, address, name)
        with started(serve, "Ctrl-C ends it") as said:
            of_serve(page, said.split(" at ")[1].split()[0])


if __name__ == "__main__":
    main()
