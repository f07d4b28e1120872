"""Read MIntRec (thuiar): {train,dev,test}.tsv and, if present, feature pickles or the clips themselves.

The layout is that of thuiar/MIntRec's readers. JoeYing1019/SDIF-DA puts the pickles next to the tsv files; both places
are searched. All 43 episodes are in all three files of the official split, so a source is an episode within its split.
This reader cannot undo the overlap of training and test.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import Task
from qamoe.data import safe_pickle
from qamoe.data.clip import Corpus, LabelledClip, check_clips, collect_faults, label_value, open_table, utterance
from qamoe.errors import UserError

COLUMNS = ("season", "episode", "clip", "text", "label")
SPLITS = {"train": "train", "dev": "valid", "test": "test"}  # file -> split
# In the order of the public reader; spelled as in the files, not as in the README.
CLASSES = (
    *("Complain", "Praise", "Apologise", "Thank", "Criticize", "Agree", "Taunt", "Flaunt", "Joke", "Oppose"),
    *("Comfort", "Care", "Inform", "Advise", "Arrange", "Introduce", "Leave", "Prevent", "Greet", "Ask for help"),
)
_FEATURES = {"audio": ("audio_data", "audio_feats.pkl"), "vision": ("video_data", "video_feats.pkl")}
_RAW = "raw_data"


def read(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read a folder of MIntRec. Raises UserError if the folder has another layout.

    Audio and vision are (T, 768) and (T, 256) of the pickles, else media in raw_data/, else the corpus lacks them.
    If `faults` is a list, errors of single rows are appended to it and the other rows are read.
    """
    files = {name: path / f"{name}.tsv" for name in SPLITS}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file} does not exist; MIntRec needs train.tsv, dev.tsv and test.tsv in one folder.")
    loaded = {m: _features(path, m) for m in _FEATURES}
    features = {m: frames for m, frames in loaded.items() if frames is not None}
    raw = not features and (path / _RAW).is_dir()
    clips = [clip for name in SPLITS for clip in _clips(files[name], SPLITS[name], features, raw, task, faults)]
    check_clips(clips, str(path), faults)
    for modality, frames in features.items():
        if not any(clip.clip_id in frames for clip in clips):
            raise UserError(f"{path}: the {modality} pickle has none of the clips of the tsv files.")
    streams = tuple(_FEATURES) if raw else tuple(features)
    about = {"corpus": "mintrec", "features": sorted(features), "media": raw}
    return Corpus(clips, ("text", *streams), about)


def _features(path: Path, modality: str) -> dict[str, np.ndarray] | None:
    """Return frames (T, D) by clip id, or None if the pickle does not exist."""
    folder, name = _FEATURES[modality]
    file = next((f for f in (path / folder / name, path / name) if f.is_file()), None)
    if file is None:
        return None
    content = safe_pickle.read(file)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} is not a feature pickle of MIntRec: it must be a dict of clip id -> frames.")
    named = {safe_pickle.text(key, f"{file}: key {key!r:.40}"): value for key, value in content.items()}
    by_clip = {key: _frames(value, f"{file}, clip {key}") for key, value in named.items()}
    sizes = sorted({frames.shape[1] for frames in by_clip.values() if len(frames)})
    if len(sizes) != 1:
        raise UserError(f"{file}: the frames of clips have {sizes} columns, must all have the same number.")
    return {key: frames if len(frames) else np.zeros((0, sizes[0]), np.float32) for key, frames in by_clip.items()}


def _frames(value: Any, where: str) -> np.ndarray:
    """Convert to frames (T, D): from a list of (1, D) or an array of (T, D) or (T, 1, D)."""
    try:
        frames = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise UserError(f"{where}: the value cannot be read as frames.") from None
    if frames.ndim == 3 and frames.shape[1] == 1:
        frames = frames[:, 0]
    if not len(frames):
        return np.zeros((0, 0), np.float32)
    if frames.ndim != 2 or not frames.shape[1]:
        raise UserError(f"{where}: frames have shape {frames.shape}, must be (T, D) or (T, 1, D).")
    return frames


def _clips(
    file: Path, split: str, features: dict[str, dict[str, np.ndarray]], raw: bool, task: Task, faults: list[str] | None
) -> list[LabelledClip]:
    empty = {m: np.zeros((0, next(iter(frames.values())).shape[1]), np.float32) for m, frames in features.items()}
    clips = []
    with open_table(file, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if missing:
            header = ", ".join(COLUMNS)
            raise UserError(f"{file} lacks the column {missing[0]}; its header must be {header}, separated by tabs.")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
            with collect_faults(faults):
                clip_id = _clip_id(cell, where)
                media = file.parent / _RAW / cell["season"] / cell["episode"] / f"{cell['clip']}.mp4"
                clip = LabelledClip(
                    span=utterance(clip_id, cell["text"], where, media if raw else None),
                    source=f"{split}-{cell['season']}_{cell['episode']}",
                    split=split,
                    label=label_value(cell["label"], task, where),
                    frames={m: frames.get(clip_id, empty[m]) for m, frames in features.items()},
                )
                clips.append(clip)
    return clips


def _clip_id(cell: dict[str, str], where: str) -> str:
    """Return the key of the pickles, for example `S05_E16_329`. The parts are used in a path, so check them."""
    for name in ("season", "episode", "clip"):
        if not cell[name].isalnum():
            raise UserError(f"{where}: {name} is {cell[name]!r}, must consist of letters and digits.")
    return f"{cell['season']}_{cell['episode']}_{cell['clip']}"
