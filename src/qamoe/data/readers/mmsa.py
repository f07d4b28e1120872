"""Read MMSA-format pickles (CMU-MOSI, CMU-MOSEI, CH-SIMS, MMSA-FET): {train, valid, test} of equal-length columns.

The layout is that of thuiar/MMSA's data_loader. Text comes as token ids from `text_bert`, else from `raw_text`. The
stored `text` vectors are used only without both, because the vector of a clean sentence still contains words that a
degradation removes later. The corpus lacks a modality that is not in every split.

Pickles of yaohungt/MulT and pliang279/MultiBench are the same except for two columns: `labels` (N, 1, 1) for
`regression_labels`, and `id` with video, start and end of each clip, or none. Their `text` is GloVe vectors.

CMU-MOSEI has 7 labels in the order of CMU-MultimodalSDK's "All Labels": the sentiment, then the intensities from 0 to 3
of EMOTIONS. A multilabel task of these reads which are above 0, any other task the sentiment; a file may also have the
six intensities alone. They are `labels` (N, 7) or (N, 1, 7), and may be `emotion_labels` (N, 6) in MMSA's layout.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import Task, is_multilabel, label_number
from qamoe.data import safe_pickle
from qamoe.data.clip import Corpus, LabelledClip, Utterance, check_clips, collect_faults, label_value
from qamoe.errors import UserError
from qamoe.extractors.tokens import CHINESE, ENGLISH
from qamoe.files import file_digest

# SHA-256 published in thuiar/MMSA's README.
PUBLISHED = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": "MOSI/Processed/unaligned_50.pkl",
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": "MOSI/Processed/aligned_50.pkl",
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "MOSEI/Processed/unaligned_50.pkl",
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": "MOSEI/Processed/aligned_50.pkl",
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": "SIMS/Processed/unaligned_39.pkl",
}
SPLITS = ("train", "valid", "test")
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
_SEPARATOR = "$_$"
_PLACE = re.compile(r"\[(\d+)\]$")
_MOST_NAMED = 8
_CHINESE_CHARACTER = re.compile("[\u4e00-\u9fff]")
Columns = dict[str, Any]


def read(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read an MMSA pickle. Raises UserError if the file has another layout.

    If `faults` is a list, errors of a clip's label or id are appended to it and the other clips are read.
    """
    content = safe_pickle.read(path)
    if not isinstance(content, dict) or not set(SPLITS) <= set(content):
        raise UserError(
            f"{path} is not an MMSA pickle: its top level is {_seen(content)}, must be a dict of train, valid and test."
        )
    splits = {name: _split(content[name], task, f"{path}, {name}") for name in SPLITS}
    streams = tuple(m for m in ("audio", "vision") if all(m in columns for columns in splits.values()))
    texts = [t for t in ("text_bert", "raw_text", "text") if all(t in columns for columns in splits.values())]
    if not texts:
        raise UserError(f"{path}: every split must have text_bert, raw_text or text; they share none of these.")
    ready = (*streams, "text") if texts == ["text"] else streams
    _one_dimension(splits, ready, path)
    padding = {m: _padding(splits.values(), m) for m in ready}
    clips = [
        clip
        for name, columns in splits.items()
        for clip in _clips(columns, name, texts[0], padding, task, f"{path}, {name}", faults)
    ]
    check_clips(clips, str(path), faults)
    sha = file_digest(path)
    published = PUBLISHED.get(sha)
    about: dict[str, Any] = {"corpus": "mmsa", "file": path.name, "sha256": sha, "published_as": published}
    about |= {"text": texts[0], "padding": padding}
    vocabulary = None
    if texts[0] != "text":
        vocabulary = CHINESE if _is_chinese(clips) or (published or "").startswith("SIMS") else ENGLISH
    return Corpus(clips, ("text", *streams), about, vocabulary=vocabulary)


def _split(columns: Any, task: Task, where: str) -> Columns:
    """Return the columns of a split that are used, checked for shape and equal length."""
    if not isinstance(columns, dict):
        raise UserError(f"{where}: a split must be a dict of columns.")
    label = _label_column(task)
    if "labels" in columns and label not in columns:
        columns = _from_mult(columns, label, where)
    for key in ("id", label):
        if key not in columns:
            raise UserError(f"{where} lacks the column {key}.")
    if is_multilabel(task):
        columns = {**columns, label: _emotions(columns[label], task, f"{where}: {label}")}
    lists = ("id", label, "raw_text")
    used: Columns = {key: _items(columns[key], key, where) for key in lists if key in columns}
    for key in ("text", "text_bert", "audio", "vision"):
        if key in columns:
            used[key] = _numbers(columns[key], key, 3, where)
    for modality in ("audio", "vision"):
        key = f"{modality}_lengths"
        if modality in used and key in columns:
            used[key] = np.clip(_numbers(columns[key], key, 1, where), 0, used[modality].shape[1]).astype(np.int64)
    if "text_bert" in used:
        used["text_bert"] = _rows_first(used["text_bert"], where)
    for key, column in used.items():
        if len(column) != len(used["id"]):
            raise UserError(f"{where}: {key} has {len(column)} rows, but id has {len(used['id'])}.")
    return used


