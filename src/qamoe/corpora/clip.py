"""What every kind of corpus gives: clips, with a label, a source and a split."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.errors import Refused
from qamoe.params import Task

# Shares of the sources that a corpus without a split of its own is divided by.
_SHARES = (("train", 0.60), ("valid", 0.72), ("gate", 0.80), ("test", 1.0))


@dataclass(frozen=True)
class Clip:
    """One utterance. Either `media` (a file, with a span in seconds) or ready `frames` (T, D) per modality."""

    clip_id: str
    source: str  # the video or speaker; splits never share one
    split: str
    label: float  # regression: the value; classification: the index of the class
    text: str
    media: Path | None = None
    start_s: float = 0.0
    end_s: float | None = None
    tokens: np.ndarray | None = None  # ready token ids, CLS and SEP included
    frames: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Clips of one corpus. `modalities` are those it can have at all; `about` goes into the run's record."""

    clips: list[Clip]
    modalities: tuple[str, ...]
    about: dict[str, Any]
    generated: bool = False


def drawn_split(source: str) -> str:
    """The split of a source by its hash alone, so that new clips never move old ones."""
    place = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "little") / 2**64
    return next(split for split, upper in _SHARES if place < upper)


def label_value(label: str, task: Task, where: str) -> float:
    """A label as a number: itself in a regression task, the index of its class in a classification task."""
    if task.kind == "classification":
        if label not in task.classes:
            raise Refused(f"{where}: label {label!r} is none of the classes {', '.join(task.classes)}.")
        return float(task.classes.index(label))
    try:
        value = float(label)
    except ValueError:
        raise Refused(f"{where}: label {label!r} is no number, and the task is regression.") from None
    if not task.low <= value <= task.high:
        raise Refused(f"{where}: label {value:g} lies outside [{task.low:g}, {task.high:g}].")
    return value


def check_clips(clips: list[Clip], where: str) -> None:
    """Refuse a corpus without clips, with a duplicated id, or with a source in two splits."""
    if not clips:
        raise Refused(f"{where} holds no clips; at least one row is needed.")
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for clip in clips:
        if clip.clip_id in seen:
            raise Refused(f"{where}: clip id {clip.clip_id!r} stands twice; ids must be unique.")
        seen.add(clip.clip_id)
        other = split_of.setdefault(clip.source, clip.split)
        if other != clip.split:
            raise Refused(
                f"{where}: source {clip.source!r} is in split {other} and in split {clip.split}; "
                "a source belongs to one split."
            )
