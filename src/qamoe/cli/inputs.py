"""What `qamoe predict` is asked: files, folders and csv files -> pieces, each a span of a clip with its words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from qamoe.data import inbox
from qamoe.data.clip import Clip
from qamoe.data.subtitles import beside
from qamoe.errors import UserError
from qamoe.media.decode import ClipError, contents

SHORTEST_WINDOW = 0.5  # seconds; less holds hardly a syllable
LONGEST = 2.0  # a clip may last this many times the longest of training
_REST = 0.1  # of a window: less than that at the end belongs to the window before


@dataclass(frozen=True)
class Piece:
    """One thing to answer. Without a `clip` it is words alone, or, with a sentence in `fault`, nothing at all.

    `silent` says why there are no words, `unreadable` why the file as a whole cannot be read.
    """

    name: str
    clip: Clip | None = None
    words: str = ""
    silent: str = ""
    unreadable: str = ""
    fault: str = ""


@dataclass(frozen=True)
class How:
    """How clips are answered: their words (None: those beside or in the csv), seconds of a window, and the longest clip
    of training (seconds; None where nobody knows)."""

    text: str | None = None
    window: float | None = None
    longest: float | None = None


def clips(paths: Sequence[Path]) -> list[Clip | Piece]:
    """The clips of files, folders and csv files, as qamoe.data.inbox reads them; what is none is a fault."""
    return [found for path in paths for found in _of(path)]


def one_file(paths: Sequence[Path]) -> bool:
    """Whether that is a single media file."""
    return len(paths) == 1 and not _several(paths[0])


def pieces(clip: Clip, how: How) -> list[Piece]:
    """The clip as a whole, or its windows, each with the words that are said in it."""
    assert clip.media is not None
    lasts, end_s, unreadable = math.nan, clip.end_s, ""
    try:
        whole = contents(clip.media).seconds
        lasts = (whole if end_s is None else min(whole, end_s)) - clip.start_s
    except ClipError as problem:
        unreadable = str(problem)
    if how.window is None and how.longest is not None and lasts > LONGEST * how.longest:
        allowed = f"{LONGEST * how.longest:.1f} s"
        return [
            Piece(
                clip.clip_id,
                fault=f"{clip.clip_id} lasts {lasts:.1f} s, more than twice the longest clip of training "
                f"({how.longest:.1f} s); with --window S it is answered in windows of S seconds, up to {allowed}.",
            )
        ]
    spans = [(clip.start_s, end_s)]
    if how.window is not None and lasts > how.window:
        spans = _windows(clip.start_s, end_s, lasts, how.window)
    made = []
    for start_s, last_s in spans:
        until_s = clip.end_s if last_s == end_s else last_s  # words may be said to end a little behind the file
        words, silent = _words(clip, how.text, start_s, until_s, len(spans) == 1)
        name = clip.clip_id if len(spans) == 1 else f"{clip.clip_id}@{start_s:g}s"
        part = Clip(name, "", "", math.nan, words, clip.media, start_s, last_s)
        made.append(Piece(name, part, words, silent, unreadable))
    return made


def _several(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".csv"


def _of(path: Path) -> list[Clip | Piece]:
    name = str(path)
    if not path.exists():
        return [Piece(name, fault=f"There is no file {path}.")]
    if not _several(path):
        return [Clip(name, "", "", math.nan, "", path)]
    faults: list[str] = []
    try:
        found = inbox.read(path, faults)
    except UserError as refusal:
        return [Piece(name, fault=str(refusal))]
    if not found and not faults:
        return [Piece(name, fault=f"There are no media in {path}, and no manifest.csv that lists some.")]
    if path.is_dir() and not (path / "manifest.csv").is_file():
        found = [replace(clip, clip_id=str(path / clip.clip_id)) for clip in found]
    return [*found, *(Piece(name, fault=fault) for fault in faults)]


def _windows(start_s: float, end_s: float | None, lasts: float, window: float) -> list[tuple[float, float | None]]:
    """Windows of a clip that `lasts` so many seconds; the last one ends where the clip does."""
    begins = [start_s + number * window for number in range(math.ceil(lasts / window - _REST))]
    return [*pairwise(begins), (begins[-1], end_s)]


def _words(clip: Clip, text: str | None, start_s: float, end_s: float | None, whole: bool) -> tuple[str, str]:
    """What is said, and why there are no words."""
    assert clip.media is not None
    if text is not None:
        words = text
    elif clip.text and whole:
        words = clip.text
    else:
        try:
            words = beside(clip.media, start_s, end_s)
        except ClipError as problem:
            return "", str(problem)
        if clip.text and not words:
            return "", "the words of the csv have no times, so that they cannot be placed in a window"
    return (words, "") if words.strip() else ("", "no transcript")
