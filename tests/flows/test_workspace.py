"""Test what a flow run records on the server, and that only one run at a time uses a checkout."""

import fcntl
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import Completed

from flows import _dvc, _workspace, pipeline
from flows import extract as extract_flow

SUMMARY = {
    "mean.clean.mae.area.mean": 1.25,
    "mean.clean.mae.area.sd": None,
    "qamoe.clean.mae.area.mean": 0.5,
    "qamoe.clean.corr.area.mean": 0.7,
    "qamoe.mixed.mae.area.mean": 0.625,
    "tune.trials": 3,
}
OUTPUT = "candidate: qamoe seed 1\nrun: 0123abc\ndecision: refused"


def last_run(state: Any) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def artifact(key: str, state: Any) -> str:
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    (of_run,) = (a for a in artifacts if a.flow_run_id == state.state_details.flow_run_id)
    return of_run.data


@pytest.fixture
def committed(repository: Path) -> Path:
    """The repository with one commit."""
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    for arguments in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "--message", "all")):
        subprocess.run(["git", *arguments], check=True, capture_output=True)
    return repository


@pytest.mark.usefixtures("server")
def test_a_run_records_its_stages_its_origin_and_its_artifact(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dvc, "STAGES", ("extract", "train", "report"))
    monkeypatch.setattr(pipeline, "run_promotion", lambda experiment: Completed(data=OUTPUT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@records:5000/")
    (committed / "artifacts/report").mkdir(parents=True)
    (committed / "artifacts/report/summary.json").write_text(json.dumps(SUMMARY))
    (committed / "artifacts/report/index.html").write_text("<p>")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()

    state = pipeline.pipeline(return_state=True)
    run = last_run(state)
    assert run.name == f"extract to report, refused at {commit[:7]}"
    assert run.labels["qamoe.commit"] == commit
    assert "qamoe.dvc_lock_digest" not in run.labels, "dvc.lock did not exist before"
    assert run.labels["qamoe.dvc_lock_digest_after"] == _workspace.provenance()["dvc_lock_digest"]
    markdown = artifact("pipeline", state)
    assert "| model | mae, clean | mae, mixed |" in markdown
    assert "| mean | 1.250 |  |" in markdown
    assert "| qamoe | 0.500 | 0.625 |" in markdown
    assert "- MLflow run: [0123abc](http://records:5000/#/runs/0123abc)" in markdown
    assert f"- Report: [artifacts/report/index.html](file://{committed}/artifacts/report/index.html)" in markdown
    assert commit in markdown

    second_run = last_run(pipeline.pipeline(return_state=True))
    assert second_run.name == f"nothing stale, refused at {commit[:7]}"
    assert second_run.labels["qamoe.dvc_lock_digest"] == run.labels["qamoe.dvc_lock_digest_after"]


@pytest.mark.usefixtures("server")
def test_a_run_waits_for_another_run_in_the_checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = os.open(repository / ".dvc", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waiting = threading.Event()
    real_flock = fcntl.flock
    events: list[str] = []

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:  # the first attempt, with LOCK_NB, has failed
            events.append("ran" if (repository / "ran.txt").exists() else "waits")
            waiting.set()
        real_flock(descriptor, operation)

    monkeypatch.setattr(_workspace.fcntl, "flock", flock)

    def release() -> None:
        waiting.wait(60)
        os.close(holder)

    releaser = threading.Thread(target=release)
    releaser.start()
    assert extract_flow.extract(return_state=True).is_completed()
    releaser.join()
    assert events == ["waits"]
    assert (repository / "ran.txt").read_text() == "extract\n"


def test_the_lock_ends_with_its_process(repository: Path) -> None:
    code = (
        "import fcntl, os, signal; fcntl.flock(os.open('.dvc', os.O_RDONLY), 2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run(["python3", "-c", code], cwd=repository, check=False).returncode == -9
    with _workspace._locked_checkout():
        pass


@pytest.mark.parametrize(
    ("message", "temporary"),
    [
        ("ERROR: Unable to acquire lock. Most likely", True),
        ("promote: The records at http://host:5000 (MLFLOW_TRACKING_URI) cannot be used: refused.", True),
        ("promote: The records at sqlite:////x/mlflow.db (MLFLOW_TRACKING_URI) cannot be used: no space.", False),
        ("train: seed 9: unknown", False),
    ],
)
def test_only_temporary_failures_are_retried(message: str, temporary: bool) -> None:
    from prefect.states import Failed

    assert _dvc.locked(None, None, Failed(message=message)) is temporary


def test_the_page_of_a_database_is_that_of_make_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("sqlite:///mlflow.db", "postgresql://somebody:secret@host/mlflow", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert _workspace.records_page() == "http://127.0.0.1:5000"
