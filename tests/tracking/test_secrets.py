"""Test that no record, artifact, log, report or error contains a secret of the machine."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qamoe.errors import UserError
from qamoe.pipeline import promote
from qamoe.pipeline.shared import data_digest
from qamoe.tracking import runs
from qamoe.tracking.mlflow_store import connect

PLANTED = {
    "QAMOE_STUDY_URL": "postgresql://ann:planted-study@127.0.0.1:1/optuna",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://ann:planted-prefect@127.0.0.1:1/prefect",
    "DATABASE_URL": "postgresql://ann:planted-database@127.0.0.1:1/all",
    "AWS_ACCESS_KEY_ID": "planted-key-id",
    "AWS_SECRET_ACCESS_KEY": "planted-access-key",
    "MLFLOW_TRACKING_PASSWORD": "planted-login",
}
REMOTE = "https://ann:planted-remote@example.org/team/project.git"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, records: Any) -> Any:
    """A checkout whose environment, git remote and DVC remote hold secrets; returns a client of its store."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "."], ["remote", "add", "origin", REMOTE], ["commit", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text("['remote \"team\"']\n    password = planted-dvc\n    url = " + REMOTE)
    return records


def written_files(folder: Path) -> Iterator[Path]:
    """Yield all files except those in .git and .dvc, where the secrets were planted."""
    for path in folder.rglob("*"):
        if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(folder).parts):
            yield path


@pytest.mark.integration
def test_records_promotion_and_output_contain_no_secret(
    planted: Any,
    tiny_params: Any,
    tiny_stats: Any,
    tiny_corpus: Callable[..., None],
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "artifacts"
    tiny_corpus(out)
    digests = {"params": "p" * 64, "data": data_digest(out), "code": "c" * 64}
    params = tiny_params.model_copy(update={"seeds": {"qamoe": [1]}})
    with runs.training_run(params, "qamoe", 1, digests, tiny_stats) as record:
        record.epoch({"epoch": 1, "loss": 1.0, "valid": 0.5, "seconds": 1.0})
        record.finish(tiny_checkpoint(out / "train/qamoe/1", digests=digests))
    assert promote.decide(params, out).outcome == "promoted"
    experiment = planted.get_experiment_by_name("qa-moe").experiment_id
    (run,) = planted.search_runs([experiment], "tags.`qamoe.seed` = '1'")
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40, "the checkout was read"
    files = list(written_files(tmp_path))
    assert {"mlflow.db", "model.json", "requirements.txt"} <= {path.name for path in files}
    assert [path for path in files if b"planted" in path.read_bytes()] == []
    assert "planted" not in caplog.text
    assert "planted" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "store",
    [
        "mssql://ann:planted-store@127.0.0.1:1/mlflow",  # its driver is not installed; MLflow must not retry
        "mssql://127.0.0.1:1/mlflow?user=ann&password=planted-store",
        "nonsense://ann:planted-store@127.0.0.1:1/mlflow",
    ],
)
def test_the_error_for_an_unusable_store_names_it_without_its_password(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(UserError) as refusal:
        connect()
    assert "127.0.0.1" in str(refusal.value)
    assert "planted" not in str(refusal.value)


@pytest.mark.slow
def test_the_output_of_a_failed_command_contains_no_secret(
    planted: Any, tmp_path: Path, tiny_corpus: Callable[..., None]
) -> None:
    """The addresses of the search's database and of the MLflow store contain passwords."""
    tiny_corpus(tmp_path / "artifacts")
    root = Path(__file__).parents[2]
    params = ["--params", str(root / "params.yaml")]
    for command, environment in (
        ([sys.executable, "-m", "qamoe", "run", "tune", *params, "--out", "artifacts"], {"QAMOE_TRACKING": "off"}),
        (
            [sys.executable, "-m", "qamoe", "serve"],
            {"MLFLOW_TRACKING_URI": "http://ann:planted-web@127.0.0.1:1"},
        ),
        (
            [sys.executable, "-m", "qamoe", "versions", *params],
            {"MLFLOW_TRACKING_URI": "http://a:planted@[::1]:1"},
        ),
        (
            [sys.executable, "-m", "qamoe", "score", ".", *params],
            {"MLFLOW_TRACKING_URI": "http://a:planted/x#planted@127.0.0.1:1"},
        ),
        (
            [sys.executable, "-m", "qamoe", "promote", *params],
            {"MLFLOW_TRACKING_URI": "postgresql://127.0.0.1:1/x?user=a&password=planted%20planted"},
        ),
        (
            [sys.executable, "-m", "flows.score"],
            {"PREFECT_API_URL": "http://a:planted@127.0.0.1:1/api", "PYTHONPATH": f"{root / 'src'}:{root}"},
        ),
    ):
        process = subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert process.returncode != 0
        assert process.stderr
        assert "Traceback" not in process.stderr
        assert "planted" not in process.stdout + process.stderr
