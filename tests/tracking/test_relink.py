"""A project folder that was moved or copied works after one command, and prediction elsewhere leaves no records."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from qamoe.errors import UserError
from qamoe.registry import registry
from qamoe.serving import model_loader
from qamoe.tracking.relink import relink
from qamoe.tracking.runs import record_training

pytestmark = pytest.mark.integration
CHAMPION = "models:/qa-moe@champion"


@pytest.fixture
def project(tmp_path: Path, empty_records: Path, tiny_checkpoint: Callable[..., Path], monkeypatch: Any) -> Path:
    """A project folder, with a blank in its name, that has a champion."""
    from qamoe.tracking.mlflow_store import connect

    folder = tmp_path / "first place"
    folder.mkdir()
    shutil.copy(empty_records, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.chdir(folder)
    client = connect()
    run = client.get_run(record_training(client, tiny_checkpoint(tmp_path / "1"), "qa-moe"))
    client.set_registered_model_alias("qa-moe", "champion", registry._register(client, "qa-moe", run))
    return folder


@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_project_is_relinked_by_one_command(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    from qamoe.tracking.mlflow_store import connect

    moved = tmp_path / "second place é"
    if copied:
        shutil.copytree(project, moved)
    else:
        monkeypatch.chdir(tmp_path)
        project.rename(moved)
    monkeypatch.chdir(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved / 'mlflow.db'}")
    if not copied:
        with pytest.raises(UserError, match=r"first place.*qamoe relink"), model_loader.located(CHAMPION, None):
            pass
    assert "first%20place" in relink()
    with model_loader.located(CHAMPION, None) as located:
        assert located.folder.is_relative_to(moved)
    served = model_loader.open_model(CHAMPION, None)
    assert served.registered == ("qa-moe", "1")
    assert registry.fetch("qa-moe", "1", tmp_path / "fetched").is_dir()
    client = connect()
    (version,) = client.search_model_versions("name = 'qa-moe'")
    assert Path(unquote(urlsplit(client.get_run(version.run_id).info.artifact_uri).path)).is_relative_to(moved)
    with sqlite3.connect(moved / "mlflow.db") as store:
        addresses = "\n".join(store.iterdump())
        assert "first%20place" not in addresses
        assert "/first place/" not in addresses
    before = (moved / "mlflow.db").read_bytes()
    assert "already" in relink()
    assert (moved / "mlflow.db").read_bytes() == before


def test_what_cannot_be_relinked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(UserError, match=r"mlflow\.db"):
        relink()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(UserError, match="mlartifacts"):
        relink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1") as refusal:
        relink()
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("address", [CHAMPION, "models:/qa-moe@latest", "models:/qa-moe/1"])
def test_prediction_where_there_are_no_records_creates_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="qa-moe"), model_loader.located(address, None):
        pass
    assert list(tmp_path.iterdir()) == []
