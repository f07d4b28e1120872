"""Test that a version found without MLflow is the one that MLflow finds, and that other cases are left to MLflow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.registry import local_lookup, registry
from qamoe.serving import model_loader
from qamoe.tracking.runs import record_training


@pytest.fixture
def registered(records: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Any:
    """A client of a registry with two versions; the second is champion."""
    for seed in (1, 2):
        run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / str(seed), seed=seed), "qa-moe"))
        records.set_registered_model_alias("qa-moe", "champion", registry._register(records, "qa-moe", run))
    return records


@pytest.mark.integration
def test_the_version_and_files_are_those_of_mlflow(registered: Any, tmp_path: Path) -> None:
    def assert_same_as_mlflow(version: str | None, alias: str | None, expected: str) -> None:
        local = local_lookup.version_and_folder("qa-moe", version, alias)
        assert local is not None
        number, folder = local
        assert number == expected
        fetched = registry.fetch("qa-moe", number, tmp_path / f"fetched-{number}-{alias}")
        assert checkpoint.digest(folder) == checkpoint.digest(fetched)

    assert_same_as_mlflow(None, "champion", "2")
    assert_same_as_mlflow("1", None, "1")
    registered.set_registered_model_alias("qa-moe", "champion", "1")
    assert_same_as_mlflow(None, "champion", "1")


@pytest.mark.integration
@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_what_is_not_registered_is_named_with_what_is(
    registered: Any, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if store == "server":  # MLflow is asked for the same, as it is for a store that is not a file
        monkeypatch.setattr(local_lookup, "version_and_folder", lambda *_: None)

    def refusal(model: str) -> str:
        with pytest.raises(UserError) as refused, model_loader.located(model, None):
            pass
        return str(refused.value)

    assert all(word in refusal("models:/other@champion") for word in ("other", "qamoe promote"))
    assert all(word in refusal("models:/qa-moe@stable") for word in ("'stable'", "1, 2"))
    assert all(word in refusal("models:/qa-moe/3") for word in ("version 3", "1, 2"))
    registered.delete_model_version("qa-moe", "2")
    assert all(word in refusal("models:/qa-moe@champion") for word in ("(1)", "models:/qa-moe/1"))
    assert "version 2" in refusal("models:/qa-moe/2")


@pytest.mark.integration
def test_no_records_is_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = tmp_path / "absent.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{absent}")
    with pytest.raises(UserError, match=f"{absent}.*qamoe promote"):
        local_lookup.version_and_folder("qa-moe", None, "champion")
    assert not absent.exists()


@pytest.mark.integration
def test_other_stores_are_left_to_mlflow(registered: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert local_lookup.version_and_folder("qa-moe", "9" * 30, None) is None
    assert local_lookup.version_and_folder("qa-moe", None, "latest") is None  # MLflow's own alias
    for store in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        assert local_lookup.version_and_folder("qa-moe", "1", None) is None


@pytest.mark.integration
def test_files_outside_local_folders_are_left_to_mlflow(registered: Any, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        for location in ("s3://bucket/model", "file://other-machine/model", f"file://{tmp_path}/gone"):
            store.execute("UPDATE model_versions SET storage_location = ? WHERE version = 2", (location,))
            store.commit()
            if location.endswith("gone"):  # as in a project folder that was moved
                with pytest.raises(UserError, match=r"gone.*qamoe relink"):
                    local_lookup.version_and_folder("qa-moe", None, "champion")
            else:
                assert local_lookup.version_and_folder("qa-moe", None, "champion") is None
    store.close()
