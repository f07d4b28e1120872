"""Predict raw clips: scores with intervals, or classes with probabilities, and the trust in each modality.

All kinds of serving use this module. Raw clips are cleaned, standardised and truncated as the clips of the checkpoint's
training split were (see model.json).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import cache
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch

from qamoe.config.task import SEPARATOR, TaskDescription, is_classification, is_multilabel
from qamoe.data.batch import Batch, pad
from qamoe.data.normalise import Columns, clean
from qamoe.data.stats import FrameStats
from qamoe.errors import UserError
from qamoe.extractors.bge_small import BgeSmall
from qamoe.extractors.huggingface import HuggingFace
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.tokens import Tokens
from qamoe.models.calibration import tempered, tempered_labels
from qamoe.models.checkpoint import Trained
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.models.heads import prediction_columns
from qamoe.rng import MODALITIES, clip_key

INPUTS = ("text", "tokens", "confidence", "audio", "vision")
RELIABILITY = tuple(f"{name}_{m}" for name in ("trust", "r") for m in MODALITIES)
REGRESSION_COLUMNS = ("score", "low_90", "high_90", "variance", *RELIABILITY)
_BATCH = 64
Change = Callable[[Batch], Batch]


def numeric_columns(task: TaskDescription) -> tuple[str, ...]:
    """Return the numeric columns of a task: REGRESSION_COLUMNS, or p_<class> or has_<label> in place of a score."""
    if is_multilabel(task):
        return (*(f"has_{name}" for name in task["classes"]), *RELIABILITY)
    if is_classification(task):
        return (*(f"p_{name}" for name in task["classes"]), *RELIABILITY)
    return REGRESSION_COLUMNS


def output_columns(task: TaskDescription) -> list[str]:
    """Return the columns of `predict`, in order."""
    name = ["class"] * is_classification(task) + ["labels"] * is_multilabel(task)
    return [*name, *numeric_columns(task), "routing"]


@torch.no_grad()
def predict(trained: Trained, rows: pd.DataFrame, device: str = "cpu", change: Change | None = None) -> pd.DataFrame:
    """Predict one row per clip, with the index of `rows` and the columns of `output_columns`.

    `rows` has some of the columns text (str), tokens (ready-made ids, used instead of text), confidence (that of a
    speech recogniser in each of the tokens, from 0 to 1; without it, they were typed), audio and vision: raw frames
    (T, D) as arrays or nested lists, with the extractor's columns. None, NaN, an empty text and an empty list of frames
    mean that the modality is missing. Modalities that the model does not read are ignored.

    score, low_90 and high_90 are in label units and not clipped to the label's range; the interval is conformal, fitted
    on the validation split. p_<class> are probabilities at the temperature of that split, and class is the most
    probable class; has_<label> are those of labels, and labels names those from 1/2 on. trust is in [0, 1]; trust, r
    and routing (the share of each expert, summing to 1) are empty for a model without them. Other rows change a row's
    prediction only by float rounding.

    `change` transforms the standardised frames and token ids before text is encoded, for example to show a degradation;
    the index values are the clip ids of its draws. Raises UserError for a value of another type or shape.
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
        keys = torch.zeros(len(chunk), 2, dtype=torch.int64, device=device)  # only used by the draws of `change`
        confidence = None
        if trained.model.encode.reads_confidence:
            confidence, _ = pad([clip["confidence"] for clip in chunk])
        batch = Batch(keys, x, mask, None, None if confidence is None else confidence.to(device))
        if change is not None:
            names = [clip_key(str(name)) for name in rows.index[first : first + _BATCH]]
            batch = change(replace(batch, keys=torch.tensor(names, dtype=torch.int64, device=device)))
        prediction = trained.fuse(trained.vectors(batch), len(chunk))
        trust = None
        if prediction.r is not None:
            trust = trained.trust(prediction.r, torch.stack([batch.mask[m].any(1) for m in config["modalities"]], 1))
        predicted = prediction_columns(prediction, config, trust)
        empty = torch.full((len(chunk),), nan)
        for name, values in columns.items():
            values.append(predicted.get(name, empty).double().cpu().numpy())
        routing += predicted["routing"].double().cpu().tolist() if "routing" in predicted else [None] * len(chunk)
    answers = pd.DataFrame({name: np.concatenate(values) for name, values in columns.items()}, index=rows.index)
    if not trained.classifies:
        half_width = config["calibration"]["sigmas"]["0.9"] * np.sqrt(answers["variance"])
        answers["low_90"], answers["high_90"] = answers["score"] - half_width, answers["score"] + half_width
    elif is_multilabel(task):
        _name_labels(answers, task["classes"], config["calibration"]["temperature"])
    else:
        shares = [f"p_{name}" for name in task["classes"]]
        answers[shares] = tempered(answers[shares].to_numpy(), config["calibration"]["temperature"])
        best = np.array(task["classes"], object)[answers[shares].to_numpy().argmax(1)]
        answers.insert(0, "class", pd.Series(best, rows.index, object))
    answers["routing"] = pd.Series(routing, rows.index, object)
    return answers


