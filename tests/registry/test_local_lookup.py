"""A registered version found without MLflow is the one that MLflow finds, and what it cannot know is left to MLflow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qamoe.models import checkpoint
from qamoe.registry import local_lookup, registry
from qamoe.tracking.runs import record_training


@pytest.fixture
def registered(records: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Any:
    """A client of a registry of two versions, the second of which is champion."""
    for seed in (1, 2):
        run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / str(seed), seed=seed), "qa-moe"))
        records.set_registered_model_alias("qa-moe", "champion", registry._register(records, "qa-moe", run))
    return records


def test_the_version_and_files_are_those_of_mlflow(registered: Any, tmp_path: Path) -> None:
    def same(version: str | None, alias: str | None, expected: str) -> None:
        found = local_lookup.version_and_folder("qa-moe", version, alias)
        assert found is not None
        number, folder = found
        assert number == expected
        fetched = registry.fetch("qa-moe", number, tmp_path / f"fetched-{number}-{alias}")
        assert checkpoint.digest(folder) == checkpoint.digest(fetched)

    same(None, "champion", "2")
    same("1", None, "1")
    registered.set_registered_model_alias("qa-moe", "champion", "1")
    same(None, "champion", "1")


def test_what_is_not_there_is_left_to_mlflow(registered: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert local_lookup.version_and_folder("qa-moe", None, "champion") is not None
    assert local_lookup.version_and_folder("qa-moe", None, "latest") is None
    assert local_lookup.version_and_folder("other", None, "champion") is None
    assert local_lookup.version_and_folder("qa-moe", "3", None) is None
    assert local_lookup.version_and_folder("qa-moe", "9" * 30, None) is None
    registered.delete_model_version("qa-moe", "2")
    assert local_lookup.version_and_folder("qa-moe", None, "champion") is None
    assert local_lookup.version_and_folder("qa-moe", "2", None) is None
    for store in ("http://127.0.0.1:9", f"sqlite:///{tmp_path / 'absent.db'}", f"sqlite:///{tmp_path}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        assert local_lookup.version_and_folder("qa-moe", "1", None) is None
    assert not (tmp_path / "absent.db").exists()


def test_files_that_lie_elsewhere_are_left_to_mlflow(registered: Any, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        for place in ("s3://bucket/model", "file://other-machine/model", f"file://{tmp_path}/gone"):
            store.execute("UPDATE model_versions SET storage_location = ? WHERE version = 2", (place,))
            store.commit()
            assert local_lookup.version_and_folder("qa-moe", None, "champion") is None
    store.close()
