"""Read IEMOCAP in the layout of GCNet and MoMKE: IEMOCAP_features_raw_{4,6}way.pkl and features of each utterance.

The pickle is a list of six: utterance ids, labels, speakers and sentences by dialogue, then the dialogues of
training (sessions 1 to 4) and of test (session 5). It has no validation split, and GCNet's readers validate on the
test set. Here the last session of training is the validation split (our decision), so that no speaker is in two splits.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import Task, is_classification
from qamoe.data import safe_pickle
from qamoe.data.clip import Corpus, LabelledClip, check_clips, collect_faults, label_value, utterance
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
    """Read a folder of IEMOCAP. Raises UserError if the folder has another layout.

    The number of the task's classes selects the pickle. Audio and vision are read from features/NAME/UTTERANCE of
    FEATURES if those folders exist, else audio from Session*/sentences/wav; otherwise the corpus lacks them. If
    `faults` is a list, errors of single utterances are appended to it and the others are read.
    """
    ways = len(task.classes)
    if not is_classification(task) or set(task.classes) != set(CLASSES.get(ways, ())):
        allowed = " or ".join(", ".join(classes) for classes in CLASSES.values())
        raise UserError(f"IEMOCAP needs extract.task of kind classification with the classes {allowed}.")
    file = path / f"IEMOCAP_features_raw_{ways}way.pkl"
    content = safe_pickle.read(file, encoding="latin1")
    ids, labels, speakers, sentences, training, test = _items(content, file)
    splits = _splits(ids, training, test, file)
    folders = {m: path / "features" / name for m, name in FEATURES.items() if (path / "features" / name).is_dir()}
    wav = "audio" not in folders and (path / "Session1" / "sentences" / "wav").is_dir()
    clips = []
    for dialogue, split in sorted(splits.items()):
        columns = [_column(by_dialogue, dialogue, file) for by_dialogue in (ids, labels, speakers, sentences)]
        if len({len(column) for column in columns}) > 1:
            raise UserError(f"{file}, dialogue {dialogue}: ids, labels, speakers and sentences differ in length.")
        for item, label, speaker, sentence in zip(*columns, strict=True):
            where = f"{file}, utterance {item!r:.40}"
            with collect_faults(faults):
                name = safe_pickle.text(item, f"{where}: id")
                where = f"{file}, utterance {name}"
                if not _UTTERANCE.fullmatch(name):
                    raise UserError(
                        f"{where}: utterance ids must begin with Ses01 to Ses05 and consist of letters, digits and _."
                    )
                media = _wav(path, dialogue, name) if wav else None
                clip = LabelledClip(
                    span=utterance(name, safe_pickle.text(sentence, f"{where}: sentence"), where, media),
                    source=dialogue,
                    split=split,
                    label=label_value(_class(label, ways, where), task, where),
                    frames={m: _frames(folder, name, str(speaker), where) for m, folder in folders.items()},
                )
                clips.append(clip)
    check_clips(clips, str(file), faults)
    clips = _same_columns(clips, tuple(folders), path)
    about = {"corpus": "iemocap", "file": file.name, "features": sorted(folders), "media": wav}
    streams = [m for m in FEATURES if m in folders or (wav and m == "audio")]
    return Corpus(clips, ("text", *streams), about)


def _items(content: Any, file: Path) -> list[Any]:
    if not isinstance(content, list) or len(content) != len(_ITEMS):
        seen = f"{len(content)} items" if isinstance(content, (list, tuple)) else type(content).__name__
        raise UserError(
            f"{file} does not have GCNet's layout: it holds {seen}, must be a list of {len(_ITEMS)} items "
            f"({', '.join(_ITEMS)})."
        )
    if not all(isinstance(item, dict) for item in content[:4]):
        raise UserError(f"{file}: {', '.join(_ITEMS[:4])} must be dicts by dialogue.")
    if not all(isinstance(item, (set, list, tuple)) for item in content[4:]):
        raise UserError(f"{file}: {_ITEMS[4]} and {_ITEMS[5]} must be sets.")
    return content


def _splits(ids: dict[Any, Any], training: Any, test: Any, file: Path) -> dict[str, str]:
    """Return the split of each dialogue; the last session of training becomes the validation split."""
    names = [[safe_pickle.text(name, f"{file}: a dialogue") for name in part] for part in (training, test, ids)]
    split_of = dict.fromkeys(names[0], "train")
    for dialogue in names[1]:
        if dialogue in split_of:
            raise UserError(f"{file}: dialogue {dialogue} is in both training and test.")
        split_of[dialogue] = "test"
    for dialogue in [*split_of, *names[2]]:
        if not _DIALOGUE.fullmatch(dialogue) or dialogue not in split_of:
            raise UserError(f"{file}: dialogue {dialogue!r} is in no split, or does not begin with Ses01 to Ses05.")
    sessions = {dialogue[4] for dialogue, split in split_of.items() if split == "train"}
    if len(sessions) < 2:
        raise UserError(
            f"{file}: training has {len(sessions)} sessions, must have at least 2, one of them for validation."
        )
    last = max(sessions)
    return {d: "valid" if split == "train" and d[4] == last else split for d, split in split_of.items()}


def _column(by_dialogue: dict[Any, Any], dialogue: str, file: Path) -> list[Any]:
    column = by_dialogue.get(dialogue)
    if not isinstance(column, (list, tuple)) and not (isinstance(column, np.ndarray) and column.ndim):
        raise UserError(f"{file} has no list for dialogue {dialogue}.")
    return list(column)


def _class(label: Any, ways: int, where: str) -> str:
    if not isinstance(label, (int, np.integer)) or not 0 <= label < ways:
        raise UserError(f"{where}: label is {label!r}, must be an integer from 0 to {ways - 1}.")
    return CLASSES[ways][int(label)]


def _wav(path: Path, dialogue: str, utterance: str) -> Path:
    return path / f"Session{dialogue[4]}" / "sentences" / "wav" / dialogue / f"{utterance}.wav"


def _frames(folder: Path, utterance: str, speaker: str, where: str) -> np.ndarray:
    """Return frames (T, D) of one utterance; (0, 0) without a file or, in vision, without a face.

    Vision is a folder with the two faces of the dialogue; only the speaker's is read.
    """
    file = folder / f"{utterance}.npy"
    if (folder / utterance).is_dir():
        if speaker not in ("F", "M"):
            raise UserError(f"{where}: speaker is {speaker!r}, must be F or M.")
        file = folder / utterance / f"compress_{speaker}.npy"
    if not file.is_file():
        return np.zeros((0, 0), np.float32)
    try:
        frames = np.asarray(np.load(file, allow_pickle=False), np.float32)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{where}: {file} is not an array of numbers.") from None
    if not frames.size:
        return np.zeros((0, 0), np.float32)
    if frames.ndim not in (1, 2):
        raise UserError(f"{where}: {file} has shape {frames.shape}, must be (T, D) or (D,).")
    return np.atleast_2d(frames)


def _same_columns(clips: list[LabelledClip], modalities: tuple[str, ...], path: Path) -> list[LabelledClip]:
    """Give clips without frames the shape (0, D). Raises UserError if utterances differ in D."""
    for modality in modalities:
        sizes = sorted({clip.frames[modality].shape[1] for clip in clips if len(clip.frames[modality])})
        folder = path / "features" / FEATURES[modality]
        if not sizes:
            raise UserError(f"{folder} has no file for any utterance; files must be named UTTERANCE.npy.")
        if len(sizes) > 1:
            raise UserError(f"{folder}: utterances have {sizes} columns, must all have the same number.")
        for clip in clips:
            if not len(clip.frames[modality]):
                clip.frames[modality] = np.zeros((0, sizes[0]), np.float32)
    return clips
