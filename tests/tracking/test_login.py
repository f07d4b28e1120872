"""Use a store behind a login with environment variables only, and keep them out of messages and files."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qamoe.errors import UserError
from qamoe.tracking.mlflow_store import connect
from qamoe.tracking.runs import record_training
from tests.fixtures.login import PASSWORD, USER, behind_login

pytestmark = pytest.mark.slow


@pytest.fixture
def address(tmp_path: Path, mlflow_server: Callable[[Path], AbstractContextManager[int]]) -> Iterator[str]:
    """The address of an MLflow server behind a login."""
    with mlflow_server(tmp_path) as port, behind_login(port) as address:
        yield address


def test_a_store_behind_a_login_needs_environment_variables_only(
    address: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # generous; it only ends a request that hangs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for user, password in (("", ""), (USER, "planted-other")):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(UserError, match=r"127\.0\.0\.1.*MLFLOW_TRACKING_URI.*401") as refusal:
            connect()
        assert "planted" not in str(refusal.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    folder = tiny_checkpoint(tmp_path / "checkpoint", model="mean")
    run = connect().get_run(record_training(connect(), folder, "qa-moe"))
    assert run.info.status == "FINISHED"
    model = mlflow.artifacts.download_artifacts(
        f"models:/{run.data.tags['qamoe.logged_model']}", dst_path=str(tmp_path / "fetched")
    )
    assert (Path(model) / "artifacts" / "model.json").read_bytes() == (folder / "model.json").read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"planted" in path.read_bytes()] == []
