"""Replace media files named in rows by their features, for programs that load the model, but never for a server."""

import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.errors import UserError
from qamoe.extractors.registry import extractors_of, recogniser_of
from qamoe.inference.extraction_worker import extract_file
from qamoe.inference.predict import clip_row
from qamoe.media.decode import ClipError, contents
from qamoe.models.checkpoint_config import CheckpointConfig

INPUTS = ("path", "start_s", "end_s")
_WORDS = ("text", "tokens")
# MLflow's server modules: a program that has loaded one of them is a server.
_SERVERS = ("mlflow.pyfunc.scoring_server.app", "mlflow.pyfunc.stdin_server")


def in_a_server() -> bool:
    """Return whether MLflow serves the model from this process (mlflow models serve, its container, a Spark worker)."""
    main_file = getattr(sys.modules["__main__"], "__file__", None) or ""
    return any(name in sys.modules or main_file.endswith(f"{name.replace('.', '/')}.py") for name in _SERVERS)


def with_features(config: CheckpointConfig, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows for qamoe.inference.predict, with features extracted from the files in the column `path`.

    `start_s` and `end_s` (seconds) are optional. Without audio, or without a face in its frames, a file lacks that
    modality. A clip whose text is not given has the words of its voice, if speech recognition is installed. Raises
    UserError for a file that cannot be read, and for a model whose corpus has ready-made features.
    """
    if "path" not in rows:
        return rows
    extractors = extractors_of(config)
    if not extractors:
        raise UserError("This model was trained on ready-made features and cannot read media files; pass features.")
    recogniser = recogniser_of(config)
    clips: list[dict[str, Any]] = rows.drop(columns=[name for name in INPUTS if name in rows]).to_dict("records")  # type: ignore[assignment]
    for number, clip in enumerate(clips):
        path = rows["path"].iloc[number]
        if isinstance(path, str):
            start_s, end_s = (_seconds(rows, number, name) for name in ("start_s", "end_s"))
            try:
                contents(Path(path))
            except ClipError as error:
                raise UserError(f"Row {number}: {path}: {error}.") from None
            wanted = dict(extractors)
            if not isinstance(recogniser, str) and not _has_words(clip):
                wanted["text"] = recogniser
            features = extract_file(Path(path), wanted, start_s or 0.0, end_s).frames
            clip.update(clip_row(config, None, features)[0] if "text" in wanted else features)
        elif not pd.isna(path):
            raise UserError(f"Row {number}: path is {type(path).__name__}; it must be a string or empty.")
    names = sorted({name for clip in clips for name in clip})
    columns = {name: pd.Series([clip.get(name) for clip in clips], rows.index, object) for name in names}
    return pd.DataFrame(columns, rows.index)


def _has_words(clip: dict[str, Any]) -> bool:
    return any(not (value is None or value is pd.NA or isinstance(value, float)) for value in map(clip.get, _WORDS))


def _seconds(rows: pd.DataFrame, number: int, name: str) -> float | None:
    value = rows[name].iloc[number] if name in rows else None
    if value is None or pd.isna(value):
        return None
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"Row {number}: {name} is {value!r}; it must be a number of seconds of at least 0, or empty.")
    return float(value)
