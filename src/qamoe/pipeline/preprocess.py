"""Clean, check and normalise features: artifacts/preprocess/{train,valid,gate,test}.arrow and stats.json.

Statistics come from the training split only. Clips with degraded features are never stored, because they are a pure
function of these files. If extract.signals degraded media, preprocess/signals/<cell>.arrow is the test split with one
modality extracted from degraded media, normalised by the same statistics. preprocess/copies/{train,valid,gate}.arrow
are the damaged copies of extract.copies, normalised likewise, without rows if there are none.
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
from qamoe.config.task import TaskDescription, is_classification, is_multilabel
from qamoe.data import arrow_store
from qamoe.data.normalise import Columns, clean, fit_columns
from qamoe.data.stats import Stats, TextStats
from qamoe.errors import UserError
from qamoe.files import write_text
from qamoe.media.degradations import MODALITY, cells

STREAMS = ("audio", "vision")
COPIED_SPLITS = ("train", "valid", "gate")


def run(params: Params, out: Path) -> dict[str, Any]:
    """Run the stage and return the number of clips per split.

    Raises UserError if the stores hold different clips or the training split is empty.
    """
    source = out / "extract"
    clips, corpus, stores = _read_extracted(source)
    train_rows = np.flatnonzero(clips["split"] == "train")
    if not len(train_rows):
        raise UserError(
            f"The training split of {source / 'clips.parquet'} is empty; at least one source must be in split train."
        )
    text = stores["text"]
    vectors = text.text_is_vectors
    streams = ("text", *STREAMS) if vectors else STREAMS
    fitted = {m: fit_columns(stores[m], train_rows) for m in streams if len(stores[m])}
    columns = {m: fit for m, fit in fitted.items() if len(fit.kept)}  # the others are constant in training
    modalities = [m for m in corpus["modalities"] if m not in streams or m in columns]
    limits = params.preprocess.max_frames.model_dump()
    folder = out / "preprocess"
    labels = clips["label"].to_numpy()
    seconds = clips["seconds"].iloc[train_rows].max()
    seconds_max = None if np.isnan(seconds) else float(seconds)  # unknown for corpora of ready-made features
    content = {
        "task": corpus["task"],
        "modalities": modalities,
        "generated": corpus["generated"],
        "about": corpus["about"],
        "text": {} if vectors else _token_stats(text, train_rows, limits["text"]),
        **{m: c.to_json() | {"rate": stores[m].metadata["rate"]} for m, c in columns.items()},
        **_label_stats(labels[train_rows], corpus["task"]),
        "clips": {split: int((clips["split"] == split).sum()) for split in arrow_store.SPLITS},
        "seconds_max": seconds_max,
    }
    stats = cast(Stats, content)
    schema = pa.schema(
        [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64())]
        + [("text", pa.list_(pa.int32())), ("confidence", pa.list_(pa.float32()))] * (not vectors)
        + [(m, arrow_store.frames_type(len(columns[m].kept) if m in columns else 1)) for m in streams]
    )
    for split in arrow_store.SPLITS:
        rows = np.flatnonzero(clips["split"] == split)
        cleaned = _clean_rows(rows, clips, stores, columns, limits)
        arrow_store.write(folder / f"{split}.arrow", schema, cleaned, {"split": split, "modalities": modalities})
    test = np.flatnonzero(clips["split"] == "test")
    shutil.rmtree(folder / "signals", ignore_errors=True)
    for name, kind, severity in cells(params.extract.signals.severities) if params.extract.signals else ():
        degraded = _open_degraded(source / "signals" / f"{name}.arrow", list(clips["clip_id"].iloc[test]))
        cleaned = _clean_rows(test, clips, stores, columns, limits)
        replaced = _replace_modality(cleaned, MODALITY[kind], degraded, columns, limits)
        arrow_store.write(folder / "signals" / f"{name}.arrow", schema, replaced, {"kind": kind, "severity": severity})
    for split in COPIED_SPLITS:
        ids = list(clips["clip_id"][clips["split"] == split])
        _write_copies(source / "copies" / f"{split}.arrow", ids, folder, columns, limits)
    write_text(folder / "stats.json", json.dumps(stats, indent=1, sort_keys=True, allow_nan=False))
    return dict(stats["clips"])


def _write_copies(
    path: Path, clip_ids: list[str], folder: Path, columns: dict[str, Columns], limits: dict[str, int]
) -> None:
    """Write the copies of a split, normalised; frames of a modality that is constant in training are left out."""
    copies = _open(path)
    count = copies.metadata["copies"]
    if copies.clip_ids != [clip_id for clip_id in clip_ids for _ in range(count)]:
        raise UserError(f"{path} and clips.parquet hold different clips; run the stage extract again.")
    modalities = [m for m in copies.metadata["modalities"] if m == "text" or m in columns]
    fields = [("clip_id", pa.string())]
    for m in modalities:
        fields += [(f"kind_{m}", pa.string()), (f"severity_{m}", pa.float32())]
        if m == "text":
            fields += [("text", pa.list_(pa.int32())), ("confidence", pa.list_(pa.float32()))]
            fields.append(("wrong", pa.list_(pa.bool_())))
        else:
            fields.append((m, arrow_store.frames_type(len(columns[m].kept))))

    def row(number: int) -> dict[str, Any]:
        cells: dict[str, Any] = {"clip_id": copies.value("clip_id", number)}
        for m in modalities:
            cells |= {name: copies.value(name, number) for name in (f"kind_{m}", f"severity_{m}")}
            if m == "text":
                for column, name in (("text", "ids"), ("confidence", "confidence"), ("wrong", "wrong")):
                    cells[column] = copies.sequence(name, number)[: limits["text"]]
            else:
                cells[m] = clean(copies.sequence(m, number)[: limits[m]], columns[m])
        return cells

    metadata = copies.metadata | {"modalities": modalities}
    arrow_store.write(folder / "copies" / path.name, pa.schema(fields), map(row, range(len(copies))), metadata)


def _read_extracted(source: Path) -> tuple[Any, dict[str, Any], dict[str, arrow_store.Store]]:
    """Read the output of extract: the clips as a data frame, metadata of the corpus, and a store per modality."""
    path = source / "clips.parquet"
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage extract first.")
    table = pq.read_table(path)
    clips = table.to_pandas()
    _check(clips, path)
    stores = {m: arrow_store.Store(source / f"{m}.arrow") for m in ("text", *STREAMS)}
    for store in stores.values():
        if len(store) and store.clip_ids != list(clips["clip_id"]):
            raise UserError(f"{store.path} and {path} hold different clips; run the stage extract again.")
    return clips, json.loads(table.schema.metadata[b"qamoe"]), stores


def _check(clips: Any, path: Path) -> None:
    duplicated = clips["clip_id"].duplicated()
    if duplicated.any():
        raise UserError(f"{path}: duplicate clip id {clips['clip_id'][duplicated].iloc[0]!r}.")
    splits = clips.groupby("source")["split"].nunique()
    if (splits > 1).any():
        raise UserError(f"{path}: source {splits.index[splits > 1][0]!r} is in more than one split.")
    not_finite = clips[~np.isfinite(clips["label"])]
    if len(not_finite):
        clip_id, label = not_finite[["clip_id", "label"]].iloc[0]
        raise UserError(f"{path}: label {label} of clip {clip_id!r} is not finite.")


def _label_stats(labels: np.ndarray, task: TaskDescription) -> dict[str, Any]:
    """Return mean and standard deviation of the training labels, or the share of clips with each class."""
    if is_multilabel(task):
        present = labels.astype(int)[:, None] >> np.arange(len(task["classes"])) & 1
        return {"class_shares": present.mean(0).tolist()}
    if is_classification(task):
        counts = np.bincount(labels.astype(int), minlength=len(task["classes"]))
        return {"class_shares": (counts / counts.sum()).tolist()}
    return {"target_mean": float(labels.mean()), "target_std": float(labels.std()) or 1.0}


def _token_stats(text: arrow_store.Store, rows: np.ndarray, limit: int) -> TextStats:
    """Return the properties of the token ids that degradations and encoders need."""
    return {
        "unk": text.metadata["unk"],
        "special": text.metadata["special"],
        "vocabulary": text.metadata["vocabulary"],
        "vocabulary_sha256": text.metadata["vocabulary_sha256"],
        "frequencies": _token_frequencies(text, rows, limit),
    }


def _token_frequencies(text: arrow_store.Store, rows: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Count each token id over these rows, without special tokens."""
    special = set(text.metadata["special"])
    counts: dict[int, int] = {}
    for row in rows:
        for token in text.sequence("ids", int(row))[:limit]:
            if int(token) not in special:
                counts[int(token)] = counts.get(int(token), 0) + 1
    return sorted(counts.items())


