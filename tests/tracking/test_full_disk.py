"""A store on a full disk: its error is one exception, and MLflow's traceback is not printed."""

import shutil
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from qamoe.tracking.mlflow_store import connect
from tests.fixtures import disks

pytestmark = pytest.mark.integration


def test_a_database_on_a_full_disk_prints_no_traceback(
    small_disk: Path, empty_records: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_records, small_disk / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_disk / 'mlflow.db'}")
    client = connect()
    run = client.create_run("0").info.run_id
    disks.fill(small_disk)

    def write_much() -> None:
        for number in range(1000):
            client.set_tag(run, f"tag-{number}", "x" * 5000)

    with pytest.raises(MlflowException, match="full"):
        write_much()
    assert "Traceback" not in capfd.readouterr().err
