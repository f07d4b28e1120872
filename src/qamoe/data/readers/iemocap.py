"""IEMOCAP, as GCNet and MoMKE lay it out: IEMOCAP_features_raw_{4,6}way.pkl beside the features of each utterance.

The pickle is a list of six: utterance ids, labels, speakers and sentences by dialogue, then the dialogues of
training (sessions 1 to 4) and of test (session 5). It has no validation split, and GCNet's readers validate on the
test set; here the last session of training validates (our decision), so that no speaker is on both sides.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import Task, is_classification
from qamoe.data import safe_pickle
from qamoe.data.clip import Corpus, LabelledClip, check_clips, label_value, noted, utterance
from qamoe.errors import UserError

# In the order of the numbers in the pickles.
CLASSES = {
    4: ("happy", "sad", "neutral", "angry"),
    6: ("happy", "sad", "neutral", "angry", "excited", "frustrated"),
}
FEATURES = {"audio": "wav2vec-large-c-UTT", "vision": "manet_UTT"}
_ITEMS = ("utterance ids", "labels", "speakers", "sentences", "training dialogues", "test dialogues")
_DIALOGUE = re.compile(r"Ses0([1-5])[A-Za-z0-9_]+")
_UTTERANCE = re.compile(r"Ses0[1-5][A-Za-z0-9_]+")


def read(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read a folder of IEMOCAP. Raises UserError where it is none.

    The number of the task's classes says which pickle is meant. Audio and vision are features/NAME/UTTERANCE of
    FEATURES where those folders are there; else audio is the corpus's own Session*/sentences/wav; else the corpus
    lacks them. With a list for `faults`, what is wrong with an utterance goes there, and the others are read.
    """
    ways = len(task.classes)
    if not is_classification(task) or set(task.classes) != set(CLASSES.get(ways, ())):
        allowed = " or ".join(", ".join(classes) for classes in CLASSES.values())
        raise UserError(f"IEMOCAP needs extract.task of kind classification with the classes {allowed}.")
    file = path / f"IEMOCAP_features_raw_{ways}way.pkl"
    content = safe_pickle.read(file, encoding="latin1")
    ids, labels, speakers, sentences, training, test = _items(content, file)
    splits = _splits(ids, training, test, file)
    given = {m: path / "features" / name for m, name in FEATURES.items() if (path / "features" / name).is_dir()}
    wav = "audio" not in given and (path / "Session1" / "sentences" / "wav").is_dir()
    clips = []
    for dialogue, split in sorted(splits.items()):
        columns = [_column(found, dialogue, file) for found in (ids, labels, speakers, sentences)]
        if len({len(column) for column in columns}) > 1:
            raise UserError(f"{file}, dialogue {dialogue}: ids, labels, speakers and sentences differ in length.")
        for name, label, speaker, sentence in zip(*columns, strict=True):
            where = f"{file}, utterance {name}"
            with noted(faults):
                if not _UTTERANCE.fullmatch(str(name)):
                    raise UserError(f"{where}: such ids begin with Ses01 to Ses05 and hold letters, digits and _.")
                media = _wav(path, dialogue, str(name)) if wav else None
                clip = LabelledClip(
                    span=utterance(str(name), str(sentence), where, media),
                    source=dialogue,
                    split=split,
                    label=label_value(_class(label, ways, where), task, where),
                    frames={m: _frames(folder, str(name), str(speaker), where) for m, folder in given.items()},
                )
                clips.append(clip)
    check_clips(clips, str(file), faults)
    clips = _same_columns(clips, tuple(given), path)
    about = {"corpus": "iemocap", "file": file.name, "features": sorted(given), "media": wav}
    streams = [m for m in FEATURES if m in given or (wav and m == "audio")]
    return Corpus(clips, ("text", *streams), about)


