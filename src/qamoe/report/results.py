"""Read the outputs of evaluate and train: cells and records of all runs at once, predictions on demand.

A slice of one model may hold a million rows, so predictions are read when needed and not kept.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qamoe.errors import UserError
from qamoe.models.checkpoint_config import CheckpointConfig, read_config
from qamoe.report import tables

PREDICTIONS = "predictions.parquet"
PERMUTED_QUALITY = "broken.parquet"
DIAGNOSTIC = "diagnostic.parquet"
CELLS = "cells.parquet"


Seed = int | str  # the name of a run's folder, as an integer if it is one
Folders = dict[str, dict[Seed, Path]]  # model -> seed -> evaluate/<model>/<seed>


class Run(NamedTuple):
    """The output of train for one run: model.json, and the lines of history.jsonl, one per epoch."""

    model: str
    seed: Seed
    config: CheckpointConfig
    epochs: list[dict[str, Any]]


class Results(NamedTuple):
    """All runs: cells with the columns model and seed, the folders of predictions, and the output of train per run."""

    cells: pd.DataFrame
    folders: Folders
    runs: list[Run]

    @property
    def models(self) -> list[str]:
        return list(self.folders)

    def slices_of(self, model: str) -> list[str]:
        return list(self.cells.loc[self.cells["model"] == model, "slice"].unique())

    def config(self, model: str, seed: Seed) -> CheckpointConfig:
        """Return model.json of one run."""
        return next(run.config for run in self.runs if (run.model, run.seed) == (model, seed))

    def predictions(
        self,
        model: str,
        slice: str | None = None,
        cells: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        file: str = PREDICTIONS,
    ) -> pd.DataFrame:
        """Read the predictions of all seeds of a model, with a column seed: all, those of one slice or of some cells.

        columns: those to read; None for all.
        """
        wanted = [("slice", "==", slice)] if slice else [("cell", "in", list(cells))] if cells else None
        parts = [
            read_table(folder / file, columns=list(columns) if columns else None, filters=wanted).assign(seed=seed)
            for seed, folder in self.folders[model].items()
        ]
        return pd.concat(parts, ignore_index=True)

    def compared(
        self, model: str, slice: str | None = None, cells: Sequence[str] | None = None, file: str = PREDICTIONS
    ) -> pd.DataFrame:
        """Read predictions as `predictions` does, only with the columns that comparisons need."""
        names = columns_of(next(iter(self.folders[model].values())) / file)
        kept = {"clip_id", "source", "slice", "cell", "draw", "target", "prediction", "variance"}
        kept |= {"within", "intervention"}  # which rows of the files of permuted quality and of the diagnostic
        return self.predictions(
            model, slice, cells, [n for n in names if n in kept or n.startswith(("severity_", "p_", "has_"))], file
        )

    def has(self, model: str, column: str) -> bool:
        """Return whether the predictions of a model have this column with at least one value."""
        path = next(iter(self.folders[model].values())) / PREDICTIONS
        return column in columns_of(path) and bool(read_table(path, columns=[column])[column].notna().any())


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a parquet file that evaluate wrote, as pandas does. Raises UserError if it is damaged."""
    with _damage_named(path):
        return pd.read_parquet(path, **options)


def columns_of(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with _damage_named(path):
        return list(pq.read_schema(path).names)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    from pyarrow import ArrowInvalid

    try:
        yield
    except ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a whole parquet file ({reason}); delete {path.parent} and evaluate again"
        ) from error


def read(evaluated: Path, trained: Path, models: Collection[str] | None = None) -> Results:
    """Read evaluate/<model>/<seed>/ and train/<model>/<seed>/. Raises UserError for no runs or a missing file."""
    folders = evaluations(evaluated, models)
    runs: list[Run] = []
    for model, seeds in folders.items():
        for seed, folder in seeds.items():
            record = trained / model / folder.name
            for needed in (folder / PREDICTIONS, record / "model.json"):
                if not needed.is_file():
                    stage = "evaluate" if needed.parent == folder else "train"
                    raise UserError(f"{needed} does not exist, but {folder / CELLS} does; run the stage {stage} again")
            history = record / "history.jsonl"
            lines = history.read_text().splitlines() if history.is_file() else []
            epochs = [json.loads(text) for text in lines if text.strip()]
            config = read_config(record)
            assert config is not None  # the loop above checked the file
            runs.append(Run(model, seed, config, epochs))
    return Results(read_cells(folders), folders, runs)


def evaluations(evaluated: Path, models: Collection[str] | None = None) -> Folders:
    """Return model -> seed -> folder of every finished evaluation. Raises UserError if no evaluation is found.

    models: those to include; None for all.
    """
    runs = [f.parent for f in evaluated.glob(f"*/*/{CELLS}") if not f.parent.parent.name.startswith(".")]
    runs = [f for f in runs if models is None or f.parent.name in models]
    runs.sort(key=lambda f: (tables.model_order(f.parent.name), int(f.name) if f.name.isdigit() else 0, f.name))
    if not runs:
        raise UserError(f"no <model>/<seed>/{CELLS} in {evaluated}; run the stage evaluate first")
    folders: Folders = {}
    for folder in runs:
        seed = int(folder.name) if folder.name.isdigit() else folder.name
        folders.setdefault(folder.parent.name, {})[seed] = folder
    return folders


def read_cells(folders: Folders) -> pd.DataFrame:
    """Concatenate cells.parquet of every run, with the columns model and seed."""
    return pd.concat(
        [
            read_table(folder / CELLS).assign(model=model, seed=seed)
            for model, seeds in folders.items()
            for seed, folder in seeds.items()
        ],
        ignore_index=True,
    )
