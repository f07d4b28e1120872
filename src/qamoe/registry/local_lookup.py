"""Find a registered version on this machine without importing MLflow, which takes most of the start-up time.

This works if the store is an SQLite file and the files of the version are in a local folder. Otherwise, and on
anything unexpected, return None; the caller then uses MLflow, which also reports errors. What is not registered is
reported here, because a base installation has no MLflow.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from qamoe.config.params import registry_name
from qamoe.errors import UserError
from qamoe.tracking.mlflow_store import SQLITE, masked, uri

# The tables of the MLflow version that pyproject.toml pins. Stores with several workspaces are left to MLflow.
_WORKSPACES = "SELECT 1 FROM registered_models WHERE workspace <> 'default'"
_REGISTERED = "SELECT version FROM model_versions WHERE name = :name AND current_stage <> 'Deleted_Internal'"
_VERSION = f"""
    SELECT version, COALESCE(NULLIF(storage_location, ''), source) FROM model_versions
    WHERE name = :name AND current_stage <> 'Deleted_Internal'
    AND version = COALESCE(
        :version, (SELECT version FROM registered_model_aliases WHERE name = :name AND alias = :alias)
    )
    AND NOT EXISTS ({_WORKSPACES})
"""


def champion_address(params: Path) -> str:
    """Return models:/NAME@champion for the registry.name of a parameter file. Raises UserError where it has none."""
    return f"models:/{registry_name(params)}@champion"


def version_and_folder(name: str, version: str | None, alias: str | None) -> tuple[str, Path] | None:
    """Return a version and the folder of its checkpoint, by number or else by alias; None if MLflow must be used.

    Raises UserError if the store has no such version, or does not exist yet.
    """
    if not uri().startswith(SQLITE):
        return None
    path = Path(uri().removeprefix(SQLITE))
    if not path.exists():  # MLflow would create it
        raise not_registered(name, version, alias, [])
    if alias == "latest":  # MLflow's own name for the newest version
        return None
    parameters = {"name": name, "version": None if version is None else int(version), "alias": alias}
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as store:
            row = store.execute(_VERSION, parameters).fetchone()
            if row is None:
                in_workspaces = store.execute(_WORKSPACES).fetchone()
                registered = [str(found) for (found,) in store.execute(_REGISTERED, {"name": name})]
                names = [str(found) for (found,) in store.execute("SELECT name FROM registered_models ORDER BY name")]
    except (sqlite3.Error, OverflowError):  # OverflowError: the version number exceeds 64 bits
        return None
    if row is None:
        if in_workspaces:
            return None
        raise not_registered(name, version, alias, registered, names)
    source = urlsplit(row[1])
    folder = Path(unquote(source.path)) / "artifacts"
    if source.scheme != "file" or source.netloc:
        return None
    if not folder.is_dir():
        raise UserError(
            f"The files of {name} version {row[0]} are not in {folder}; if the project folder was moved, run"
            " `qamoe relink`, which makes the records name them where they are now."
        )
    return str(row[0]), folder


def not_registered(
    name: str, version: str | None, alias: str | None, registered: Sequence[str], names: Sequence[str] = ()
) -> UserError:
    """Return the error for a model, version or alias that the store lacks.

    registered: the versions of that model. names: all registered models, if known.
    """
    store = f"the records at {masked(uri())}"
    if not registered:
        others = f" (registered models: {', '.join(names)})" if names else ""
        return UserError(f"No version of {name} is registered in {store}{others}; `qamoe promote` registers the first.")
    versions = ", ".join(sorted(registered, key=int))
    what = f"alias {alias!r}" if version is None else f"version {version}"
    if version is None and alias == "champion":
        return UserError(
            f"{name} has no champion in {store}: none of its versions ({versions}) passed the promotion gate;"
            f" models:/{name}/{registered[-1]} names one of them."
        )
    return UserError(f"{name} has no {what} in {store}; registered versions: {versions}.")