def _name_labels(answers: pd.DataFrame, classes: list[str], temperature: float) -> None:
    """Calibrate the columns has_<label>, and insert the column labels: names joined by ;, empty for no label."""
    columns = [f"has_{name}" for name in classes]
    answers[columns] = tempered_labels(answers[columns].to_numpy(), temperature)
    names = np.array(classes, object)
    present = [SEPARATOR.join(names[has]) for has in answers[columns].to_numpy() >= 0.5]
    answers.insert(0, "labels", pd.Series(present, answers.index, object))


def json_answers(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each row of `predict` as JSON values: None if empty, trust and r by modality, p_<class> by class.

    The keys are score, low_90, high_90 and variance, or label (in multilabel: labels, a list) and probabilities; then
    trust, r and routing.
    """
    prefix = "has_" if "labels" in answers else "p_"
    classes = [name for name in map(str, answers) if name.startswith(prefix)]
    rows = []
    for row in answers.to_dict("records"):
        if classes:
            shares = {name.removeprefix(prefix): float(row[name]) for name in classes}
            names = (
                {"label": row["class"]}
                if prefix == "p_"
                else {"labels": list(filter(None, row["labels"].split(SEPARATOR)))}
            )
            answer = {**names, "probabilities": shares}
        else:
            answer = {name: float(row[name]) for name in ("score", "low_90", "high_90", "variance")}
        for name in ("trust", "r"):
            by_modality = {m: row[f"{name}_{m}"] for m in MODALITIES}
            answer[name] = {m: None if np.isnan(value) else float(value) for m, value in by_modality.items()}
        rows.append(answer | {"routing": row["routing"]})
    return rows


def prepare_clips(trained: Trained, rows: pd.DataFrame) -> list[dict[str, np.ndarray]]:
    """Return each row of `predict` by modality: token ids (T,) int64 and standardised frames (T, kept) float32.

    Token ids come with a `confidence` (T,) float32.
    """
    config, columns = trained.config, trained.columns
    limits = config["max_frames"]
    clips = []
    for number, cells in enumerate(rows.to_dict("records")):
        # pandas has several missing values.
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
                clip["confidence"] = _confidence(row, len(clip["text"]), number)
            elif "text" in row or "tokens" in row:
                raise UserError(f"Row {number}: this model reads stored text vectors; leave out text and tokens.")
            else:
                clip["text"] = np.zeros((0, len(config["stats"]["text"]["kept"])), np.float32)
        clips.append(clip)
    return clips


def clip_row(
    config: CheckpointConfig, text: str | None, features: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], str]:
    """Return a clip as a row of `predict`, its text and frames, and why not all of its text is read ("": it is).

    `features` may have the words that were recognised in its voice as "text" (extractors/transcribe.py). They stand in
    for a text that is None, with the probability of each word as the confidence of its tokens.
    """
    row: dict[str, Any] = {"text": text, **{name: value for name, value in features.items() if name != "text"}}
    heard = features.get("text") if text is None else None
    words = text if heard is None else " ".join(heard["word"])
    if not words or "text" not in config["modalities"] or "vocabulary" not in config["stats"]["text"]:
        return row, ""  # the model reads stored vectors, or no text
    tokens = _tokeniser(**config["extract"]["text"])
    reading = tokens.read(words, config["max_frames"]["text"])
    row["tokens"] = reading.ids
    if heard is not None:
        row["tokens"], _, word_of_id = tokens.extract_spoken(heard["word"])
        row["confidence"] = np.where(word_of_id < 0, 1.0, heard["confidence"][word_of_id])
    return row, reading.reason


def raw_frames(frames: np.ndarray, stats: FrameStats) -> np.ndarray:
    """Return standardised frames (T, kept) as raw frames (T, D) float64; dropped columns are NaN.

    A missing frame, which is zeros after standardisation, is zeros before it too, so it is missing on every scale.
    """
    columns = Columns.from_json(stats)
    raw = np.full((len(frames), int(columns.kept.max()) + 1), np.nan)
    raw[:, columns.kept] = frames.astype(np.float64) * columns.deviation + columns.mean
    raw[~frames.any(1)] = 0
    return raw


@cache
def _tokeniser(extractor: str, transcribe: str | None = None, **settings: Any) -> Tokens:
    return next(of(**settings) for of in (MiniLM, BgeSmall, HuggingFace) if of.name == extractor)


def _ids(config: CheckpointConfig, row: dict[Hashable, Any], number: int) -> np.ndarray:
    tokens, words = row.get("tokens"), row.get("text")
    if tokens is not None:
        try:
            ids = np.asarray(tokens, np.float64)
        except (TypeError, ValueError, OverflowError):
            ids = np.full(1, np.nan)
        vocabulary = config["stats"]["text"]["vocabulary"]
        if ids.ndim != 1 or not ((ids == ids.round()) & (ids >= 0) & (ids < vocabulary)).all():
            raise UserError(f"Row {number}: tokens must be a list of integers from 0 to {vocabulary - 1}.")
        return ids.astype(np.int64)
    if words is None:
        return np.zeros(0, np.int64)
    if not isinstance(words, str):
        raise UserError(f"Row {number}: text is {type(words).__name__}; it must be a string or empty.")
    ids, _ = _tokeniser(**config["extract"]["text"]).extract(words)
    return ids.astype(np.int64)


def _confidence(row: dict[Hashable, Any], tokens: int, number: int) -> np.ndarray:
    """Return the confidence (T,) of the first `tokens` tokens of a row, 1 where none is given."""
    if "tokens" not in row or row.get("confidence") is None:
        return np.ones(tokens, np.float32)
    try:
        confidence = np.asarray(row["confidence"], np.float32)
    except (TypeError, ValueError, OverflowError):
        confidence = np.full(1, np.nan, np.float32)
    if confidence.shape != (len(row["tokens"]),) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise UserError(f"Row {number}: confidence must be a list of {len(row['tokens'])} numbers from 0 to 1.")
    return confidence[:tokens]


def _frames(value: Any, columns: Columns, where: str) -> np.ndarray:
    """Return frames (T, D) float64. Raises UserError for other values; values that are not finite stay for cleaning."""
    needed = int(columns.kept.max(initial=-1)) + 1
    try:
        frames = np.array([np.asarray(frame, np.float64) for frame in (() if value is None else value)])
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{where} must be a table of numbers (frames x columns) whose frames have equally many columns."
        ) from None
    if not len(frames):
        return np.zeros((0, needed))
    if frames.ndim != 2:
        raise UserError(f"{where} has {frames.ndim} dimensions; it must have 2 (frames x columns).")
    if frames.shape[1] < needed:
        raise UserError(f"{where} has frames of {frames.shape[1]} columns; this model reads {needed}.")
    return frames
