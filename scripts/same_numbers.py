"""Check that two artifacts folders hold the same numbers: `python scripts/same_numbers.py OLD NEW`.

Compares every value of report/summary.json with ==, and every row of evaluate/<model>/<seed>/*.parquet. RENAMED lists
keys and columns with another name in NEW. Prints the number of equal values, or the differences with exit code 1.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from qamoe.errors import UserError, exit_on_user_error

# Regular expression -> replacement, for the keys of summary.json and the columns of the parquet files.
RENAMED: dict[str, str] = {}
_SHOWN = 20


def renamed(name: str) -> str:
    """Return the name in NEW of a name in OLD."""
    for old, new in RENAMED.items():
        name = re.sub(old, new, name)
    return name


def summaries(old: Path, new: Path) -> Iterator[str]:
    """Yield the differences between two summary.json."""
    before = {renamed(key): value for key, value in json.loads(old.read_text()).items()}
    after: dict[str, Any] = json.loads(new.read_text())
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after:
            yield f"{new}: {key} is only in the {'old' if key in before else 'new'} one"
        elif before[key] != after[key]:
            yield f"{new}: {key} was {before[key]!r}, is {after[key]!r}"


def _plain(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the column with lists, such as routing weights, replaced by their bytes."""
    lists = column.map(lambda value: isinstance(value, np.ndarray))
    return column.where(~lists, column[lists].map(lambda value: value.tobytes())) if lists.any() else column


def tables(old: Path, new: Path) -> Iterator[str]:
    """Yield the differences between two parquet files, value by value in the order of the rows."""
    before = pd.read_parquet(old).rename(columns=renamed)
    after = pd.read_parquet(new)
    if list(before.columns) != list(after.columns) or len(before) != len(after):
        yield (
            f"{new}: {len(after)} rows with the columns {list(after.columns)}, "
            f"before {len(before)} rows with the columns {list(before.columns)}"
        )
        return
    for column in after.columns:
        a, b = (_plain(table[column]) for table in (before, after))
        same = (a == b) | (a.isna() & b.isna())
        if not same.all():
            row = int((~same).to_numpy().argmax())
            yield (
                f"{new}: {column} differs in {int((~same).sum())} rows, first in row {row}: "
                f"was {before[column].iloc[row]!r}, is {after[column].iloc[row]!r}"
            )


def compare(old: Path, new: Path) -> tuple[list[str], int, int]:
    """Return the differences, and the numbers of summary values and table rows. Raises UserError without a report."""
    report = Path("report/summary.json")
    for folder in (old, new):
        if not (folder / report).is_file():
            raise UserError(f"{folder / report} does not exist")
    differences = list(summaries(old / report, new / report))
    values, rows = len(json.loads((new / report).read_text())), 0
    names = {path.relative_to(folder) for folder in (old, new) for path in folder.glob("evaluate/*/*/*.parquet")}
    for name in sorted(names):
        if not (old / name).is_file() or not (new / name).is_file():
            differences.append(f"{name} is only in the {'old' if (old / name).is_file() else 'new'} one")
            continue
        differences += tables(old / name, new / name)
        rows += pq.read_metadata(new / name).num_rows
    return differences, values, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="an artifacts folder")
    parser.add_argument("new", type=Path, help="the artifacts folder to compare with it")
    options = parser.parse_args()
    with exit_on_user_error("same_numbers.py"):
        differences, values, rows = compare(options.old, options.new)
    for line in differences[:_SHOWN]:
        print(line)
    if differences:
        sys.exit(f"{len(differences)} differences")
    print(f"{values} values of summary.json and {rows} rows of predictions and cells are equal")


if __name__ == "__main__":
    main()
