"""The reliability spectrum, protocol version 1: plan the cells, measure predictions once, aggregate everything else.

A cell is one way of degrading the whole test split; a slice is a named set of cells. Predictions are kept row by row;
every metric, interval and comparison is computed from them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from qamoe.degradation.draws import MODALITIES
from qamoe.degradation.frames import KINDS, Reference, State, valid_tokens
from qamoe.degradation.views import View, alike
from qamoe.evaluation import metrics
from qamoe.features.batch import Batch
from qamoe.files import written_aside
from qamoe.params import Evaluate
from qamoe.training.checkpoint import Trained
from qamoe.training.views import Views

PROTOCOL = 1
SEVERITIES = tuple(round(0.1 * step, 1) for step in range(11))
_BATCH = 128


@dataclass(frozen=True)
class Cell:
    """One cell and its draws. `severity` is NaN where clips draw their own (slice mixed)."""

    slice: str
    name: str
    kind: str
    severity: float
    views: tuple[View, ...]


def plan(slices: Iterable[str], params: Evaluate) -> list[Cell]:
    """The cells of the named slices in a fixed order."""
    cells: list[Cell] = []
    for name in slices:
        if name == "clean":
            cells.append(Cell(name, "clean", "clean", 0.0, (alike("clean", 0.0, params.seed, 0),)))
        elif name == "mixed":
            cells.append(mixed(params.seed, params.mixed_draws))
        else:
            for severity in SEVERITIES:
                draws = params.draws if severity > 0 else 1
                views = tuple(alike(name, severity, params.seed, draw) for draw in range(draws))
                cells.append(Cell(name, f"{name}-{severity:.1f}", name, severity, views))
    return cells


def views(cells: Iterable[Cell]) -> list[View]:
    """Every view of the cells, in order."""
    return [view for cell in cells for view in cell.views]


def mixed(seed: int, draws: int) -> Cell:
    """Each clip and modality draws its own kind and severity: the training distribution without its clean share."""
    return Cell("mixed", "mixed", "mixed", float("nan"), tuple(View(seed, draw) for draw in range(draws)))


def measure(trained: Sequence[Trained], split: Views, cells: Sequence[Cell], device: str) -> list[pd.DataFrame]:
    """Predictions of several checkpoints of one corpus on the same degraded clips, a frame of rows each.

    `split` holds the views of all cells, in the order of `views(cells)`.
    """
    store = split.store
    pairs = [(cell, view) for cell in cells for view in cell.views]
    order = sorted(range(len(store)), key=lambda row: (int(store.lengths("text")[row]), row))
    parts: list[list[pd.DataFrame]] = [[] for _ in trained]
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = split.clean(rows)
        about = pd.DataFrame(
            {
                "clip_id": [store.clip_ids[row] for row in rows],
                "source": [store.sources[row] for row in rows],
                "target": batch.target.numpy(),  # type: ignore[union-attr]
                **_valid_frames(batch, split.references),
            }
        )
        for place, (cell, view) in enumerate(pairs):
            degraded, lost, state = split.degraded(place, rows)
            where: dict[str, Any] = {"slice": cell.slice, "cell": cell.name, "draw": view.number}
            conditions = about.assign(**where, **_conditions(batch, lost, state))
            for found, model in zip(parts, trained, strict=True):
                found.append(conditions.assign(**_predicted(model, degraded.to(device))))
    return [_in_order(pd.concat(found, ignore_index=True), cells) for found in parts]


def _valid_frames(batch: Batch, references: dict[str, Reference]) -> dict[str, np.ndarray]:
    counts = {}
    for modality in MODALITIES:
        valid = batch.mask.get(modality)
        if valid is None:
            counts[f"frames_{modality}"] = np.zeros(len(batch), np.int64)
            continue
        if modality == "text":
            valid = valid_tokens(batch.x["text"], valid, references["text"].special)
        counts[f"frames_{modality}"] = valid.sum(1).numpy()
    return counts


def _conditions(batch: Batch, lost: Tensor, state: State) -> dict[str, Any]:
    """The columns that say what was done to each clip."""
    columns: dict[str, Any] = {}
    for place, modality in enumerate(MODALITIES):
        names = np.array([*KINDS, "clean"])[state.kind[:, place].numpy()]
        here = modality in batch.x
        columns[f"kind_{modality}"] = names if here else "absent"
        columns[f"severity_{modality}"] = state.severity[:, place].numpy() if here else np.nan
        columns[f"lost_{modality}"] = lost[:, place].numpy() if here else np.nan
    return columns


def _predicted(trained: Trained, batch: Batch) -> dict[str, Any]:
    result = trained.predict(batch)
    columns: dict[str, Any] = {
        "prediction": result.value.float().cpu().numpy(),
        "variance": result.variance.float().cpu().numpy(),
    }
    present = torch.stack([batch.mask[m].any(1) for m in trained.config["modalities"]], 1)
    trust = None if result.r is None else trained.trust(result.r, present)
    for modality in MODALITIES:
        if result.r is None or trust is None or modality not in trained.config["modalities"]:
            columns[f"r_{modality}"] = columns[f"trust_{modality}"] = np.nan
            continue
        place = trained.config["modalities"].index(modality)
        columns[f"r_{modality}"] = result.r[:, place].float().cpu().numpy()
        columns[f"trust_{modality}"] = trust[:, place].float().cpu().numpy()
    columns["routing"] = None if result.routing is None else list(result.routing.mean(1).float().cpu().numpy())
    return columns


def _in_order(rows: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
    place = {cell.name: i for i, cell in enumerate(cells)}
    return rows.sort_values(
        ["cell", "draw", "clip_id"], key=lambda c: c.map(place) if c.name == "cell" else c, ignore_index=True
    )


def write_predictions(rows: pd.DataFrame, path: Path) -> None:
    """Write predictions.parquet, aside first."""
    schema = pa.schema(
        [(c, pa.string()) for c in ("clip_id", "source", "slice", "cell")]
        + [("draw", pa.int32())]
        + [(c, pa.float64()) for c in ("target", "prediction", "variance")]
        + [
            (f"{column}_{m}", kind)
            for m in MODALITIES
            for column, kind in (
                ("kind", pa.string()),
                ("severity", pa.float32()),
                ("lost", pa.float32()),
                ("frames", pa.int32()),
                ("r", pa.float32()),
                ("trust", pa.float32()),
            )
        ]
        + [("routing", pa.list_(pa.float32()))]
    )
    with written_aside(path) as aside:
        pq.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False), aside)


def aggregate(predictions: pd.DataFrame, cells: Sequence[Cell], sigmas: dict[str, float]) -> pd.DataFrame:
    """Predictions -> one row a (cell, draw, metric). Raises ValueError where a cell, draw or clip is missing."""
    clips = predictions["clip_id"].nunique()
    groups = dict(list(predictions.groupby(["cell", "draw"], sort=False)))
    rows = []
    for cell in cells:
        for view in cell.views:
            here = groups.get((cell.name, view.number))
            if here is None or here["clip_id"].nunique() != clips or len(here) != clips:
                seen = 0 if here is None else len(here)
                raise ValueError(f"cell {cell.name}, draw {view.number}: {seen} predictions of {clips} clips")
            shared: dict[str, Any] = {
                "slice": cell.slice,
                "cell": cell.name,
                "kind": cell.kind,
                "modalities": "+".join(MODALITIES),
            }
            shared |= {"severity": cell.severity, "draw": view.number, "n": clips}
            rows += [{**shared, "metric": m, "value": v} for m, v in metrics.of_predictions(here, sigmas).items()]
    return pd.DataFrame(rows)
