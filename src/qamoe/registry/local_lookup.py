"""Find a registered version on this machine without importing MLflow, which takes most of the start-up time.

This works if the store is an SQLite file and the files of the version are in a local folder. Otherwise, and on
anything unexpected, return None; the caller then uses MLflow, which also reports errors.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from qamoe.config.params import registry_name
from qamoe.tracking.mlflow_store import SQLITE, uri

# The tables of the MLflow version that pyproject.toml pins. Stores with several workspaces are left to MLflow.
_VERSION = """
    SELECT version, COALESCE(NULLIF(storage_location, ''), source) FROM model_versions
    WHERE name = :name AND current_stage <> 'Deleted_Internal'
    AND version = COALESCE(
        :version, (SELECT version FROM registered_model_aliases WHERE name = :name AND alias = :alias)
    )
    AND NOT EXISTS (SELECT 1 FROM registered_models WHERE workspace <> 'default')
"""


def champion_address(params: Path) -> str:
    """Return models:/NAME@champion for the registry.name of a parameter file. Raises UserError where it has none."""
    return f"models:/{registry_name(params)}@champion"


def version_and_folder(name: str, version: str | None, alias: str | None) -> tuple[str, Path] | None:
    """Return a version and the folder of its checkpoint, by number or else by alias; None if MLflow must be used."""
    if not uri().startswith(SQLITE):
        return None
    database = f"file:{quote(uri().removeprefix(SQLITE))}?mode=ro"
    parameters = {"name": name, "version": None if version is None else int(version), "alias": alias}
    try:
        with closing(sqlite3.connect(database, uri=True)) as store:
            row = store.execute(_VERSION, parameters).fetchone()
    except (sqlite3.Error, OverflowError):  # OverflowError: the version number exceeds 64 bits
        return None
    if row is None:
        return None
    source = urlsplit(row[1])
    folder = Path(unquote(source.path)) / "artifacts"
    return (str(row[0]), folder) if source.scheme == "file" and not source.netloc and folder.is_dir() else None
