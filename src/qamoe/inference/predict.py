"""Raw clips -> scores with their intervals, or classes with their probabilities, and how far each
modality was trusted: what every way of serving calls.

Cleaning, normalising and truncation are those of the checkpoint's own training split (model.json), so that a raw
clip meets the model as its clips of training did.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cache
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch

from qamoe.config.task import TaskDescription, is_classification
from qamoe.data.batch import Batch, pad
from qamoe.data.normalise import Columns, clean
from qamoe.data.stats import FrameStats
from qamoe.errors import UserError
from qamoe.extractors.huggingface import HuggingFace
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.tokens import Tokens
from qamoe.models.calibration import tempered
from qamoe.models.checkpoint import Trained
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.models.heads import prediction_columns
from qamoe.rng import MODALITIES, clip_key

INPUTS = ("text", "tokens", "audio", "vision")
RELIABILITY = tuple(f"{name}_{m}" for name in ("trust", "r") for m in MODALITIES)
REGRESSION_COLUMNS = ("score", "low_90", "high_90", "variance", *RELIABILITY)
_BATCH = 64
Change = Callable[[Batch], Batch]


def numeric_columns(task: TaskDescription) -> tuple[str, ...]:
    """The columns of numbers that a model of this task answers with: NUMBERS, or p_<class> in place of a score."""
    if is_classification(task):
        return (*(f"p_{name}" for name in task["classes"]), *RELIABILITY)
    return REGRESSION_COLUMNS


def output_columns(task: TaskDescription) -> list[str]:
    """The columns of `predict`, in order."""
    return ["class"] * is_classification(task) + [*numeric_columns(task), "routing"]


@torch.no_grad()
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
    config = trained.config
    task = config["task"]
    clips = prepare_clips(trained, rows)
    columns: dict[str, Any] = {
        name: [np.zeros(0)] for name in (numeric_columns(task) if trained.classifies else REGRESSION_COLUMNS)
    }
    routing: list[Any] = []
    for first in range(0, len(clips), _BATCH):
        chunk = clips[first : first + _BATCH]
        x, mask = {}, {}
        for modality in config["modalities"]:
            x[modality], mask[modality] = (part.to(device) for part in pad([clip[modality] for clip in chunk]))
        keys = torch.zeros(len(chunk), 2, dtype=torch.int64, device=device)  # of draws, and only a change draws
        batch = Batch(keys, x, mask, None)
        if change is not None:
            names = [clip_key(str(name)) for name in rows.index[first : first + _BATCH]]
            batch = change(replace(batch, keys=torch.tensor(names, dtype=torch.int64, device=device)))
        prediction = trained.fuse(trained.vectors(batch), len(chunk))
        trust = None
        if prediction.r is not None:
            trust = trained.trust(prediction.r, torch.stack([batch.mask[m].any(1) for m in config["modalities"]], 1))
        said = prediction_columns(prediction, config, trust)
        empty = torch.full((len(chunk),), nan)
        for name, values in columns.items():
            values.append(said.get(name, empty).double().cpu().numpy())
        routing += said["routing"].double().cpu().tolist() if "routing" in said else [None] * len(chunk)
    answers = pd.DataFrame({name: np.concatenate(values) for name, values in columns.items()}, index=rows.index)
    if not trained.classifies:
        reach = config["calibration"]["sigmas"]["0.9"] * np.sqrt(answers["variance"])
        answers["low_90"], answers["high_90"] = answers["score"] - reach, answers["score"] + reach
    else:
        shares = [f"p_{name}" for name in task["classes"]]
        answers[shares] = tempered(answers[shares].to_numpy(), config["calibration"]["temperature"])
        best = np.array(task["classes"], object)[answers[shares].to_numpy().argmax(1)]
        answers.insert(0, "class", pd.Series(best, rows.index, object))
    answers["routing"] = pd.Series(routing, rows.index, object)
    return answers


def json_answers(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Each row of `predict` as JSON can hold it: empty is None, trust and r are by modality, p_<class> by class.

    score, low_90, high_90 and variance, or label and probabilities; then trust, r and routing.
    """
    classes = [name for name in map(str, answers) if name.startswith("p_")]
    rows = []
    for row in answers.to_dict("records"):
        if classes:
            shares = {name.removeprefix("p_"): float(row[name]) for name in classes}
            answer = {"label": row["class"], "probabilities": shares}
        else:
            answer = {name: float(row[name]) for name in ("score", "low_90", "high_90", "variance")}
        for name in ("trust", "r"):
            by_modality = {m: row[f"{name}_{m}"] for m in MODALITIES}
            answer[name] = {m: None if np.isnan(value) else float(value) for m, value in by_modality.items()}
        rows.append(answer | {"routing": row["routing"]})
    return rows


def prepare_clips(trained: Trained, rows: pd.DataFrame) -> list[dict[str, np.ndarray]]:
    """Rows as `predict` takes them -> each clip as its model's modalities: token ids (T,) int64 and standardised frames
    (T, kept) float32."""
    config, columns = trained.config, trained.columns
    limits = config["max_frames"]
    clips = []
    for number, cells in enumerate(rows.to_dict("records")):
        # pandas has several ways to say that a value is missing.
        row = {
            name: value
            for name, value in cells.items()
            if not (value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)))
        }
        clip = {}
        for modality in config["modalities"]:
            if modality in columns:
                frames = _frames(row.get(modality), columns[modality], f"Row {number}: {modality}")
                clip[modality] = clean(frames[: limits[modality]], columns[modality])
            elif trained.reads_words:
                clip["text"] = _ids(config, row, number)[: limits["text"]]
            elif "text" in row or "tokens" in row:
                raise UserError(f"Row {number}: this model reads stored text vectors, which words cannot be made into.")
            else:
                clip["text"] = np.zeros((0, len(config["stats"]["text"]["kept"])), np.float32)
        clips.append(clip)
    return clips


def raw_frames(frames: np.ndarray, stats: FrameStats) -> np.ndarray:
    """Standardised frames (T, kept) back to raw ones (T, D) float64; a column that was dropped is not known (NaN)."""
    columns = Columns.from_json(stats)
    raw = np.full((len(frames), int(columns.kept.max()) + 1), np.nan)
    raw[:, columns.kept] = frames.astype(np.float64) * columns.deviation + columns.mean
    return raw


@cache
def _tokeniser(extractor: str, **settings: Any) -> Tokens:
    return next(of(**settings) for of in (MiniLM, HuggingFace) if of.name == extractor)


def _ids(config: CheckpointConfig, row: dict[Hashable, Any], number: int) -> np.ndarray:
    tokens, words = row.get("tokens"), row.get("text")
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
