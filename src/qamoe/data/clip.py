"""Clips: spans of media, labelled or not, and what every kind of corpus gives."""

import csv
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import Task, is_classification
from qamoe.errors import UserError
from qamoe.extractors.tokens import CHINESE, ENGLISH, Tokens

# Shares of the sources that a corpus without a split of its own is divided by.
_SHARES = (("train", 0.60), ("valid", 0.72), ("gate", 0.80), ("test", 1.0))


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """What is said in a clip, which may be all that is known of it."""

    clip_id: str
    text: str = ""
    where: str = field(default="", compare=False)  # the file and line that it came from


@dataclass(frozen=True, kw_only=True)
class MediaSpan(Utterance):
    """An utterance in a media file, between two times in seconds; None is the end of the file."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledClip:
    """An utterance of a corpus: a MediaSpan, or one that comes with ready `frames` (T, D) by modality."""

    span: Utterance
    source: str  # the video or speaker; splits never share one
    split: str
    label: float  # regression: the value; classification: the index of the class
    tokens: np.ndarray | None = None  # ready token ids, CLS and SEP included
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def clip_id(self) -> str:
        return self.span.clip_id

    @property
    def text(self) -> str:
        return self.span.text

    @property
    def where(self) -> str:
        return self.span.where

    @property
    def media(self) -> MediaSpan | None:
        return self.span if isinstance(self.span, MediaSpan) else None


@dataclass(frozen=True)
class Corpus:
    """Clips of one corpus. `modalities` are those it can have at all; `about` goes into the run's record.

    `vocabulary` is that of its ready token ids, or of its language's usual encoder; None where the text is only stored
    vectors.
    """

    clips: list[LabelledClip]
    modalities: tuple[str, ...]
    about: dict[str, Any]
    generated: bool = False
    vocabulary: str | None = ENGLISH


def utterance(clip_id: str, text: str, where: str, path: Path | None) -> Utterance:
    """An utterance that is a file of its own, or of which there are no media."""
    if path is None:
        return Utterance(clip_id=clip_id, text=text, where=where)
    return MediaSpan(clip_id=clip_id, text=text, where=where, path=path)


@contextmanager
def noted(faults: list[str] | None) -> Iterator[None]:
    """Keep the sentence of what is refused within and go on; without a list, refuse at once.

    A stage stops at the first fault of a corpus; `qamoe check` wants to see all of them.
    """
    try:
        yield
    except UserError as refusal:
        if faults is None:
            raise
        faults.append(str(refusal))


@contextmanager
def rows_of(file: Path, **how: Any) -> Iterator["csv.DictReader[str]"]:
    """The rows of a table with a header, in UTF-8; `how` goes to csv.DictReader.

    Raises UserError for another encoding, for a column that stands twice and for what is no table, also while the rows
    are read.
    """
    read = 0
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, **how)
            names = reader.fieldnames or []
            twice = [name for name in names if names.count(name) > 1 and name]
            if twice:
                raise UserError(f"{file} has the column {twice[0]!r} twice; each stands once.")
            try:
                yield reader
            finally:
                read = reader.line_num
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it in that encoding.") from None
    except csv.Error as error:
        raise UserError(f"{file} is no {file.suffix.lstrip('.')} file: line {read + 1}, {error}.") from None


def refuse_ragged(row: Mapping[Any, Any], where: str) -> None:
    """Refuse a row of more or fewer cells than the header has: they would stand under the wrong names."""
    if any(row.get(None) or ()):  # where csv.DictReader puts what is too much
        raise UserError(f"{where}: more cells than the header has columns; a text with a comma stands in quotes.")
    if None in row.values():
        raise UserError(f"{where}: fewer cells than the header has columns.")


def drawn_split(source: str) -> str:
    """The split of a source by its hash alone, so that new clips never move old ones."""
    place = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "little") / 2**64
    return next(split for split, upper in _SHARES if place < upper)


def label_value(label: str, task: Task, where: str) -> float:
    """A label as a number: itself in a regression task, the index of its class in a classification task."""
    if is_classification(task):
        if label not in task.classes:
            raise UserError(f"{where}: label {label!r} is none of the classes {', '.join(task.classes)}.")
        return float(task.classes.index(label))
    try:
        value = float(label)
    except ValueError:
        raise UserError(f"{where}: label {label!r} is no number, and the task is regression.") from None
    low, high = task.range
    if not low <= value <= high:
        raise UserError(f"{where}: label {value:g} lies outside [{low:g}, {high:g}].")
    return value


def check_clips(clips: list[LabelledClip], where: str, faults: list[str] | None = None) -> None:
    """Refuse a corpus without clips, with a duplicated id, or with a source in two splits."""
    with noted(faults):
        if not clips:
            raise UserError(f"{where} holds no clips; at least one row is needed.")
    first: dict[str, LabelledClip] = {}
    of_source: dict[str, LabelledClip] = {}
    for clip in clips:
        with noted(faults):
            if clip.clip_id in first:
                raise UserError(f"{clip.where or where}: clip id {clip.clip_id!r} stands twice; ids must be unique.")
            first[clip.clip_id] = clip
            other = of_source.setdefault(clip.source, clip)
            if other.split != clip.split:
                raise UserError(
                    f"{clip.where or where}: source {clip.source!r} is in split {other.split} (clip {other.clip_id}) "
                    f"and in split {clip.split} (clip {clip.clip_id}); a source belongs to one split."
                )


def check_text(corpus: Corpus, tokens: Tokens, where: str) -> None:
    """Refuse text that means nothing to the text extractor: another one's ids without words, or Chinese where it reads
    English. Stored vectors are taken as given."""
    if corpus.vocabulary is None:
        return
    fits = corpus.vocabulary == tokens.vocabulary
    words = any(clip.text.strip() for clip in corpus.clips)
    if not fits and (not words or (corpus.vocabulary, tokens.vocabulary) == (CHINESE, ENGLISH)):
        raise UserError(
            f"{where}: its text needs an encoder with the vocabulary of {corpus.vocabulary}; the text extractor "
            f"{tokens.name} knows that of {tokens.vocabulary}."
        )
    for clip in corpus.clips if fits else ():
        if clip.tokens is not None and len(clip.tokens) and clip.tokens.max() >= tokens.vocab_size:
            raise UserError(
                f"{clip.where or where}: token id {clip.tokens.max()} is none of the {tokens.vocab_size} "
                f"of {tokens.vocabulary}."
            )
