"""Print the experiments of `dvc exp run`: their errors, and the parameters that differ.

`dvc exp show --only-changed` is too wide for a terminal once a folder artifacts-NAME/ exists: its files have the same
keys as those of the main pipeline, so each header gets a path. Each changed file of code adds a column of digests.
"""

import csv
import os
import subprocess
import sys

from rich.console import Console
from rich.table import Table

# A column is a dependency, or a parameter or metric; the file is before its name where two files have that name.
_OTHER = r"(?!artifacts/report/metrics\.json:|params\.yaml:).*/|data$"
_OF_DVC = ("Experiment", "rev", "typ", "Created", "Executor", "parent")


def table(shown: str) -> Table:
    """Return the CSV of `dvc exp show` as a table: a row per experiment, a column per number or parameter."""
    printed = Table(box=None, header_style="bold")
    rows = list(csv.DictReader(shown.splitlines()))
    columns = [name for name in (rows[0] if rows else ()) if name not in _OF_DVC]
    for header in ("experiment", "created", *(name.rpartition(":")[2] for name in columns)):
        printed.add_column(header, overflow="fold")
    for row in rows:
        created = row["Created"].replace("T", " ")[:16]
        printed.add_row(row.get("Experiment") or row["rev"], created, *(row[name] for name in columns))
    return printed


def main() -> None:
    command = [sys.executable, "-m", "dvc", "exp", "show", "--csv", "--only-changed", "--drop", _OTHER, *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"DVC_PAGER": ""})
    if done.returncode:
        sys.exit(done.returncode)
    Console().print(table(done.stdout))


if __name__ == "__main__":
    main()
