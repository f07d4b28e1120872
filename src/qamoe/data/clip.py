"""Clips and corpora: labelled or unlabelled spans of media, and the checks that every kind of corpus shares."""

import csv
import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.task import NO_LABEL, SEPARATOR, Task, is_classification, is_multilabel, label_number
from qamoe.errors import UserError
from qamoe.extractors.tokens import CHINESE, ENGLISH, Reading, Tokens

# Cumulative shares of the sources in each split, for a corpus without splits of its own.
_SHARES = (("train", 0.60), ("valid", 0.72), ("gate", 0.80), ("test", 1.0))


_MOST_COLUMNS = 1000
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# What control characters mean where a table or a text was read as Latin-1: U+0092 is an apostrophe.
WINDOWS_1252 = {number: bytes([number]).decode("cp1252", "ignore") or " " for number in range(0x80, 0xA0)}


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """The transcript of a clip; without media this is all that is known of it."""

    clip_id: str
    text: str = ""
    where: str = field(default="", compare=False)  # its file and line, for error messages


@dataclass(frozen=True, kw_only=True)
class MediaSpan(Utterance):
    """An utterance in a media file, between two times in seconds; None is the end of the file.

    `track` is the audio track's number, language or title; "" is the default one.
    """

    path: Path
    start_s: float = 0.0
    end_s: float | None = None
    track: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelledClip:
    """A labelled utterance of a corpus: a MediaSpan, or an utterance with ready `frames` (T, D) by modality."""

    span: Utterance
    source: str  # the video or speaker; splits never share one
    split: str
    label: float  # regression: the value; classification: the index of the class; multilabel: see config/task.py
    tokens: np.ndarray | None = None  # ready token ids, including CLS and SEP
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make text storable: no half of a pair of surrogates, and empty if nothing of it can be seen or read."""
        text = self.span.text.encode(errors="replace").decode()
        if not any(unicodedata.category(character)[0] not in "CZ" for character in text):
            text = ""
        if text != self.span.text:
            object.__setattr__(self, "span", replace(self.span, text=text))

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
    """Clips of one corpus. `modalities` are those that its clips can have; `about` is logged with the run.

    `vocabulary` is that of its ready token ids, or of the usual encoder for its language; None if the text is only
    stored as vectors.
    """

    clips: list[LabelledClip]
    modalities: tuple[str, ...]
    about: dict[str, Any]
    generated: bool = False
    vocabulary: str | None = ENGLISH


def utterance(clip_id: str, text: str, where: str, path: Path | None) -> Utterance:
    """Return an utterance that is a whole media file, or one without media if `path` is None."""
    if path is None:
        return Utterance(clip_id=clip_id, text=text, where=where)
    return MediaSpan(clip_id=clip_id, text=text, where=where, path=path)


@contextmanager
def collect_faults(faults: list[str] | None) -> Iterator[None]:
    """Append the message of a UserError to `faults` and continue; without a list, let the error pass.

    A stage stops at the first fault of a corpus; `qamoe check` shows all of them.
    """
    try:
        yield
    except UserError as error:
        if faults is None:
            raise
        faults.append(str(error))


@contextmanager
def open_table(file: Path, **how: Any) -> Iterator["csv.DictReader[str]"]:
    """Open a UTF-8 table with a header and yield a reader of its rows; `how` goes to csv.DictReader.

    Raises UserError for another encoding, a duplicate column or a malformed table, also while you read the rows.
    """
    read = 0
    if file.exists() and not file.is_file():  # reading a pipe that nobody writes to never ends
        raise UserError(f"{file} is not a regular file; it must be a table.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, **how)
            names = reader.fieldnames or []
            if len(names) > _MOST_COLUMNS:
                raise UserError(f"{file} has {len(names)} columns; at most {_MOST_COLUMNS} are read.")
            _check_separator(file, names, how.get("delimiter", ","))
            duplicates = [name for name in names if names.count(name) > 1 and name]
            if duplicates:
                raise UserError(f"{file} has the column {duplicates[0]!r} more than once; columns must be unique.")
            try:
                yield reader
            finally:
                read = reader.line_num
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file} is not readable: {error.strerror}.") from None
    except csv.Error as error:
        raise UserError(f"{file}, line {read + 1}: not valid {file.suffix.lstrip('.')} ({error}).") from None


def _check_separator(file: Path, names: Sequence[str], separator: str) -> None:
    """Reject a header whose names hang together, because another character is between them."""
    other = next((character for character in ";\t,|" if len(names) == 1 and character in names[0]), None)
    if other is not None:
        raise UserError(
            f"{file} has {_SEPARATORS[other]} between its columns, must have {_SEPARATORS[separator]}; save it again "
            "with that separator, and numbers with a decimal point."
        )


def reject_ragged(row: Mapping[Any, Any], where: str) -> None:
    """Reject a row with more or fewer cells than the header; its cells would belong to the wrong columns."""
    if any(row.get(None) or ()):  # csv.DictReader puts excess cells there
        raise UserError(f"{where}: more cells than the header has columns; put a text with a comma in quotes.")
    if None in row.values():
        raise UserError(f"{where}: fewer cells than the header has columns.")


def drawn_split(source: str) -> str:
    """Choose the split of a source by its hash alone, so that new clips never move old ones."""
    quantile = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "little") / 2**64
    return next(split for split, upper in _SHARES if quantile < upper)


def decimal_comma(cell: str) -> str:
    """Return the end of a sentence for a number with a decimal comma; "" for any other cell."""
    number = cell.strip().removeprefix("-").removeprefix("+")
    whole, comma, rest = number.partition(",")
    return f"; write {cell.replace(',', '.')}, with a decimal point" if comma and (whole + rest).isdecimal() else ""


def label_value(label: str, task: Task, where: str) -> float:
    """Convert a label to a number: its value, the index of its class, or that of its labels, NAME;NAME or none."""
    if is_multilabel(task):
        names = [] if label == NO_LABEL else [name.strip() for name in label.split(SEPARATOR)]
        unknown = next((name for name in names if name not in task.classes), None)
        if unknown is not None:
            raise UserError(f"{where}: label {unknown!r} is not {NO_LABEL} or one of {', '.join(task.classes)}.")
        return label_number(name in names for name in task.classes)
    if is_classification(task):
        if label not in task.classes:
            raise UserError(f"{where}: label {label!r} is not one of the classes {', '.join(task.classes)}.")
        return float(task.classes.index(label))
    try:
        value = float(label)
    except ValueError:
        comma = decimal_comma(label)
        raise UserError(f"{where}: label {label!r} is not a number; this is a regression task{comma}.") from None
    low, high = task.range
    if not low <= value <= high:
        raise UserError(f"{where}: label {value:g} is outside [{low:g}, {high:g}].")
    return value


def check_clips(clips: list[LabelledClip], where: str, faults: list[str] | None = None) -> None:
    """Reject a corpus without clips, with a duplicate id, or with a source in two splits."""
    with collect_faults(faults):
        if not clips:
            raise UserError(f"{where} holds no clips; at least one row is needed.")
    first: dict[str, LabelledClip] = {}
    first_of_source: dict[str, LabelledClip] = {}
    for clip in clips:
        with collect_faults(faults):
            earlier = first.get(clip.clip_id)
            if earlier is not None:
                raise UserError(
                    f"{clip.where or where}: duplicate clip id {clip.clip_id!r} "
                    f"(first at {earlier.where or where}); ids must be unique."
                )
            first[clip.clip_id] = clip
            other = first_of_source.setdefault(clip.source, clip)
            if other.split != clip.split:
                raise UserError(
                    f"{clip.where or where}: source {clip.source!r} is in split {other.split} (clip {other.clip_id}) "
                    f"and in split {clip.split} (clip {clip.clip_id}); a source belongs to one split."
                )


def check_text(corpus: Corpus, tokens: Tokens, where: str) -> None:
    """Reject text that the text extractor cannot read: ids of another vocabulary without words, or Chinese text with
    an English encoder. Stored vectors are not checked."""
    if corpus.vocabulary is None:
        return
    same = corpus.vocabulary == tokens.vocabulary
    words = any(clip.text.strip() for clip in corpus.clips)
    if not same and (not words or (corpus.vocabulary, tokens.vocabulary) == (CHINESE, ENGLISH)):
        raise UserError(
            f"{where}: the text needs an encoder with the vocabulary of {corpus.vocabulary}; the text extractor "
            f"{tokens.name} has that of {tokens.vocabulary}."
        )
    for clip in corpus.clips if same else ():
        if clip.tokens is not None and len(clip.tokens) and clip.tokens.max() >= tokens.vocab_size:
            raise UserError(
                f"{clip.where or where}: token id {clip.tokens.max()} is outside the vocabulary of "
                f"{tokens.vocabulary}, which has {tokens.vocab_size} tokens."
            )


def text_reading(clip: LabelledClip, corpus: Corpus, tokens: Tokens, most: int | None = None) -> Reading | None:
    """Return what the text extractor reads of a clip's words; None if it has none or ready ids or vectors for them."""
    ready = clip.tokens is not None and corpus.vocabulary == tokens.vocabulary
    return None if corpus.vocabulary is None or ready or not clip.text else tokens.read(clip.text, most)