def _items(content: Any, file: Path) -> list[Any]:
    if not isinstance(content, list) or len(content) != len(_ITEMS):
        seen = f"{len(content)} items" if isinstance(content, (list, tuple)) else type(content).__name__
        raise UserError(
            f"{file} is no pickle of GCNet's layout: a list of {', '.join(_ITEMS)} is needed, this is {seen}."
        )
    if not all(isinstance(found, dict) for found in content[:4]):
        raise UserError(f"{file}: {', '.join(_ITEMS[:4])} must be dicts by dialogue.")
    if not all(isinstance(found, (set, list, tuple)) for found in content[4:]):
        raise UserError(f"{file}: {_ITEMS[4]} and {_ITEMS[5]} must be sets.")
    return content


def _splits(ids: dict[Any, Any], training: Any, test: Any, file: Path) -> dict[str, str]:
    """The split of each dialogue; of those of training, the last session validates."""
    split_of = {str(d): "train" for d in training}
    for dialogue in map(str, test):
        if dialogue in split_of:
            raise UserError(f"{file}: dialogue {dialogue} is in training and in test.")
        split_of[dialogue] = "test"
    for dialogue in [*split_of, *map(str, ids)]:
        if not _DIALOGUE.fullmatch(dialogue) or dialogue not in split_of:
            raise UserError(f"{file}: dialogue {dialogue!r} is in no split, or does not begin with Ses01 to Ses05.")
    sessions = {dialogue[4] for dialogue, split in split_of.items() if split == "train"}
    if len(sessions) < 2:
        raise UserError(f"{file}: training needs two sessions, one of them to validate on; it has {len(sessions)}.")
    last = max(sessions)
    return {d: "valid" if split == "train" and d[4] == last else split for d, split in split_of.items()}


def _column(found: dict[Any, Any], dialogue: str, file: Path) -> list[Any]:
    column = found.get(dialogue)
    if not isinstance(column, (list, tuple, np.ndarray)) or not np.ndim(column):
        raise UserError(f"{file} holds no list for dialogue {dialogue}.")
    return list(column)


def _class(label: Any, ways: int, where: str) -> str:
    if not isinstance(label, (int, np.integer)) or not 0 <= label < ways:
        raise UserError(f"{where}: label {label!r} is none of 0 to {ways - 1}.")
    return CLASSES[ways][int(label)]


def _wav(path: Path, dialogue: str, utterance: str) -> Path:
    return path / f"Session{dialogue[4]}" / "sentences" / "wav" / dialogue / f"{utterance}.wav"


def _frames(folder: Path, utterance: str, speaker: str, where: str) -> np.ndarray:
    """Frames (T, D) of one utterance; (0, 0) where there is no file or, in vision, no face.

    Vision is a folder with the two faces of the dialogue; the speaker's is taken.
    """
    file = folder / f"{utterance}.npy"
    if (folder / utterance).is_dir():
        if speaker not in ("F", "M"):
            raise UserError(f"{where}: speaker {speaker!r} is none of F, M.")
        file = folder / utterance / f"compress_{speaker}.npy"
    if not file.is_file():
        return np.zeros((0, 0), np.float32)
    try:
        frames = np.asarray(np.load(file, allow_pickle=False), np.float32)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{where}: {file} is no array of numbers.") from None
    if not frames.size:
        return np.zeros((0, 0), np.float32)
    if frames.ndim not in (1, 2):
        raise UserError(f"{where}: {file} has shape {frames.shape}; allowed is (T, D) or (D,).")
    return np.atleast_2d(frames)


def _same_columns(clips: list[LabelledClip], modalities: tuple[str, ...], path: Path) -> list[LabelledClip]:
    """The clips, with (0, D) for those without frames; refuses utterances that differ in D."""
    for modality in modalities:
        sizes = sorted({clip.frames[modality].shape[1] for clip in clips if len(clip.frames[modality])})
        folder = path / "features" / FEATURES[modality]
        if not sizes:
            raise UserError(f"{folder} holds a file for no utterance; it is UTTERANCE.npy.")
        if len(sizes) > 1:
            raise UserError(f"{folder}: utterances must have one number of columns, not {sizes}.")
        for clip in clips:
            if not len(clip.frames[modality]):
                clip.frames[modality] = np.zeros((0, sizes[0]), np.float32)
    return clips
