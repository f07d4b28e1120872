"""MMSA-format pickles (CMU-MOSI, CMU-MOSEI): {train, valid, test} of equal-length columns.

The layout is the one that thuiar/MMSA's data_loader reads. Text comes as token ids from `text_bert`, else from
`raw_text`; the stored `text` vectors are never used, because the vector of a clean sentence still carries a word
that was taken away afterwards. A modality that no split has is a modality the corpus lacks.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.corpora import unpickle
from qamoe.corpora.clip import Clip, Corpus, check_clips, label_value
from qamoe.errors import Refused
from qamoe.params import Task

# SHA-256 that thuiar/MMSA publishes in its README.
PUBLISHED = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": "MOSI/Processed/unaligned_50.pkl",
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": "MOSI/Processed/aligned_50.pkl",
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "MOSEI/Processed/unaligned_50.pkl",
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": "MOSEI/Processed/aligned_50.pkl",
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": "SIMS/Processed/unaligned_39.pkl",
}
_SEPARATOR = "$_$"


def read(path: Path, task: Task) -> Corpus:
    """Read an MMSA pickle. Raises Refused where it is no such file."""
    content = unpickle.read(path)
    if not isinstance(content, dict) or not {"train", "valid", "test"} <= set(content):
        raise Refused(f"{path} is no MMSA pickle: its top level must be a dict of train, valid and test.")
    splits = {name: content[name] for name in ("train", "valid", "test")}
    for name, columns in splits.items():
        for key in ("id", "raw_text", "regression_labels"):
            if key not in columns:
                raise Refused(f"{path}: split {name} lacks the column {key}.")
    streams = tuple(m for m in ("audio", "vision") if all(m in columns for columns in splits.values()))
    clips = [
        clip for name, columns in splits.items() for clip in _clips(columns, name, streams, task, f"{path}, {name}")
    ]
    check_clips(clips, str(path))
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"corpus": "mmsa", "file": path.name, "sha256": sha, "published_as": PUBLISHED.get(sha)}
    return Corpus(clips, ("text", *streams), about)


def _clips(columns: dict[str, Any], split: str, streams: tuple[str, ...], task: Task, where: str) -> list[Clip]:
    ids, texts = columns["id"], columns["raw_text"]
    labels = columns["regression_labels"]
    lengths = {m: _lengths(columns, m) for m in streams}
    tokens = columns.get("text_bert")
    if not len(ids) == len(texts) == len(labels):
        raise Refused(f"{where}: id, raw_text and regression_labels differ in length.")
    return [
        Clip(
            clip_id=str(ids[i]),
            source=str(ids[i]).split(_SEPARATOR)[0],
            split=split,
            label=label_value(str(labels[i]), task, f"{where}, clip {ids[i]}"),
            text=str(texts[i]),
            tokens=None if tokens is None else _tokens(tokens[i]),
            frames={m: np.asarray(columns[m][i][: lengths[m][i]], np.float32) for m in streams},
        )
        for i in range(len(ids))
    ]


def _tokens(rows: np.ndarray) -> np.ndarray:
    """Token ids of a text_bert item (3, L): row 0 where the mask of row 1 is set."""
    return np.asarray(rows[0][np.asarray(rows[1]) > 0], np.int32)


def _lengths(columns: dict[str, Any], modality: str) -> np.ndarray:
    """Valid frames of each clip: as stored, else (aligned files) as many as text_bert's mask says."""
    frames = columns[modality].shape[1]
    if f"{modality}_lengths" in columns:
        return np.clip(np.asarray(columns[f"{modality}_lengths"], np.int64), 0, frames)
    if "text_bert" in columns and frames > 1:
        return np.clip(np.asarray(columns["text_bert"])[:, 1].sum(1).astype(np.int64), 1, frames)
    return np.full(len(columns["id"]), frames)
