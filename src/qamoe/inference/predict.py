"""Raw clips -> scores with their intervals, or classes with their probabilities, and how far each
modality was trusted: what every way of serving calls.

Cleaning, normalising and truncation are those of the checkpoint's own training split (model.json), so that a raw
clip meets the model as its clips of training did.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from qamoe.config.task import TaskDescription, is_classification
from qamoe.data.batch import Batch, pad
from qamoe.data.normalise import Columns, clean
from qamoe.data.stats import FrameStats, frame_stats, text_is_vectors
from qamoe.errors import UserError
from qamoe.extractors.huggingface import HuggingFace
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.tokens import Tokens
from qamoe.models.calibration import tempered
from qamoe.models.checkpoint import Trained
from qamoe.models.checkpoint_config import Calibration, CheckpointConfig
from qamoe.models.heads import Prediction
from qamoe.rng import MODALITIES, clip_key

INPUTS = ("text", "tokens", "audio", "vision")
RELIABILITY = tuple(f"{name}_{m}" for name in ("trust", "r") for m in MODALITIES)
NUMBERS = ("score", "low_90", "high_90", "variance", *RELIABILITY)
_BATCH = 64
Change = Callable[[Batch], Batch]


def numbers(task: TaskDescription) -> tuple[str, ...]:
    """The columns of numbers that a model of this task answers with: NUMBERS, or p_<class> in place of a score."""
    if is_classification(task):
        return (*(f"p_{name}" for name in task["classes"]), *RELIABILITY)
    return NUMBERS


def outputs(task: TaskDescription) -> list[str]:
    """The columns of `predict`, in order."""
    return ["class"] * is_classification(task) + [*numbers(task), "routing"]


def predict(trained: Trained, rows: pd.DataFrame, device: str = "cpu", change: Change | None = None) -> pd.DataFrame:
    """One row of answers for each row, with the same index and the columns of `outputs`.

    `rows` has some of the columns text (str), tokens (ready ids, which win over text), audio and vision: raw frames
    (T, D) as arrays or nested lists, with the columns that the extractor gives. None, NaN, an empty text and no
    frames all mean that the modality is missing; a modality that the model does not know is not looked at.

    score, low_90 and high_90 are in label units and not clipped to the label's range; the interval is the conformal
    one of the validation split. p_<class> are probabilities at the temperature of that split, class is the name of the
    most probable one. trust is in [0, 1]; trust, r and routing (the share of each expert, summing to 1)
    are empty where a model has none. A row's prediction depends on the rows beside it only by float rounding.
    `change` is given the standardised frames and token ids before text is encoded (a degradation, to show what it
    does); the keys of its draws are those of the index, as clip ids.
    Raises UserError where a value is no such thing.
    """
    clips = prepared(trained.config, rows)
    keys = torch.tensor([clip_key(str(name)) for name in rows.index], dtype=torch.int64).reshape(-1, 2)
    parts = []
    for first in range(0, len(clips), _BATCH):
        here = slice(first, first + _BATCH)
        batch = _batch(trained.config["modalities"], clips[here], keys[here]).to(device)
        parts.append(_predicted(trained, change(batch) if change else batch))
    task = trained.config["task"]
    names = numbers(task)
    columns = {name: np.concatenate([part[name] for part in parts] or [np.zeros(0)]) for name in names}
    found = pd.DataFrame(columns, index=rows.index)
    if is_classification(task):
        best = found[[f"p_{name}" for name in task["classes"]]].to_numpy().argmax(1)
        found.insert(0, "class", pd.Series(np.array(task["classes"], object)[best], rows.index, object))
    routing = [share for part in parts for share in part["routing"]]
    found["routing"] = pd.Series(routing, rows.index, object)
    return found


def prepared(config: CheckpointConfig, rows: pd.DataFrame) -> list[dict[str, np.ndarray]]:
    """Rows as `predict` takes them -> each clip as its model's modalities: token ids (T,) int64 and standardised frames
    (T, kept) float32. `config` is its model.json."""
    clips: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
    return [_prepared(config, clip, number) for number, clip in enumerate(clips)]


def raw_frames(frames: np.ndarray, stats: FrameStats) -> np.ndarray:
    """Standardised frames (T, kept) back to raw ones (T, D) float64; a column that was dropped is not known (NaN)."""
    columns = Columns.from_json(stats)
    raw = np.full((len(frames), int(columns.kept.max()) + 1), np.nan)
    raw[:, columns.kept] = frames.astype(np.float64) * columns.deviation + columns.mean
    return raw


@cache
def _tokeniser(extractor: str, **settings: Any) -> Tokens:
    return next(of(**settings) for of in (MiniLM, HuggingFace) if of.name == extractor)


def _given(row: dict[str, Any], name: str) -> Any:
    """A value of a row, or None where it is missing in any of the ways that pandas knows."""
    value = row.get(name)
    return None if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else value


def _prepared(config: CheckpointConfig, row: dict[str, Any], number: int) -> dict[str, np.ndarray]:
    """One clip as the model's modalities: token ids (T,) int64 and standardised frames (T, kept) float32."""
    limits = config["max_frames"]
    made = {}
    for modality in config["modalities"]:
        if modality == "text" and text_is_vectors(config["stats"]):
            if _given(row, "text") is not None or _given(row, "tokens") is not None:
                raise UserError(f"Row {number}: this model reads stored text vectors, which words cannot be made into.")
            made[modality] = np.zeros((0, len(config["stats"]["text"]["kept"])), np.float32)
        elif modality == "text":
            made[modality] = _ids(config, row, number)[: limits["text"]]
        else:
            columns = Columns.from_json(frame_stats(config["stats"], modality))
            given = _frames(_given(row, modality), columns, f"Row {number}: {modality}")
            made[modality] = clean(given[: limits[modality]], columns)
    return made


