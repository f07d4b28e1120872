"""Features -> clean, checked, normalised splits: artifacts/preprocess/{train,valid,gate,test}.arrow, stats.json.

Statistics come from the training split alone. Degraded clips are never stored: they are a pure function of these. Where
extract.signals degraded media, preprocess/signals/<cell>.arrow is the test split with one modality of such media,
normalised by the same statistics.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qamoe.config.params import Params
from qamoe.config.task import TaskDescription, is_classification
from qamoe.data import arrow_store
from qamoe.data.normalise import Columns, clean, fit_columns
from qamoe.data.stats import Stats, TextStats
from qamoe.errors import UserError
from qamoe.files import write_text
from qamoe.media.degradations import MODALITY, cells

STREAMS = ("audio", "vision")


def run(params: Params, out: Path) -> dict[str, Any]:
    """Run the stage and return the number of clips per split.

    Raises UserError where the stores disagree or the training split is empty.
    """
    source = out / "extract"
    clips, about, stores = _extracted(source)
    train_rows = np.flatnonzero(clips["split"] == "train")
    if not len(train_rows):
        raise UserError("The training split is empty; at least one source must be in split train.")
    text = stores["text"]
    vectors = text.text_is_vectors
    streams = ("text", *STREAMS) if vectors else STREAMS
    fitted = {m: fit_columns(stores[m], train_rows) for m in streams if len(stores[m])}
    columns = {m: fit for m, fit in fitted.items() if len(fit.kept)}  # the rest tells nothing in training
    modalities = [m for m in about["modalities"] if m not in streams or m in columns]
    limits = params.preprocess.max_frames.model_dump()
    folder = out / "preprocess"
    labels = clips["label"].to_numpy()
    seconds = clips["seconds"].iloc[train_rows].max()
    seconds_max = None if np.isnan(seconds) else float(seconds)  # corpora of ready features do not tell
    content = {
        "task": about["task"],
        "modalities": modalities,
        "generated": about["generated"],
        "about": about["about"],
        "text": {} if vectors else _of_tokens(text, train_rows, limits["text"]),
        **{m: c.to_json() | {"rate": stores[m].metadata["rate"]} for m, c in columns.items()},
        **_target(labels[train_rows], about["task"]),
        "clips": {split: int((clips["split"] == split).sum()) for split in arrow_store.SPLITS},
        "seconds_max": seconds_max,
    }
    stats = cast(Stats, content)
    schema = pa.schema(
        [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64())]
        + [("text", pa.list_(pa.int32()))] * (not vectors)
        + [(m, arrow_store.frames_type(len(columns[m].kept) if m in columns else 1)) for m in streams]
    )
    for split in arrow_store.SPLITS:
        rows = np.flatnonzero(clips["split"] == split)
        cleaned = _rows(rows, clips, stores, columns, limits)
        arrow_store.write(folder / f"{split}.arrow", schema, cleaned, {"split": split, "modalities": modalities})
    test = np.flatnonzero(clips["split"] == "test")
    shutil.rmtree(folder / "signals", ignore_errors=True)
    for name, kind, severity in cells(params.extract.signals.severities) if params.extract.signals else ():
        degraded = _degraded(source / "signals" / f"{name}.arrow", list(clips["clip_id"].iloc[test]))
        cleaned = _rows(test, clips, stores, columns, limits)
        replaced = _replaced(cleaned, MODALITY[kind], degraded, columns, limits)
        arrow_store.write(folder / "signals" / f"{name}.arrow", schema, replaced, {"kind": kind, "severity": severity})
    write_text(folder / "stats.json", json.dumps(stats, indent=1, sort_keys=True, allow_nan=False))
    return dict(stats["clips"])


def _extracted(source: Path) -> tuple[Any, dict[str, Any], dict[str, arrow_store.Store]]:
    """What extract wrote: the clips as a data frame, what is known of their corpus, and a store for each modality."""
    if not (source / "clips.parquet").is_file():
        raise UserError(f"There is no {source / 'clips.parquet'}; run the stage extract first.")
    table = pq.read_table(source / "clips.parquet")
    clips = table.to_pandas()
    _check(clips)
    stores = {m: arrow_store.Store(source / f"{m}.arrow") for m in ("text", *STREAMS)}
    for store in stores.values():
        if len(store) and store.clip_ids != list(clips["clip_id"]):
            raise UserError(f"{store.path} and clips.parquet hold different clips; run the stage extract again.")
    return clips, json.loads(table.schema.metadata[b"qamoe"]), stores


def _check(clips: Any) -> None:
    if clips["clip_id"].duplicated().any():
        raise UserError(
            f"Clip id {clips['clip_id'][clips['clip_id'].duplicated()].iloc[0]!r} stands twice in clips.parquet."
        )
    splits = clips.groupby("source")["split"].nunique()
    if (splits > 1).any():
        raise UserError(f"Source {splits.index[splits > 1][0]!r} is in more than one split.")
    if not np.isfinite(clips["label"]).all():
        raise UserError("A label in clips.parquet is not finite.")


def _target(labels: np.ndarray, task: TaskDescription) -> dict[str, Any]:
    """What a model has to know of the training labels: mean and deviation, or each class's share of the clips."""
    if is_classification(task):
        counts = np.bincount(labels.astype(int), minlength=len(task["classes"]))
        return {"class_shares": (counts / counts.sum()).tolist()}
    return {"target_mean": float(labels.mean()), "target_std": float(labels.std()) or 1.0}