def _clean_rows(
    rows: np.ndarray, clips: Any, stores: dict[str, arrow_store.Store], columns: dict[str, Columns], limits: Any
) -> Iterator[dict[str, Any]]:
    for row in rows:
        cleaned: dict[str, Any] = {name: clips[name].iloc[row] for name in ("clip_id", "source", "label")}
        if not stores["text"].text_is_vectors:
            for column, source in (("text", "ids"), ("confidence", "confidence")):
                cleaned[column] = stores["text"].sequence(source, int(row))[: limits["text"]]
        for m in ("text", *STREAMS):
            if m in cleaned:
                continue
            if m in columns:
                cleaned[m] = clean(stores[m].sequence("frames", int(row))[: limits[m]], columns[m])
            else:
                cleaned[m] = np.zeros((0, 1), np.float32)
        yield cleaned


def _open(path: Path) -> arrow_store.Store:
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage extract first.")
    return arrow_store.Store(path)


def _open_degraded(path: Path, clip_ids: list[str]) -> arrow_store.Store:
    store = _open(path)
    if store.clip_ids != clip_ids:
        raise UserError(f"{path} and clips.parquet hold different clips; run the stage extract again.")
    return store


def _replace_modality(
    rows: Iterator[dict[str, Any]], modality: str, degraded: arrow_store.Store, columns: dict[str, Columns], limits: Any
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the test split with one modality replaced by the features of its degraded media."""
    for number, row in enumerate(rows):
        if modality == "text":
            for column, source in (("text", "ids"), ("confidence", "confidence")):
                row[column] = degraded.sequence(source, number)[: limits["text"]]
        elif modality in columns:
            row[modality] = clean(degraded.sequence("frames", number)[: limits[modality]], columns[modality])
        yield row
