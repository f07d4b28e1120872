"""A registered version that lies on this machine, found without MLflow, whose import takes longer than all the rest.

Only where the store is an SQLite file and the version's files are in a folder; everywhere else, and wherever anything
is not as expected, the answer is None and MLflow is asked, which also says what is wrong.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from qamoe.config.params import registry_name
from qamoe.tracking.mlflow_store import SQLITE, uri

# MLflow's own tables, as of the version that pyproject.toml asks for. Versions of other workspaces are MLflow's affair.
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
    """The version of this number, or else of this alias, and the folder of its checkpoint; None: ask MLflow."""
    if not uri().startswith(SQLITE):
        return None
    database = f"file:{quote(uri().removeprefix(SQLITE))}?mode=ro"
    wanted = {"name": name, "version": None if version is None else int(version), "alias": alias}
    try:
        with closing(sqlite3.connect(database, uri=True)) as store:
            row = store.execute(_VERSION, wanted).fetchone()
    except (sqlite3.Error, OverflowError):  # OverflowError: a version of more digits than a table holds
        return None
    if row is None:
        return None
    source = urlsplit(row[1])
    folder = Path(unquote(source.path)) / "artifacts"
    return (str(row[0]), folder) if source.scheme == "file" and not source.netloc and folder.is_dir() else None
