"""The address of the record store: what cannot be one is refused at once."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from qamoe.errors import UserError
from qamoe.tracking import dashboard, mlflow_store

pytestmark = pytest.mark.integration


def test_a_checkout_with_a_question_mark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of another name was made in the folder above."""
    checkout = tmp_path / "a?b"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"a\?b"):
        mlflow_store.connect()
    assert [*tmp_path.iterdir(), *checkout.iterdir()] == [checkout]


def test_a_database_that_cannot_be_opened_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow tries ten times, for two minutes, and sleeps between."""
    (tmp_path / "mlflow.db").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(UserError, match=r"mlflow\.db"):
        mlflow_store.connect()


@pytest.mark.parametrize(
    "address",
    ["./mlruns", "file:///tmp/mlruns", "databricks", "http://", "sqlite://", "sqlite:///", "sqlite:///:memory:"],
)
def test_a_folder_or_a_store_in_memory_is_refused_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    """What is written to a database in memory is gone at the end of the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as refusal:
        mlflow_store.connect("; advice")
    assert [
        part for part in (repr(address), "http://", "sqlite:///FILE", "advice") if part not in str(refusal.value)
    ] == []
    assert [*tmp_path.iterdir()] == []


def test_two_first_processes_may_arrange_an_experiment_at_once(records, monkeypatch):
    """The database refuses the second of two equal tags; another failure of the store is reported."""
    set_tag = type(records).set_experiment_tag
    lost: list[str] = []

    def second(self: Any, experiment: str, key: str, value: str) -> None:
        if key not in lost:
            set_tag(self, experiment, key, value)
        raise MlflowException("UNIQUE constraint failed")

    monkeypatch.setattr(type(records), "set_experiment_tag", second)
    number = mlflow_store.experiment_id(records, "qa-moe")
    written = records.get_experiment(number).tags
    assert {key: written[key] for key in dashboard.tags(number)} == dashboard.tags(number)
    lost.extend(written)
    with pytest.raises(MlflowException):
        mlflow_store.experiment_id(records, "another")
