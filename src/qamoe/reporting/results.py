"""What evaluate and train wrote about all runs, read once for the report."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qamoe.errors import Refused
from qamoe.reporting import tables


class Results(NamedTuple):
    """All runs: cells and predictions with model and seed in front, and per run what train wrote about it."""

    cells: pd.DataFrame
    predictions: dict[str, pd.DataFrame]  # model -> rows of all seeds
    runs: list[dict[str, Any]]  # model, seed, config, epochs


def read(evaluated: Path, trained: Path) -> Results:
    """Read evaluate/<model>/<seed>/ and train/<model>/<seed>/; Refused where there is nothing, or half of it."""
    folders = [f.parent for f in evaluated.glob("*/*/cells.parquet") if not f.parent.parent.name.startswith(".")]
    folders.sort(key=lambda f: (tables.model_order(f.parent.name), int(f.name) if f.name.isdigit() else 0, f.name))
    if not folders:
        raise Refused(f"{evaluated} holds no <model>/<seed>/cells.parquet; run the stage evaluate first.")
    cells: list[pd.DataFrame] = []
    predictions: dict[str, list[pd.DataFrame]] = {}
    runs: list[dict[str, Any]] = []
    for folder in folders:
        model, seed = folder.parent.name, int(folder.name) if folder.name.isdigit() else folder.name
        record = trained / model / folder.name
        for needed in (folder / "predictions.parquet", record / "model.json"):
            if not needed.is_file():
                raise Refused(f"{needed} is missing beside {folder / 'cells.parquet'}; run the stage that writes it.")
        cells.append(pd.read_parquet(folder / "cells.parquet").assign(model=model, seed=seed))
        predictions.setdefault(model, []).append(pd.read_parquet(folder / "predictions.parquet").assign(seed=seed))
        history = record / "history.jsonl"
        lines = history.read_text().splitlines() if history.is_file() else []
        runs.append(
            {
                "model": model,
                "seed": seed,
                "config": json.loads((record / "model.json").read_text()),
                "epochs": [json.loads(text) for text in lines if text.strip()],
            }
        )
    together = {model: pd.concat(parts, ignore_index=True) for model, parts in predictions.items()}
    return Results(pd.concat(cells, ignore_index=True), together, runs)
