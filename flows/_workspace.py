"""Run the work of a flow: refuse uncommitted code, lock the checkout, and record what the run used.

Two runs in one checkout would read each other's unfinished files, so a run holds a kernel lock on the checkout. The
kernel releases the lock when the process ends. The limits of the deployments keep runs of one kind from queueing up.
"""

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from prefect import State, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import Field

from flows._worker import end_with_worker
from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.files import file_digest
from qamoe.terminal import printable
from qamoe.tracking.provenance import changed_files

Experiment = (
    Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None
)  # a file in experiments/; None: params.yaml alone
_PAGE = "http://127.0.0.1:5000"  # address of `make ui`, used if the store is a database
_ERROR = re.compile(r"(?P<model>[^.]+)\.(?P<slice>[^.]+)\.(?P<metric>mae|accuracy)\.area\.mean")  # in summary.json
_RUN = "run: "  # prefix of the line with the MLflow run in the output of a stage
_MOST_OUTPUT = 20_000  # characters of output in an artifact


def _git(*arguments: str) -> str | None:
    """Return the output of a git command, or None without git or without a checkout."""
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def artifacts(experiment: Experiment = None) -> Path:
    """Return the folder of results: artifacts/, or artifacts-NAME/ of an experiment."""
    return Path(f"artifacts-{experiment}" if experiment else "artifacts")


def overlaid(experiment: Experiment) -> tuple[str, ...]:
    """Return the options of a command that name the parameters of an experiment."""
    return ("--params", str(artifacts(experiment) / "params.yaml")) if experiment else ()


def provenance() -> dict[str, str]:
    """Return the commit, the digest of dvc.lock and the digest of the data, without those that do not exist."""
    origin = {}
    if commit := _git("rev-parse", "HEAD"):
        origin["commit"] = commit
    if Path("dvc.lock").is_file():
        origin["dvc_lock_digest"] = file_digest(Path("dvc.lock"))
    if Path("data.dvc").is_file():
        (out, *_) = yaml.safe_load(Path("data.dvc").read_text())["outs"]
        origin["data_digest"] = str(out["md5"])
    return origin


def set_run_name(title: str) -> None:
    """Name the current flow run by a title and the commit."""
    commit = provenance().get("commit")
    name = f"{title} at {commit[:7]}" if commit else title
    with get_client(sync_client=True) as client:
        client.set_flow_run_name(flow_run.id, name[:200])


def add_labels(**labels: str) -> None:
    """Add labels to the current flow run, by which the server can search."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {f"qamoe.{key}": value for key, value in labels.items()})


@contextmanager
def _locked_checkout() -> Iterator[None]:
    """Lock the checkout; wait while another flow run holds the lock."""
    folder = os.open(".dvc" if Path(".dvc").is_dir() else ".", os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_run_logger().info("another flow run is using this checkout; waiting until it ends")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def run(title: str, work: Callable[[], State[Any]], *, scheduled: bool = False, reads_only: bool = False) -> State[Any]:
    """Do the work of a flow run and return its state.

    title: the name of the run until the work sets a better one. scheduled: refuse changed files and new code, so the
    commit identifies the code of the run. reads_only: the work changes nothing in the checkout and needs no lock.
    """
    end_with_worker()
    if scheduled and (refusal := _uncommitted()):
        return Failed(message=f"{refusal} A scheduled run takes commits only.")
    set_run_name(title)
    if reads_only:
        add_labels(**provenance())
        return work()
    with _locked_checkout():
        before = provenance()
        add_labels(**before)
        try:
            return work()
        finally:
            add_labels(**{f"{key}_after": value for key, value in provenance().items() if value != before.get(key)})


def _uncommitted() -> str:
    """Return a sentence with the files that the commit does not describe, or why git cannot tell; else ""."""
    try:
        changed = changed_files()
    except UserError as error:
        return str(error)
    return f"Changed but not committed: {printable(', '.join(changed))}." if changed else ""


def headline(folder: Path = Path("artifacts")) -> str:
    """Return the errors of the report as a Markdown table, one row per model; empty without a report."""
    summary = folder / "report/summary.json"
    if not summary.is_file():
        return ""
    models: dict[str, dict[str, float]] = {}
    for name, value in json.loads(summary.read_text()).items():
        if (named := _ERROR.fullmatch(name)) and value is not None:
            models.setdefault(named["model"], {})[f"{named['metric']}, {named['slice']}"] = value
    columns = list(dict.fromkeys(column for values in models.values() for column in values))
    lines = ["| model | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for model, values in models.items():
        cells = (f"{values[column]:.3f}" if column in values else "" for column in columns)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_of(output: str) -> list[str]:
    """Return the MLflow runs in the output of a stage, one per line that starts with `run: `."""
    return [line.removeprefix(_RUN).strip() for line in output.splitlines() if line.startswith(_RUN)]


def records_page() -> str:
    """Return the address of MLflow for a browser, without credentials: its server, or the address of `make ui`."""
    uri = urlsplit(settings.tracking_uri() or "")
    if uri.scheme not in ("http", "https"):
        return _PAGE
    return f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path.rstrip('/')}"


def publish(key: str, output: str, *, table: bool = True, folder: Path = Path("artifacts")) -> None:
    """Create the artifact of a flow run: the headline table, the output, links to report and MLflow run, the origin.

    key: lower-case letters, digits and dashes; earlier artifacts with this key form its history. folder: that of the
    results.
    """
    parts = [headline(folder) if table else ""]
    if output.strip():
        parts.append(f"```\n{output.strip()[:_MOST_OUTPUT].replace('```', '')}\n```")
    links = [f"- MLflow run: [{run}]({records_page()}/#/runs/{run})" for run in runs_of(output)]
    report = folder / "report/index.html"
    if report.is_file():
        links.append(f"- Report: [{report}]({report.resolve().as_uri()})")
    parts += ["\n".join(links), "\n".join(f"- {key}: `{value}`" for key, value in provenance().items())]
    create_markdown_artifact("\n\n".join(filter(None, parts)) or "No output.", key)
