"""What a flow run does around its work: refuse code that no commit holds, be alone in the checkout, say what it ran on.

A checkout is one workspace: two runs in it would read what the other is writing. So a run holds a kernel lock on it,
which ends with its process however that ended; a deployment's own limit keeps runs of one kind from piling up.
"""

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from prefect import State, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Failed

from flows._worker import end_with_worker
from qamoe.config import settings
from qamoe.files import file_digest
from qamoe.tracking.provenance import changed_files

REPORT = Path("artifacts/report/index.html")
_PAGE = "http://127.0.0.1:5000"  # of `make ui`, where records are a database and no server
_METRICS = Path("artifacts/report/metrics.json")
_RUN = "run: "  # how a stage's output names its MLflow run
_MOST_SAID = 20_000  # characters of output in an artifact


def _git(*arguments: str) -> str | None:
    """What git answers, or None where there is no git or no checkout."""
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance() -> dict[str, str]:
    """The commit, the digest of dvc.lock and the digest of the data, as far as there are such."""
    found = {}
    if commit := _git("rev-parse", "HEAD"):
        found["commit"] = commit
    if Path("dvc.lock").is_file():
        found["dvc_lock_digest"] = file_digest(Path("dvc.lock"))
    if Path("data.dvc").is_file():
        (out, *_) = yaml.safe_load(Path("data.dvc").read_text())["outs"]
        found["data_digest"] = str(out["md5"])
    return found


def named(doing: str) -> None:
    """Name the running flow run by what it does, and the commit that it does it with."""
    commit = provenance().get("commit")
    name = f"{doing} at {commit[:7]}" if commit else doing
    with get_client(sync_client=True) as client:
        client.set_flow_run_name(flow_run.id, name[:200])


def noted(**labels: str) -> None:
    """Put labels on the running flow run: they are kept with it, and the server can be asked for them."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {f"qamoe.{key}": value for key, value in labels.items()})


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the checkout; wait while another flow run holds it."""
    folder = os.open(".dvc" if Path(".dvc").is_dir() else ".", os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_run_logger().info("another flow run works in this checkout; waiting until it has ended")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def run(doing: str, work: Callable[[], State[Any]], *, scheduled: bool = False, reads_only: bool = False) -> State[Any]:
    """Do the work of a flow run; its state is the run's.

    doing: what the run is named by until the work knows better. scheduled: refuse tracked files that have changed, so
    that the commit says what ran. reads_only: the work changes nothing in the checkout and does not wait for others.
    """
    end_with_worker()
    if scheduled and (changed := changed_files()):
        told = ", ".join(changed)
        return Failed(message=f"Changed but not committed: {told}; a scheduled run takes commits only.")
    named(doing)
    if reads_only:
        noted(**provenance())
        return work()
    with _alone():
        before = provenance()
        noted(**before)
        try:
            return work()
        finally:
            noted(**{f"{key}_after": value for key, value in provenance().items() if value != before.get(key)})


def headline() -> str:
    """The report's numbers as a Markdown table, a row a model; empty where there is no report."""
    if not _METRICS.is_file():
        return ""
    models: dict[str, dict[str, dict[str, float]]] = json.loads(_METRICS.read_text())
    pairs = {(name, metric): None for slices in models.values() for name, all_ in slices.items() for metric in all_}
    shown = [pair for pair in pairs if pair[1] in ("mae", "accuracy")]
    lines = ["| model | " + " | ".join(f"{metric}, {name}" for name, metric in shown) + " |"]
    lines.append("| --- |" + " ---: |" * len(shown))
    for model, slices in models.items():
        values = (slices.get(name, {}).get(metric) for name, metric in shown)
        lines.append(f"| {model} | " + " | ".join("" if v is None else f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


def runs_of(said: str) -> list[str]:
    """The MLflow runs that a stage's output names, each in a line of its own."""
    return [line.removeprefix(_RUN).strip() for line in said.splitlines() if line.startswith(_RUN)]


def records_page() -> str:
    """Where a browser finds MLflow, without credentials: its server, or else where `make ui` shows the database."""
    uri = urlsplit(settings.tracking_uri() or "")
    if uri.scheme not in ("http", "https"):
        return _PAGE
    return f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path.rstrip('/')}"


def published(key: str, said: str, *, table: bool = True) -> None:
    """The artifact of a flow run: the headline table, what was said, where report and MLflow run are, and the origin.

    key: lower-case letters, digits and dashes; earlier artifacts of that key are its history.
    """
    parts = [headline() if table else ""]
    if said.strip():
        parts.append(f"```\n{said.strip()[:_MOST_SAID].replace('```', '')}\n```")
    places = [f"- MLflow run: [{run}]({records_page()}/#/runs/{run})" for run in runs_of(said)]
    if REPORT.is_file():
        places.append(f"- Report: [{REPORT}]({REPORT.resolve().as_uri()})")
    parts += ["\n".join(places), "\n".join(f"- {key}: `{value}`" for key, value in provenance().items())]
    create_markdown_artifact("\n\n".join(filter(None, parts)) or "Nothing was said.", key)
