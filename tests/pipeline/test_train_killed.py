"""A training killed at epoch 20 leaves its best checkpoint so far in MLflow, wherever its store is."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from qamoe.models import checkpoint
from qamoe.tracking.mlflow_store import connect
from tests.end_to_end.postgresql import BINARIES, WHY_NOT, postgresql
from tests.fixtures.login import PASSWORD, USER, behind_login

pytestmark = pytest.mark.slow


@pytest.fixture(params=["a file", "PostgreSQL behind a login"])
def store(
    request: pytest.FixtureRequest, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A client of an empty store, which the environment names."""
    if request.param == "a file":
        yield records
        return
    if BINARIES is None:
        pytest.skip(WHY_NOT)
    mlflow_server = request.getfixturevalue("mlflow_server")
    with (
        postgresql("mlflow") as database,
        mlflow_server(tmp_path, store=f"postgresql://{database}/mlflow") as port,
        behind_login(port) as address,
    ):
        for name, value in (("URI", address), ("USERNAME", USER), ("PASSWORD", PASSWORD)):
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        yield connect()


def test_a_killed_training_leaves_its_best_checkpoint_so_far(
    store: Any, params_file: Callable[..., Path], preprocessed: Path, tmp_path: Path
) -> None:
    changes = {"train.common.epochs": 200, "train.common.patience": 200}
    command = [sys.executable, "-m", "qamoe", "run", "train", "--model", "qamoe"]
    command += ["--params", str(params_file(changes)), "--out", str(preprocessed)]
    environment = {**os.environ, "QAMOE_TRACKING": "on", "QAMOE_WORKERS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr is not None
        assert any("epoch 20 of 200" in line for line in training.stderr), "it ended before"
        training.send_signal(signal.SIGKILL)
    assert training.returncode == -signal.SIGKILL
    experiment = store.get_experiment_by_name("qa-moe")
    (run,) = store.search_runs([experiment.experiment_id], "tags.`qamoe.seed` = '1'")
    folder = Path(
        mlflow.artifacts.download_artifacts(run.data.tags["checkpoint_best"], dst_path=str(tmp_path / "best"))
    )
    config = checkpoint.load(folder, unfinished=True).config
    errors = {metric.step: metric.value for metric in store.get_metric_history(run.info.run_id, "valid/error")}
    assert errors[config["best_epoch"]] == pytest.approx(config["selection"])
    assert config["selection"] <= min(errors[epoch] for epoch in range(1, 21)) + 1e-6, "kept after epoch 20"
