"""Make the records of a project folder that was moved or copied name its files where they are now.

MLflow stores absolute paths. Records that are an SQLite file have their files in `mlartifacts` next to it.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qamoe.errors import UserError
from qamoe.tracking.mlflow_store import SQLITE, exclusive_lock, masked, uri

# The columns that hold addresses of files, in the MLflow version that pyproject.toml pins.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_FOLDER = "/mlartifacts/"


def relink() -> str:
    """Rewrite the addresses of files in the records; return a sentence on what was done. Idempotent.

    Raises UserError where the records are not an SQLite file with its files next to it.
    """
    if not uri().startswith(SQLITE):
        raise UserError(f"The records are at {masked(uri())}; only those of an SQLite file name files by their folder.")
    path = Path(uri().removeprefix(SQLITE)).resolve()
    if not path.is_file():
        raise UserError(f"There are no records at {path}; run qamoe in the folder that was moved.")
    if not (path.parent / _FOLDER.strip("/")).is_dir():
        raise UserError(f"{path.parent} has no folder {_FOLDER.strip('/')}; move it together with {path.name}.")
    new = path.parent.as_uri()
    with exclusive_lock(), closing(sqlite3.connect(path)) as store, store:
        found = [str(location) for (location,) in store.execute("SELECT artifact_location FROM experiments")]
        roots = {location.partition(_FOLDER)[0] for location in found if _FOLDER in location} - {new}
        changed = 0
        for old in sorted(roots):
            pairs = [(old, new), (unquote(urlsplit(old).path), str(path.parent))]  # addresses, and plain paths
            for table, column in _ADDRESSES:
                for before, after in pairs:
                    changed += store.execute(
                        f"UPDATE {table} SET {column} = :after || substr({column}, length(:before) + 1) "
                        f"WHERE substr({column}, 1, length(:before) + 1) = :before || '/'",
                        {"before": before, "after": after},
                    ).rowcount
    if not roots:
        return f"The records at {path} name the files next to them already."
    return f"{changed} addresses of files changed from {', '.join(sorted(roots))} to {new}."
