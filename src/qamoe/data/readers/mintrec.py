"""MIntRec (thuiar): {train,dev,test}.tsv, and where they are there, feature pickles or the clips themselves.

The layout is the one that thuiar/MIntRec's readers read; JoeYing1019/SDIF-DA puts the pickles beside the tsv files,
and both places are looked at. The official split has all 43 episodes in all three files, so a source is an episode
within its split: what the split shares between training and test, this reader cannot undo.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import Task
from qamoe.data import safe_pickle
from qamoe.data.clip import Corpus, LabelledClip, check_clips, label_value, noted, rows_of, utterance
from qamoe.errors import UserError

COLUMNS = ("season", "episode", "clip", "text", "label")
SPLITS = {"train": "train", "dev": "valid", "test": "test"}  # file -> split
# In the order of the public reader; the spelling is that of the files, not of the README.
CLASSES = (
    *("Complain", "Praise", "Apologise", "Thank", "Criticize", "Agree", "Taunt", "Flaunt", "Joke", "Oppose"),
    *("Comfort", "Care", "Inform", "Advise", "Arrange", "Introduce", "Leave", "Prevent", "Greet", "Ask for help"),
)
_FEATURES = {"audio": ("audio_data", "audio_feats.pkl"), "vision": ("video_data", "video_feats.pkl")}
_RAW = "raw_data"


def read(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read a folder of MIntRec. Raises UserError where it is none.

    Audio and vision are (T, 768) and (T, 256) of the pickles, else media in raw_data/, else the corpus lacks them.
    With a list for `faults`, what is wrong with a row goes there, and the other rows are read.
    """
    files = {name: path / f"{name}.tsv" for name in SPLITS}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"There is no {file}; MIntRec is train.tsv, dev.tsv and test.tsv in one folder.")
    features = {m: _features(path, m) for m in _FEATURES}
    given = {m: found for m, found in features.items() if found is not None}
    raw = not given and (path / _RAW).is_dir()
    clips = [clip for name in SPLITS for clip in _clips(files[name], SPLITS[name], given, raw, task, faults)]
    check_clips(clips, str(path), faults)
    for modality, found in given.items():
        if not any(clip.clip_id in found for clip in clips):
            raise UserError(f"{path}: the {modality} pickle holds none of the clips of the tsv files.")
    streams = tuple(_FEATURES) if raw else tuple(given)
    about = {"corpus": "mintrec", "features": sorted(given), "media": raw}
    return Corpus(clips, ("text", *streams), about)


def _features(path: Path, modality: str) -> dict[str, np.ndarray] | None:
    """Frames (T, D) by clip id, or None where there is no pickle."""
    folder, name = _FEATURES[modality]
    file = next((f for f in (path / folder / name, path / name) if f.is_file()), None)
    if file is None:
        return None
    content = safe_pickle.read(file)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} is no feature pickle of MIntRec: it must be a dict of clip id -> frames.")
    found = {str(key): _frames(value, f"{file}, clip {key}") for key, value in content.items()}
    sizes = sorted({frames.shape[1] for frames in found.values() if len(frames)})
    if len(sizes) != 1:
        raise UserError(f"{file}: clips must have frames of one number of columns, not {sizes}.")
    return {key: frames if len(frames) else np.zeros((0, sizes[0]), np.float32) for key, frames in found.items()}


def _frames(value: Any, where: str) -> np.ndarray:
    """Frames (T, D): a list of (1, D) or an array of (T, D) or (T, 1, D)."""
    try:
        frames = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise UserError(f"{where} holds no frames.") from None
    if frames.ndim == 3 and frames.shape[1] == 1:
        frames = frames[:, 0]
    if not len(frames):
        return np.zeros((0, 0), np.float32)
    if frames.ndim != 2 or not frames.shape[1]:
        raise UserError(f"{where}: frames of shape {frames.shape}; allowed is (T, D) or (T, 1, D).")
    return frames


def _clips(
    file: Path, split: str, given: dict[str, dict[str, np.ndarray]], raw: bool, task: Task, faults: list[str] | None
) -> list[LabelledClip]:
    empty = {m: np.zeros((0, next(iter(found.values())).shape[1]), np.float32) for m, found in given.items()}
    clips = []
    with rows_of(file, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
        lacking = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if lacking:
            raise UserError(f"{file} lacks the column {lacking[0]}; its header is {', '.join(COLUMNS)}, tab between.")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
            with noted(faults):
                clip_id = _clip_id(cell, where)
                media = file.parent / _RAW / cell["season"] / cell["episode"] / f"{cell['clip']}.mp4"
                clip = LabelledClip(
                    span=utterance(clip_id, cell["text"], where, media if raw else None),
                    source=f"{split}-{cell['season']}_{cell['episode']}",
                    split=split,
                    label=label_value(cell["label"], task, where),
                    frames={m: found.get(clip_id, empty[m]) for m, found in given.items()},
                )
                clips.append(clip)
    return clips


def _clip_id(cell: dict[str, str], where: str) -> str:
    """`S05_E16_329`, the key of the pickles. The parts are names within a path, so they hold letters and digits."""
    for name in ("season", "episode", "clip"):
        if not cell[name].isalnum():
            raise UserError(f"{where}: {name} {cell[name]!r} is no name of letters and digits.")
    return f"{cell['season']}_{cell['episode']}_{cell['clip']}"
