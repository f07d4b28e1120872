"""Whether two artifacts folders hold the same numbers: `python scripts/same_numbers.py OLD NEW`.

Compares every value of report/summary.json with ==, and every row of evaluate/<model>/<seed>/*.parquet. A key or a
column that has another name in NEW stands in RENAMED. Prints how much was equal, or the differences with exit code 1.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

# Old name -> new name, of summary keys and of columns of the parquet files: a regular expression and what replaces it.
RENAMED: dict[str, str] = {}
_SHOWN = 20


def renamed(name: str) -> str:
    """The name of today."""
    for old, new in RENAMED.items():
        name = re.sub(old, new, name)
    return name


def summaries(old: Path, new: Path) -> Iterator[str]:
    """What differs between two summary.json."""
    before = {renamed(key): value for key, value in json.loads(old.read_text()).items()}
    after: dict[str, Any] = json.loads(new.read_text())
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after:
            yield f"{new}: {key} is only in the {'old' if key in before else 'new'} one"
        elif before[key] != after[key]:
            yield f"{new}: {key} was {before[key]!r}, is {after[key]!r}"


def _plain(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Lists, such as a clip's routing, as their bytes."""
    lists = column.map(lambda value: isinstance(value, np.ndarray))
    return column.where(~lists, column[lists].map(lambda value: value.tobytes())) if lists.any() else column


def tables(old: Path, new: Path) -> Iterator[str]:
    """What differs between two parquet files, value by value and in the order of the rows."""
    before = pd.read_parquet(old).rename(columns=renamed)
    after = pd.read_parquet(new)
    if list(before.columns) != list(after.columns) or len(before) != len(after):
        yield f"{new}: {len(before)} rows of {list(before.columns)} were, {len(after)} of {list(after.columns)} are"
        return
    for column in after.columns:
        a, b = (_plain(table[column]) for table in (before, after))
        same = (a == b) | (a.isna() & b.isna())
        if not same.all():
            row = int((~same).to_numpy().argmax())
            yield (
                f"{new}: {column} differs in {int((~same).sum())} rows, first in row {row}: "
                f"{before[column].iloc[row]!r} was, {after[column].iloc[row]!r} is"
            )


def compare(old: Path, new: Path) -> tuple[list[str], int, int]:
    """The differences, and how many summary values and table rows were compared."""
    report = Path("report/summary.json")
    found = list(summaries(old / report, new / report))
    values, rows = len(json.loads((new / report).read_text())), 0
    names = {path.relative_to(folder) for folder in (old, new) for path in folder.glob("evaluate/*/*/*.parquet")}
    for name in sorted(names):
        if not (old / name).is_file() or not (new / name).is_file():
            found.append(f"{name} is only in the {'old' if (old / name).is_file() else 'new'} one")
            continue
        found += tables(old / name, new / name)
        rows += pq.read_metadata(new / name).num_rows
    return found, values, rows


def main() -> None:
    """The command."""
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/same_numbers.py OLD NEW, two artifacts folders")
    differences, values, rows = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    for line in differences[:_SHOWN]:
        print(line)
    if differences:
        sys.exit(f"{len(differences)} differences")
    print(f"{values} values of summary.json and {rows} rows of predictions and cells are equal")


if __name__ == "__main__":
    main()