def _of_tokens(text: arrow_store.Store, rows: np.ndarray, limit: int) -> TextStats:
    """What degradations and encoders have to know of token ids."""
    return {
        "unk": text.metadata["unk"],
        "special": text.metadata["special"],
        "vocabulary": text.metadata["vocabulary"],
        "vocabulary_sha256": text.metadata["vocabulary_sha256"],
        "frequencies": _token_frequencies(text, rows, limit),
    }


def _token_frequencies(text: arrow_store.Store, rows: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """(token id, count) over the training split, special tokens left out."""
    special = set(text.metadata["special"])
    counts: dict[int, int] = {}
    for row in rows:
        for token in text.sequence("ids", int(row))[:limit]:
            if int(token) not in special:
                counts[int(token)] = counts.get(int(token), 0) + 1
    return sorted(counts.items())


def _rows(
    rows: np.ndarray, clips: Any, stores: dict[str, arrow_store.Store], columns: dict[str, Columns], limits: Any
) -> Iterator[dict[str, Any]]:
    for row in rows:
        cleaned: dict[str, Any] = {name: clips[name].iloc[row] for name in ("clip_id", "source", "label")}
        if not stores["text"].text_is_vectors:
            cleaned["text"] = stores["text"].sequence("ids", int(row))[: limits["text"]]
        for m in ("text", *STREAMS):
            if m in cleaned:
                continue
            if m in columns:
                cleaned[m] = clean(stores[m].sequence("frames", int(row))[: limits[m]], columns[m])
            else:
                cleaned[m] = np.zeros((0, 1), np.float32)
        yield cleaned


def _degraded(path: Path, clip_ids: list[str]) -> arrow_store.Store:
    if not path.is_file():
        raise UserError(f"There is no {path}; run the stage extract first.")
    opened = arrow_store.Store(path)
    if opened.clip_ids != clip_ids:
        raise UserError(f"{path} and clips.parquet hold different clips; run the stage extract again.")
    return opened


def _replaced(
    rows: Iterator[dict[str, Any]], modality: str, degraded: arrow_store.Store, columns: dict[str, Columns], limits: Any
) -> Iterator[dict[str, Any]]:
    """Rows of the test split with one modality replaced by what was made of its degraded media."""
    for number, row in enumerate(rows):
        if modality == "text":
            row["text"] = degraded.sequence("ids", number)[: limits["text"]]
        elif modality in columns:
            row[modality] = clean(degraded.sequence("frames", number)[: limits[modality]], columns[modality])
        yield row
