"""What a flow run leaves on the server, and that two of them are never in one checkout at the same time."""

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

METRICS = {"mean": {"clean": {"mae": 1.25, "corr": 0.0}}, "qamoe": {"clean": {"mae": 0.5, "corr": 0.7}}}
SAID = "candidate: qamoe seed 1\nrun: 0123abc\ndecision: refused"


def last_run(state: Any) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def artifact(key: str, state: Any) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    (own,) = (a for a in found if a.flow_run_id == state.state_details.flow_run_id)
    return own.data


@pytest.fixture
def committed(repository: Path) -> Path:
    """The repository with a commit."""
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    for arguments in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "all")):
        subprocess.run(["git", *arguments], check=True, capture_output=True)
    return repository


@pytest.mark.usefixtures("server")
def test_a_run_tells_what_it_did_and_on_what(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dvc, "STAGES", ("extract", "train", "report"))
    monkeypatch.setattr(pipeline, "ask_gate", lambda: Completed(data=SAID))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@records:5000/")
    (committed / "artifacts/report").mkdir(parents=True)
    (committed / "artifacts/report/metrics.json").write_text(json.dumps(METRICS))
    (committed / "artifacts/report/index.html").write_text("<p>")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()

    state = pipeline.pipeline(return_state=True)
    run = last_run(state)
    assert run.name == f"extract to report, refused at {commit[:7]}"
    assert run.labels["qamoe.commit"] == commit
    assert "qamoe.dvc_lock_digest" not in run.labels, "there was none yet"
    assert run.labels["qamoe.dvc_lock_digest_after"] == _workspace.provenance()["dvc_lock_digest"]
    told = artifact("pipeline", state)
    assert "| qamoe | 0.500 |" in told
    assert "- MLflow run: [0123abc](http://records:5000/#/runs/0123abc)" in told
    assert f"- Report: [artifacts/report/index.html](file://{committed}/artifacts/report/index.html)" in told
    assert commit in told

    again = last_run(pipeline.pipeline(return_state=True))
    assert again.name == f"nothing stale, refused at {commit[:7]}"
    assert again.labels["qamoe.dvc_lock_digest"] == run.labels["qamoe.dvc_lock_digest_after"]


@pytest.mark.usefixtures("server")
def test_a_run_waits_for_the_one_that_is_in_the_checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = os.open(repository / ".dvc", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waits = threading.Event()
    taken = fcntl.flock
    order: list[str] = []

    def flock(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX:  # the first, impatient one has failed
            order.append("ran before" if (repository / "ran.txt").exists() else "waits")
            waits.set()
        taken(descriptor, how)

    monkeypatch.setattr(_workspace.fcntl, "flock", flock)

    def leave() -> None:
        waits.wait(60)
        os.close(holder)

    leaver = threading.Thread(target=leave)
    leaver.start()
    assert extract_flow.extract(return_state=True).is_completed()
    leaver.join()
    assert order == ["waits"]
    assert (repository / "ran.txt").read_text() == "extract\n"


def test_the_lock_ends_with_its_process(repository: Path) -> None:
    code = (
        "import fcntl, os, signal; fcntl.flock(os.open('.dvc', os.O_RDONLY), 2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run(["python3", "-c", code], cwd=repository, check=False).returncode == -9
    with _workspace._alone():
        pass


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        ("ERROR: Unable to acquire lock. Most likely", True),
        ("promote: The records at http://host:5000 (MLFLOW_TRACKING_URI) cannot be used: refused.", True),
        ("promote: The records at sqlite:////x/mlflow.db (MLFLOW_TRACKING_URI) cannot be used: no space.", False),
        ("train: seed 9 is none.", False),
    ],
)
def test_only_what_may_pass_by_itself_is_tried_again(message: str, passes: bool) -> None:
    from prefect.states import Failed

    assert _dvc.locked(None, None, Failed(message=message)) is passes


def test_records_in_a_database_are_shown_by_make_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("sqlite:///mlflow.db", "postgresql://somebody:secret@host/mlflow", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert _workspace.records_page() == "http://127.0.0.1:5000"
