"""Make the images of docs/ from the runs and models of this checkout.

    python -m scripts.pictures artifacts-evidence    # after qamoe experiment evidence (docs/notebook/l04.md)
    python -m scripts.pictures                       # after make demo; needs chromium

The first command draws docs/glance.png, the first figure of the report of an experiment. The second starts an MLflow
server on the records and `qamoe serve` on the champion, takes screenshots of their pages in a browser, and writes
docs/mlflow-curves.png, mlflow-table.png, mlflow-compare.png, mlflow-champion.png and serve.png. Run both from the root
of the checkout.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import mlflow

from qamoe.config import settings
from qamoe.config.params import load
from qamoe.errors import UserError, exit_on_user_error
from qamoe.report import comparisons, curves, results, tables
from qamoe.tracking import mlflow_store

if TYPE_CHECKING:
    from tests.fixtures.browser import Tab

DOCS = Path("docs")
PORT = 5199
HIDE_TOOLS = "<style>.modebar-container { display: none }</style>"  # hide plotly's tool bar


@contextmanager
def started(command: list[str], ready: str) -> Iterator[str]:
    """Start a server, wait for a line of output that contains `ready`, and yield this line."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        output: list[str] = []
        for line in process.stdout:
            output.append(line)
            if ready in line:
                break
        else:
            raise UserError(f"{' '.join(command[1:4])} did not start: {''.join(output[-1:]).strip() or 'no output'}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would block the server
        yield line
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def save_screenshot(page: "Tab", name: str, width: int, height: int) -> None:
    """Write the content of the window to docs/."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    screenshot = page.call("Page.captureScreenshot", clip=clip)
    (DOCS / name).write_bytes(base64.b64decode(screenshot["data"]))
    print(DOCS / name)


def mlflow_pages(page: "Tab", address: str, name: str) -> None:
    """Take screenshots of the experiment, a comparison and the registered model. name: that of experiment and model."""
    client = mlflow.MlflowClient(address, address)
    experiment = client.get_experiment_by_name(name).experiment_id
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    names = ("qamoe seed1", "concat seed1", "mean seed1")
    if missing := [run for run in names if run not in runs]:
        raise UserError(f"experiment {name} has no run {', '.join(missing)}; run make demo first")
    compared = [runs[run] for run in names]
    runs_page = f"{address}/#/experiments/{experiment}/runs?viewStateShareKey=qamoe"
    plots = "[...document.querySelectorAll('.js-plotly-plot')].filter((plot) => plot.data).length"
    close_panel = "document.querySelector('[aria-label=\"Close\"]')?.click(), true"
    for file, height, url, ready in (
        ("mlflow-curves.png", 760, f"{runs_page}&compareRunsMode=CHART", f"{plots} >= 3"),
        ("mlflow-table.png", 780, runs_page, "document.body.innerText.includes('Group: ')"),
        (
            "mlflow-compare.png",
            760,
            f"{address}/#/metric?runs={quote(json.dumps(compared))}&experiments={quote(json.dumps([experiment]))}"
            f"&metric={quote(json.dumps('missing/mae'))}&plot_metric_keys={quote(json.dumps(['missing/mae']))}"
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
        page.open(url)
        page.until(ready)
        page.run(close_panel)
        page.run(f"document.head.insertAdjacentHTML('beforeend', {json.dumps(HIDE_TOOLS)}), true")
        page.run("new Promise((done) => setTimeout(done, 3000))")  # wait for animations and late responses
        save_screenshot(page, file, 1440, height)


def glance_figure(out: Path) -> None:
    """Draw the first figure of the report of an artifacts folder, without specialists."""
    shown = results.read(out / "evaluate", out / "train", curves.SHOWN)
    pairs = comparisons.pairs(comparisons.resampled(shown))
    reported = comparisons.reported_pairs(pairs, tables.error_metric(shown.cells) or "")
    figure = curves.glance(shown, pairs, reported)
    if figure is None:
        raise UserError(f"{out} has no evaluations of qamoe and of {' or '.join(comparisons.FAMILY[0])} to compare")
    figure.savefig(DOCS / "glance.png", dpi=100)
    print(DOCS / "glance.png")


def serve_page(page: "Tab", address: str) -> None:
    """Take a screenshot of the page with the first sample and 60 % of the frames of vision missing."""
    page.size(1280, 1180)
    page.open(f"{address}/")
    page.until("clip !== null && !asking && document.getElementById('player').readyState >= 2")
    page.run("document.getElementById('vision-missing').click()")
    page.run("document.getElementById('vision-severity').value = 60")
    page.run("document.getElementById('vision-severity').dispatchEvent(new Event('input'))")
    page.until("!asking")
    page.run("new Promise((done) => setTimeout(done, 500))")
    save_screenshot(page, "serve.png", 1280, 1180)


@contextmanager
def mlflow_server() -> Iterator[str]:
    """Yield the address of the MLflow server with the records; start one if the store is a database."""
    uri = mlflow_store.uri()
    if uri.startswith("http"):
        yield uri
        return
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    with started([*server, "--backend-store-uri", uri], "Application startup complete"):
        yield f"http://127.0.0.1:{PORT}"


def screenshots() -> None:
    """Take the screenshots of MLflow and of `qamoe serve`."""
    from tests.fixtures.browser import CHROMIUM, tab

    if CHROMIUM is None:
        raise UserError("no chromium, chromium-browser or google-chrome on the path")
    name = load(Path("params.yaml")).registry.name
    mlflow_store.experiment_id(mlflow_store.connect(), name)
    serve = [sys.executable, "-m", "qamoe", "serve", "--clips", "data", "--port", "0"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, tab(Path(home)) as page:
        with mlflow_server() as address:
            mlflow_pages(page, address, name)
        with started(serve, " at http://") as line:
            serve_page(page, line.split(" at ")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "artifacts", nargs="?", type=Path, help="draw docs/glance.png from this folder; none: screenshots"
    )
    options = parser.parse_args()
    settings.go_offline()
    with exit_on_user_error("pictures"):
        if not DOCS.is_dir():
            raise UserError(f"{DOCS} does not exist; run the command from the root of the checkout")
        if options.artifacts is not None:
            glance_figure(options.artifacts)
        else:
            screenshots()


if __name__ == "__main__":
    main()