def _ids(config: CheckpointConfig, row: dict[str, Any], number: int) -> np.ndarray:
    tokens, words = _given(row, "tokens"), _given(row, "text")
    if tokens is not None:
        try:
            ids = np.asarray(tokens, np.float64)
        except (TypeError, ValueError):
            ids = np.full(1, np.nan)
        known = config["stats"]["text"]["vocabulary"]
        if ids.ndim != 1 or not ((ids == ids.round()) & (ids >= 0) & (ids < known)).all():
            raise UserError(f"Row {number}: tokens must be a list of whole numbers from 0 to {known - 1}.")
        return ids.astype(np.int64)
    if words is None:
        return np.zeros(0, np.int64)
    if not isinstance(words, str):
        raise UserError(f"Row {number}: text is {type(words).__name__}; allowed is a string, or nothing.")
    ids, _ = _tokeniser(**config["extract"]["text"]).extract(words)
    return ids.astype(np.int64)


def _frames(value: Any, columns: Columns, where: str) -> np.ndarray:
    """(T, D) float64; what cannot be cleaned is refused, what is only not finite is left to cleaning."""
    needed = int(columns.kept.max(initial=-1)) + 1
    try:
        frames = np.array([np.asarray(frame, np.float64) for frame in (() if value is None else value)])
    except (TypeError, ValueError):
        raise UserError(f"{where} is no table of numbers (frames x columns); each frame has as many columns.") from None
    if not len(frames):
        return np.zeros((0, needed))
    if frames.ndim != 2:
        raise UserError(f"{where} has {frames.ndim} dimensions; allowed are 2, frames x columns.")
    if frames.shape[1] < needed:
        raise UserError(f"{where} has frames of {frames.shape[1]} columns; this model reads {needed}.")
    return frames


def _batch(modalities: Sequence[str], clips: Sequence[dict[str, np.ndarray]], keys: torch.Tensor) -> Batch:
    padded = {m: pad([clip[m] for clip in clips]) for m in modalities}
    return Batch(keys, {m: x for m, (x, _) in padded.items()}, {m: mask for m, (_, mask) in padded.items()}, None)


@torch.no_grad()
def _predicted(trained: Trained, batch: Batch) -> dict[str, Any]:
    config = trained.config
    result = trained.predict(batch)
    found = _scores(result, config["calibration"]) if result.probabilities is None else _classes(result, config)
    empty = np.full(len(batch), np.nan)
    found |= {f"{name}_{m}": empty for name in ("trust", "r") for m in MODALITIES}
    if result.r is not None:
        here = torch.stack([batch.mask[m].any(1) for m in config["modalities"]], 1)
        trust = trained.trust(result.r, here)
        for place, modality in enumerate(config["modalities"]):
            found[f"trust_{modality}"] = trust[:, place].double().cpu().numpy()
            found[f"r_{modality}"] = result.r[:, place].double().cpu().numpy()
    shares = [None] * len(batch) if result.routing is None else result.routing.mean(1).double().cpu().tolist()
    return found | {"routing": shares}


def _scores(result: Prediction, calibration: Calibration) -> dict[str, Any]:
    assert result.value is not None
    assert result.variance is not None
    score, variance = (part.double().cpu().numpy() for part in (result.value, result.variance))
    reach = calibration["sigmas"]["0.9"] * np.sqrt(variance)
    return {"score": score, "low_90": score - reach, "high_90": score + reach, "variance": variance}


def _classes(result: Prediction, config: CheckpointConfig) -> dict[str, Any]:
    assert result.probabilities is not None
    shares = tempered(result.probabilities.double().cpu().numpy(), config["calibration"]["temperature"])
    return {f"p_{name}": shares[:, place] for place, name in enumerate(config["task"]["classes"])}
