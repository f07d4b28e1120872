"""What `qamoe predict` is given: files, folders and csv files -> inputs, each a span of a clip with its words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qamoe.data import inbox
from qamoe.data.clip import MediaSpan
from qamoe.data.subtitles import beside
from qamoe.errors import UserError
from qamoe.media.decode import ClipError, contents

SHORTEST_WINDOW = 0.5  # seconds; less holds hardly a syllable
LONGEST = 2.0  # a clip may last this many times the longest of training
_REST = 0.1  # of a window: less than that at the end belongs to the window before


@dataclass(frozen=True)
class PredictInput:
    """One thing to answer. Without a `span` it is words alone, or, with a sentence in `fault`, nothing at all.

    `silent` says why there are no words, `unreadable` why the file as a whole cannot be read.
    """

    name: str
    span: MediaSpan | None = None
    words: str = ""
    silent: str = ""
    unreadable: str = ""
    fault: str = ""


@dataclass(frozen=True)
class InputOptions:
    """How clips are answered: their words (None: those beside or in the csv), seconds of a window, and the longest clip
    of training (seconds; None where nobody knows)."""

    text: str | None = None
    window: float | None = None
    longest: float | None = None


def clips(paths: Sequence[Path]) -> list[MediaSpan | PredictInput]:
    """The clips of files, folders and csv files, as qamoe.data.inbox reads them; what is none is a fault."""
    return [clip for path in paths for clip in _clips_of(path)]


def one_file(paths: Sequence[Path]) -> bool:
    """Whether that is a single media file."""
    return len(paths) == 1 and not _several(paths[0])


def inputs_of(clip: MediaSpan, options: InputOptions) -> list[PredictInput]:
    """The clip as a whole, or its windows, each with the words that are said in it."""
    lasts, unreadable = math.nan, ""
    try:
        end_of_file = contents(clip.path).seconds
        lasts = (end_of_file if clip.end_s is None else min(end_of_file, clip.end_s)) - clip.start_s
    except ClipError as problem:
        unreadable = str(problem)
    if options.window is None and options.longest is not None and lasts > LONGEST * options.longest:
        allowed = f"{LONGEST * options.longest:.1f} s"
        return [
            PredictInput(
                clip.clip_id,
                fault=f"{clip.clip_id} lasts {lasts:.1f} s, more than twice the longest clip of training "
                f"({options.longest:.1f} s); with --window S it is answered in windows of S seconds, up to {allowed}.",
            )
        ]
    spans = [clip]
    if options.window is not None and lasts > options.window:
        spans = _windows(clip, lasts, options.window)
    inputs = []
    for span in spans:
        words, silent = _words(span, options.text, len(spans) == 1)
        inputs.append(PredictInput(span.clip_id, span, words, silent, unreadable))
    return inputs


def _several(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".csv"


def _clips_of(path: Path) -> list[MediaSpan | PredictInput]:
    name = str(path)
    if not path.exists():
        return [PredictInput(name, fault=f"There is no file {path}.")]
    if not _several(path):
        return [MediaSpan(clip_id=name, path=path)]
    faults: list[str] = []
    try:
        spans = inbox.read(path, faults)
    except UserError as refusal:
        return [PredictInput(name, fault=str(refusal))]
    if not spans and not faults:
        return [PredictInput(name, fault=f"There are no media in {path}, and no manifest.csv that lists some.")]
    if path.is_dir() and not (path / "manifest.csv").is_file():
        spans = [replace(span, clip_id=str(path / span.clip_id)) for span in spans]
    return [*spans, *(PredictInput(name, fault=fault) for fault in faults)]


def _windows(clip: MediaSpan, lasts: float, window: float) -> list[MediaSpan]:
    """Windows of a clip that `lasts` so many seconds; the last one ends where the clip does."""
    starts = [clip.start_s + number * window for number in range(math.ceil(lasts / window - _REST))]
    if len(starts) == 1:
        return [clip]
    ends = [*starts[1:], clip.end_s]
    return [
        replace(clip, clip_id=f"{clip.clip_id}@{start_s:g}s", start_s=start_s, end_s=end_s)
        for start_s, end_s in zip(starts, ends, strict=True)
    ]


def _words(span: MediaSpan, text: str | None, whole: bool) -> tuple[str, str]:
    """What is said, and why there are no words."""
    if text is not None:
        words = text
    elif span.text and whole:
        words = span.text
    else:
        try:
            words = beside(span.path, span.start_s, span.end_s)
        except ClipError as problem:
            return "", str(problem)
        if span.text and not words:
            return "", "the words of the csv have no times, so that they cannot be placed in a window"
    return (words, "") if words.strip() else ("", "no transcript")
