"""Rows that name media files -> rows with their features: for programs that load the model, never for a server."""

import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.errors import UserError
from qamoe.extractors.registry import extractors_of
from qamoe.inference.extraction_worker import extract_file
from qamoe.media.decode import ClipError, contents
from qamoe.models.checkpoint_config import CheckpointConfig

INPUTS = ("path", "start_s", "end_s")
# What MLflow runs to answer others' requests: a program that has loaded one of these is a server.
_SERVERS = ("mlflow.pyfunc.scoring_server.app", "mlflow.pyfunc.stdin_server")


def in_a_server() -> bool:
    """Whether MLflow serves the model from this process (mlflow models serve, a container of it, a Spark worker)."""
    started = getattr(sys.modules["__main__"], "__file__", None) or ""
    return any(name in sys.modules or started.endswith(f"{name.replace('.', '/')}.py") for name in _SERVERS)


def with_features(config: CheckpointConfig, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of qamoe.inference.predict that may have `path` in place of features, and `start_s` and `end_s` (seconds).

    Where a file has no sound, or no face in its pictures, that modality is missing. Raises UserError for a file that
    cannot be read at all, and for a model whose corpus came with ready features.
    """
    if "path" not in rows:
        return rows
    chosen = extractors_of(config)
    if not chosen:
        raise UserError("This model knows no media; give it features.")
    clips: list[dict[str, Any]] = rows.drop(columns=[name for name in INPUTS if name in rows]).to_dict("records")  # type: ignore[assignment]
    for number, clip in enumerate(clips):
        path = rows["path"].iloc[number]
        if isinstance(path, str):
            start_s, end_s = (_seconds(rows, number, name) for name in ("start_s", "end_s"))
            try:
                contents(Path(path))
            except ClipError as problem:
                raise UserError(f"Row {number}: {path}: {problem}.") from None
            clip.update(extract_file(Path(path), chosen, start_s or 0.0, end_s).frames)
        elif not pd.isna(path):
            raise UserError(f"Row {number}: path is {type(path).__name__}; allowed is a string, or nothing.")
    names = sorted({name for clip in clips for name in clip})
    columns = {name: pd.Series([clip.get(name) for clip in clips], rows.index, object) for name in names}
    return pd.DataFrame(columns, rows.index)


def _seconds(rows: pd.DataFrame, number: int, name: str) -> float | None:
    value = rows[name].iloc[number] if name in rows else None
    if value is None or pd.isna(value):
        return None
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"Row {number}: {name} is {value!r}; allowed are seconds from 0 on, or nothing.")
    return float(value)
