"""Inputs of `qamoe predict`: files, folders and csv files -> spans of clips, each with its words."""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qamoe.config.extractor_settings import TranscribeSettings
from qamoe.data import inbox
from qamoe.data.clip import MediaSpan
from qamoe.data.subtitles import transcript
from qamoe.errors import UserError
from qamoe.media.decode import ClipError, contents
from qamoe.terminal import printable

SHORTEST_WINDOW = 0.5  # seconds; less hardly contains a syllable
LONGEST = 2.0  # longest clip, as a multiple of the longest training clip
NO_TRANSCRIPT = "no transcript"
_REST = 0.1  # of a window; a shorter rest is added to the last window


@dataclass(frozen=True)
class PredictInput:
    """One clip or window to predict; without a `span`, words alone, or an input that cannot be used (`fault` says why).

    `silent` says why there are no words, `unreadable` why the file cannot be read.
    """

    name: str
    span: MediaSpan | None = None
    words: str = ""
    silent: str = ""
    unreadable: str = ""
    fault: str = ""


@dataclass(frozen=True)
class InputOptions:
    """How clips are predicted: their words (None: those of a transcript or the csv), seconds of a window and of the
    longest training clip (None: unknown), and their audio track (None: that of the csv, or the default).

    recogniser: gives words to clips without any; a string says why there is none, and "" that nobody wants one.
    """

    text: str | None = None
    window: float | None = None
    longest: float | None = None
    recogniser: TranscribeSettings | str = ""
    track: str | None = None


def clips(paths: Sequence[Path]) -> list[MediaSpan | PredictInput]:
    """Return the clips of files, folders and csv files (see qamoe.data.inbox), and a fault for any other path."""
    return [clip for path in paths for clip in _clips_of(path)]


def one_file(paths: Sequence[Path]) -> bool:
    """Whether the paths are a single media file."""
    return len(paths) == 1 and not _has_several(paths[0])


def inputs_of(clip: MediaSpan, options: InputOptions) -> list[PredictInput]:
    """Return the whole clip, or its windows, each with the words spoken in it."""
    seconds, unreadable, subtitles = math.nan, "", False
    try:
        found = contents(clip.path)
        subtitles = found.subtitles
        seconds = (found.seconds if clip.end_s is None else min(found.seconds, clip.end_s)) - clip.start_s
    except ClipError as problem:
        unreadable = str(problem)
    if options.window is None and options.longest is not None and seconds > LONGEST * options.longest:
        limit = f"{LONGEST * options.longest:.1f} s"
        return [
            PredictInput(
                clip.clip_id,
                fault=f"{clip.clip_id} is {seconds:.1f} s long; the limit is {limit}, twice the longest training clip "
                f"({options.longest:.1f} s). --window S cuts it into windows of S seconds.",
            )
        ]
    spans = [clip if options.track is None else replace(clip, track=options.track)]
    if options.window is not None and seconds > options.window:
        spans = _windows(spans[0], seconds, options.window)
    inputs = []
    for span in spans:
        words, silent = words_of(span, options.text, len(spans) == 1, subtitles)
        inputs.append(PredictInput(span.clip_id, span, words, silent, unreadable))
    return inputs


def _has_several(path: Path) -> bool:
    return os.path.isdir(path) or path.suffix.lower() == ".csv"  # noqa: PTH112  # Path.is_dir may raise


def _clips_of(path: Path) -> list[MediaSpan | PredictInput]:
    name = str(path)
    faults: list[str] = []
    left_out: list[str] = []
    try:
        if not path.exists():
            return [PredictInput(name, fault=f"{path} does not exist.")]
        if not _has_several(path):
            return [MediaSpan(clip_id=name, path=path)]
        spans = inbox.read(path, faults, left_out)
    except UserError as refusal:
        return [PredictInput(name, fault=str(refusal))]
    except OSError as error:
        return [PredictInput(name, fault=f"{path} is not readable: {error.strerror}.")]
    for sentence in left_out:
        print(f"qamoe: {sentence}", file=sys.stderr)
    if not spans and not faults:
        return [PredictInput(name, fault=f"{path} contains no media files, and no manifest.csv that lists any.")]
    if path.is_dir() and not (path / "manifest.csv").is_file():
        spans = [replace(span, clip_id=str(path / span.clip_id)) for span in spans]
    return [*spans, *(PredictInput(name, fault=fault) for fault in faults)]


def _windows(clip: MediaSpan, seconds: float, window: float) -> list[MediaSpan]:
    """Cut a clip of `seconds` into windows; the last one ends where the clip ends."""
    starts = [clip.start_s + number * window for number in range(math.ceil(seconds / window - _REST))]
    if len(starts) == 1:
        return [clip]
    ends = [*starts[1:], clip.end_s]
    return [
        replace(clip, clip_id=f"{clip.clip_id}@{start_s:g}s", start_s=start_s, end_s=end_s)
        for start_s, end_s in zip(starts, ends, strict=True)
    ]


def words_of(span: MediaSpan, text: str | None, whole: bool, subtitles: bool) -> tuple[str, str]:
    """Return the words of a span and, where there are none, why."""
    if text is not None:
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that the terminal's encoding lacks
            raise UserError(f"--text is {printable(text)}, which is not text in the terminal's encoding; use UTF-8.")
        return text, "" if text.strip() else "--text is empty"
    if span.text and whole:
        return span.text, ""
    try:
        words = transcript(span.path, span.start_s, span.end_s, inside=subtitles)
        elsewhere = not words and (span.start_s or span.end_s is not None) and transcript(span.path, inside=subtitles)
    except ClipError as problem:
        return "", str(problem)
    if span.text and not words:
        return "", "words of a csv have no times, so they cannot be assigned to a window"
    if elsewhere:
        return "", "the transcript has no words at this time"
    return (words, "") if words.strip() else ("", NO_TRANSCRIPT)