def _seen(content: Any) -> str:
    """Describe the top level of a pickle."""
    if isinstance(content, dict):
        names = [f"{key!r:.40}" for key in content]
        return f"a dict with the keys {', '.join(names[:_MOST_NAMED])}" if names else "an empty dict"
    return (
        f"{type(content).__name__} of {len(content)}" if isinstance(content, list | tuple) else type(content).__name__
    )


def _label_column(task: Task) -> str:
    return "emotion_labels" if is_multilabel(task) else "regression_labels"


def _emotions(column: Any, task: Task, where: str) -> list[float]:
    """Return the number of each clip's labels, from intensities (N, 6) or (N, 7) in the order of EMOTIONS."""
    if set(task.classes) != set(EMOTIONS):
        raise UserError(f"{where} are {', '.join(EMOTIONS)}; extract.task has the classes {', '.join(task.classes)}.")
    intensities = _numbers(column, "the emotions", 2, where)[:, -len(EMOTIONS) :]
    if intensities.shape[1] != len(EMOTIONS):
        raise UserError(
            f"{where} has {intensities.shape[1]} columns, must have {len(EMOTIONS)}: {', '.join(EMOTIONS)}."
        )
    if not ((intensities >= 0) & (intensities <= 3)).all():
        raise UserError(f"{where} has a value outside [0, 3]; intensities are from 0 to 3.")
    order = [EMOTIONS.index(name) for name in task.classes]
    return [label_number(has) for has in intensities[:, order] > 0]


def _from_mult(columns: dict[Any, Any], label: str, where: str) -> dict[Any, Any]:
    """Return the columns of a MulT or MultiBench split with MMSA's names and shapes; its labels as column `label`."""
    try:
        labels = np.asarray(columns["labels"], np.float64)
    except (ValueError, TypeError):
        raise UserError(f"{where}: labels must be an array of numbers.") from None
    count = len(labels) if labels.ndim else 0
    by_clip = labels.reshape(count, -1) if labels.size else np.zeros((count, 1))
    emotions = label == "emotion_labels"
    if by_clip.shape[1] not in ((6, 7) if emotions else (1, 7)):
        needed = (
            "6 or 7 numbers per clip" if emotions else "one number per clip, such as (N, 1, 1), or a multilabel task"
        )
        raise UserError(f"{where}: labels has shape {labels.shape}, must have {needed}.")
    split = where.rpartition(", ")[2]
    items = _items(columns["id"], "id", where) if "id" in columns else [f"{split}-{i}" for i in range(count)]
    names = [_mult_name(item, f"{where}, clip {i}: id") for i, item in enumerate(items)]
    return {**columns, label: by_clip if emotions else by_clip[:, 0], "id": names}


def _mult_name(item: Any, where: str) -> str:
    """Return the name of a clip, VIDEO$_$PLACE if its id has a video and a place within it."""
    parts = [_mult_name(part, where) for part in item] if isinstance(item, np.ndarray | list | tuple) else None
    if parts is None:
        name = str(item) if isinstance(item, int | float | np.number) else safe_pickle.text(item, where)
        return _PLACE.sub(rf"{_SEPARATOR}\1", name)  # VIDEO[3], as CMU-MultimodalSDK names segments
    if not parts:
        raise UserError(f"{where} is empty; it must name the clip.")
    return _SEPARATOR.join([parts[0], "_".join(parts[1:])]) if len(parts) > 1 else parts[0]


def _items(column: Any, key: str, where: str) -> list[Any]:
    if not isinstance(column, (list, tuple)) and not (isinstance(column, np.ndarray) and column.ndim):
        raise UserError(f"{where}: {key} is not a list ({type(column).__name__}).")
    return list(column)


def _numbers(column: Any, key: str, dimensions: int, where: str) -> np.ndarray:
    try:
        # numpy gives every string the width of the longest, so one long string among many would fill the memory.
        numbers = np.asarray(column) if _has_numbers(column) else np.empty((), object)
    except (ValueError, TypeError):
        numbers = np.empty((), object)
    if numbers.ndim != dimensions or numbers.dtype.kind not in "fiub":
        raise UserError(
            f"{where}: {key} has shape {numbers.shape} and dtype {numbers.dtype}, needs {dimensions} numeric axes."
        )
    return numbers


def _has_numbers(column: Any) -> bool:
    if isinstance(column, (list, tuple)):
        return all(_has_numbers(item) and getattr(item, "dtype", np.dtype(int)).kind in "fiub" for item in column)
    return not isinstance(column, (str, bytes))


def _rows_first(bert: np.ndarray, where: str) -> np.ndarray:
    """Return text_bert as (N, 3, L); MMSA's first version wrote (N, L, 3)."""
    if bert.shape[1] == 3:
        return bert
    if bert.shape[2] == 3:
        return bert.transpose(0, 2, 1)
    raise UserError(f"{where}: text_bert has shape {bert.shape}, must be (N, 3, L) or (N, L, 3).")


def _one_dimension(splits: dict[str, Columns], modalities: tuple[str, ...], path: Path) -> None:
    for modality in modalities:
        sizes = {name: columns[modality].shape[2] for name, columns in splits.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            seen = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"{path}: {modality} must have the same number of columns, at least 1, in all splits, not {seen}."
            )


def _clips(
    columns: Columns,
    split: str,
    text: str,
    padding: dict[str, str],
    task: Task,
    where: str,
    faults: list[str] | None,
) -> list[LabelledClip]:
    frames = {m: _frames(columns, m, side) for m, side in padding.items()}
    clips = []
    tokens = _tokens(columns["text_bert"]) if text == "text_bert" else None
    for i, item in enumerate(columns["id"]):
        clip_where = f"{where}, clip {i}"
        with collect_faults(faults):
            name = str(item) if isinstance(item, (int, np.integer)) else safe_pickle.text(item, f"{clip_where}: id")
            clip_where = f"{where}, clip {name}"
            words = safe_pickle.text(columns["raw_text"][i], f"{clip_where}: raw_text") if "raw_text" in columns else ""
            clip = LabelledClip(
                span=Utterance(clip_id=name, text=words, where=clip_where),
                source=name.split(_SEPARATOR)[0],
                split=split,
                label=_label(columns[_label_column(task)][i], task, clip_where),
                tokens=None if tokens is None else tokens(i, clip_where),
                frames={m: frames_of(i) for m, frames_of in frames.items()},
            )
            clips.append(clip)
    return clips


def _label(label: Any, task: Task, where: str) -> float:
    return float(label) if is_multilabel(task) else label_value(str(label), task, where)


def _tokens(bert: np.ndarray) -> Callable[[int, str], np.ndarray]:
    """Return a function that gives the token ids of clip i: row 0 of text_bert (N, 3, L) where row 1, the mask, is set.

    It raises UserError with the clip's place for a value that is not a token id.
    """
    ids, mask = bert[:, 0], bert[:, 1] > 0
    with np.errstate(invalid="ignore"):
        wrong = (~((ids >= 0) & (ids < 2**31) & (ids == np.floor(ids))) & mask).any(1)

    def tokens_of(i: int, where: str) -> np.ndarray:
        if wrong[i]:
            raise UserError(f"{where}: text_bert has a value that is not a token id (an integer of at least 0).")
        return ids[i][mask[i]].astype(np.int32)

    return tokens_of


def _frames(columns: Columns, modality: str, padding: str) -> Callable[[int], np.ndarray]:
    """Return a function that gives the valid frames (T, D) of clip i, float32.

    Their number is the stored length; else, if the sequence is as long as text_bert (aligned files), that of its mask;
    else up to the last row that is not all zero. A sequence padded at the front starts at its first row that is not all
    zero; its stored lengths count up to the first row of zeros and are ignored.
    """
    x = columns[modality]
    lengths = columns.get(f"{modality}_lengths")
    bert = columns.get("text_bert")

    def frames_of(i: int) -> np.ndarray:
        first = 0
        if padding == "front":
            filled = np.flatnonzero(_filled(x[i]))
            first, n = int(filled[0]) if len(filled) else 0, x.shape[1] if len(filled) else 0
        elif lengths is not None:
            n = int(lengths[i])
        elif x.shape[1] == 1:
            n = 1
        elif bert is not None and bert.shape[2] == x.shape[1]:
            n = max(int((bert[i, 1] > 0).sum()), 1)
        else:
            filled = np.flatnonzero(_filled(x[i]))
            n = int(filled[-1]) + 1 if len(filled) else 0
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # values beyond float32 become infinite; preprocess counts them
            return np.asarray(x[i, first:n], np.float32)

    return frames_of


def _padding(splits: Iterable[Columns], modality: str) -> str:
    """Measure on which side sequences are padded with rows of zeros, "end" or "front"; files differ.

    One row of zeros per clip does not count: aligned files have one at [CLS].
    """
    front = end = clips = 0
    for columns in splits:
        filled = _filled(columns[modality])
        some = filled.any(1)
        front += int(filled.argmax(1)[some].sum())
        end += int(filled[:, ::-1].argmax(1)[some].sum())
        clips += int(some.sum())
    return "front" if front > end + clips else "end"


def _filled(x: np.ndarray) -> np.ndarray:
    """Return which frames (..., D) are not all zero -> (...)."""
    with np.errstate(invalid="ignore"):  # numpy warns of a NaN in damaged data
        return np.asarray(x.any(-1))


def _is_chinese(clips: list[LabelledClip]) -> bool:
    """Return whether most texts contain a Chinese character."""
    texts = [clip.text for clip in clips if clip.text.strip()]
    return sum(bool(_CHINESE_CHARACTER.search(text)) for text in texts) * 2 > len(texts)
