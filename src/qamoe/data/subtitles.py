"""Read the transcript of a media file: a file next to it (.srt, .vtt, .json or .txt, in UTF-8), or a track inside it.

For NAME.mp4, the file is NAME.srt, NAME.mp4.srt or NAME.en.srt; the ending may be in capitals. Those with times take
precedence over .txt. A .json is that of Whisper or whisper.cpp; other ones are ignored.
"""

import html
import json
import math
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from qamoe.data.clip import WINDOWS_1252
from qamoe.media.decode import SUFFIXES, ClipError, read_subtitles

_TIMED = (".srt", ".vtt", ".json")
TRANSCRIPTS = (*_TIMED, ".txt")
_TIME = r"(?:(-?\d+):)?(\d\d):(\d\d)[,.](\d{1,3})"
_LATEST_S = 3.6e6
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
_LANGUAGE = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{2,8})*(?:\.(?:sdh|cc|hi|auto|default))*")
_ADJACENT_S = 0.25  # cues less apart than this may be one caption that rolls
_ROLLING_SHARE = 0.5
Cue = tuple[float, float, list[str]]


def transcript(media: Path, start_s: float = 0.0, end_s: float | None = None, inside: bool = True) -> str:
    """Return the transcript of a span (seconds) of a media file, or "" if it has none.

    A cue belongs to the span that contains its middle, so that neighbouring spans share no words. A .txt covers the
    whole file. `inside`: look for a track in the media file if no file is next to it. Raises ClipError for a file that
    cannot be read, and for a .txt if only a span is read.
    """
    last_s = math.inf if end_s is None else end_s
    for file in _files(media):
        timed = file.suffix.lower() in _TIMED
        if not timed and (start_s or end_s is not None):
            raise ClipError(f"{file.name} has no times and cannot be used for a span; provide {media.stem}.srt")
        try:
            content = file.read_text(encoding="utf-8-sig").translate(WINDOWS_1252)
        except UnicodeDecodeError:
            raise ClipError(f"{file.name} is not UTF-8 text") from None
        except OSError as error:
            raise ClipError(f"{file.name} cannot be read: {error.strerror}") from None
        if not timed:
            return " ".join(content.split())
        cues = _json_cues(content, file.name) if file.suffix.lower() == ".json" else _cues(content, file)
        if cues is not None:
            return _words(cues, start_s, last_s)
    if not inside:
        return ""
    try:
        tracks = read_subtitles(media)
    except ClipError:
        return ""  # the reader of its streams says why
    return _words([(begin, end, _lines(text.splitlines())) for begin, end, text in tracks], start_s, last_s)


def _files(media: Path) -> list[Path]:
    """Return the transcripts next to a media file, the best first.

    Raises ClipError if there are only some in several other languages than English.
    """
    try:
        names = [name for name in os.listdir(media.parent) if name.startswith(media.stem)]  # noqa: PTH208  # of a large folder
    except OSError:
        return []
    others = {Path(name).stem for name in names if Path(name).suffix.lower() in SUFFIXES} - {media.stem}
    ranked: list[tuple[bool, int, int, str]] = []
    foreign: dict[str, list[tuple[bool, int, int, str]]] = {}
    for name in sorted(names):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122  # of a name
        if suffix.lower() not in TRANSCRIPTS or (stem in others and stem != media.name):
            continue
        plain, kind = suffix.lower() == ".txt", TRANSCRIPTS.index(suffix.lower())
        own = next(own for own in (media.name, media.stem) if stem.startswith(own))
        language = _LANGUAGE.fullmatch(stem.removeprefix(f"{own}."))
        if stem == own:
            ranked.append((plain, int(own == media.name), kind, name))
        elif language and language[1].lower() in ("en", "eng"):
            ranked.append((plain, 2, kind, name))
        elif language and stem.startswith(f"{own}."):
            foreign.setdefault(language[1].lower(), []).append((plain, 3, kind, name))
    if not ranked and len(foreign) > 1:
        languages = ", ".join(sorted(foreign))
        raise ClipError(f"the transcripts of {media.name} are in {languages}; name the one to read {media.stem}.srt")
    ranked = ranked or [place for places in foreign.values() for place in places]
    return [file for *_, name in sorted(ranked) if (file := media.with_name(name)).is_file()]


def _cues(content: str, file: Path) -> list[Cue]:
    """Return the beginning, end (seconds) and lines of each cue of a .srt or .vtt, without markup."""
    blank_ends = file.suffix.lower() == ".vtt"
    lines = content.splitlines()
    cues: list[tuple[float, float, list[str]]] = []
    within = False
    for line, following in pairwise([*lines, ""]):
        if times := _CUE.match(line):
            begin_s, end_s = (_seconds(times.groups()[first : first + 4]) for first in (0, 4))
            if not 0 <= begin_s <= end_s <= _LATEST_S:
                raise ClipError(f"{file.name}: the times {line.strip()[:60]!r} are not in order or above 1000 hours")
            cues.append((begin_s, end_s, []))
            within = True
        elif blank_ends and not line:
            within = False
        elif within and not (line.strip().isdecimal() and _CUE.match(following)):  # the number of the next cue
            cues[-1][2].append(line)
    if not cues and any(map(str.strip, lines)) and not content.startswith("WEBVTT"):
        raise ClipError(f"{file.name} has no time line like 00:00:01,000 --> 00:00:02,500")
    return [(begin_s, end_s, _lines(parts)) for begin_s, end_s, parts in cues]


def _lines(lines: list[str]) -> list[str]:
    """Return lines without markup, entities, double blanks and empty lines."""
    plain = (" ".join(html.unescape(_MARKUP.sub(" ", line)).translate(WINDOWS_1252).split()) for line in lines)
    return [line for line in plain if line]


def _json_cues(content: str, name: str) -> list[Cue] | None:
    """Return the words or segments of Whisper's json with their times; None for another json."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        raise ClipError(f"{name} is not valid JSON") from None
    if not isinstance(whole, dict):
        return None
    segments = whole.get("segments", whole.get("transcription"))
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        return None
    return [cue for segment in segments for cue in _segment_cues(segment, name)]


def _segment_cues(segment: dict[str, Any], name: str) -> Iterator[Cue]:
    words = segment.get("words")
    if (
        isinstance(words, list)
        and words
        and all(isinstance(w, dict) and {"word", "start", "end"} <= set(w) for w in words)
    ):
        spaced = any(str(word["word"]).startswith(" ") for word in words)
        joined: list[dict[str, Any]] = []
        for word in words:  # Whisper writes the blank before a word, so that a part of one has none
            if joined and spaced and not str(word["word"]).startswith(" "):
                joined[-1] = {**joined[-1], "word": f"{joined[-1]['word']}{word['word']}", "end": word["end"]}
            else:
                joined.append(word)
        parts = [(word["start"], word["end"], word["word"]) for word in joined]
    elif isinstance(segment.get("offsets"), dict):  # whisper.cpp: milliseconds
        times = segment["offsets"]
        parts = [(_thousandth(times.get("from")), _thousandth(times.get("to")), segment.get("text", ""))]
    else:
        parts = [(segment.get("start"), segment.get("end"), segment.get("text", ""))]
    for begin_s, end_s, text in parts:
        if (
            not all(isinstance(time, int | float) for time in (begin_s, end_s))
            or not 0 <= begin_s <= end_s <= _LATEST_S
        ):
            raise ClipError(f"{name}: the times {begin_s!r} and {end_s!r} are not numbers in order up to 1000 hours")
        yield float(begin_s), float(end_s), _lines(str(text).splitlines())


def _thousandth(milliseconds: Any) -> Any:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else milliseconds


def _words(cues: list[Cue], start_s: float, last_s: float) -> str:
    """Return the words of the cues whose middle is in a span, each once."""
    shown = _unrolled([cue for cue in cues if cue[2]])
    return " ".join(
        line for begin_s, end_s, lines in shown if start_s <= (begin_s + end_s) / 2 < last_s for line in lines
    )


def _unrolled(cues: list[Cue]) -> list[Cue]:
    """Return cues without the lines that they repeat from the cue before, if the captions roll.

    Captions roll if lines stay while others are added below or behind them. A repeated cue of other captions is what
    was said twice.
    """
    pairs = [
        (before, cue) for before, cue in pairwise(cues) if cue[0] <= before[1] + _ADJACENT_S and before[2] and cue[2]
    ]
    repeated = [(_repeated_lines(before[2], cue[2]), len(cue[2])) for before, cue in pairs]
    growing = [_repeated_words(before[2], cue[2]) > 0 for before, cue in pairs]
    rolls = any(0 < same < count for same, count in repeated) and (
        sum(same > 0 for same, _ in repeated) >= _ROLLING_SHARE * len(pairs)
    )
    grows = sum(growing) >= max(2, _ROLLING_SHARE * len(pairs))
    if not rolls and not grows:
        return cues
    unrolled = list(cues)
    for number, (before, cue) in enumerate(pairwise(cues), 1):
        begin_s, end_s, lines = cue
        if begin_s > before[1] + _ADJACENT_S:
            continue
        lines = lines[_repeated_lines(before[2], lines) :]
        if grows and (same := _repeated_words(before[2], cue[2])):
            lines = [" ".join(" ".join(cue[2]).split()[same:])]
        unrolled[number] = (begin_s, end_s, lines)
    return unrolled


def _repeated_lines(before: list[str], lines: list[str]) -> int:
    """Return how many first lines are the last ones of the cue before."""
    counts = range(min(len(before), len(lines)), 0, -1)
    return next((count for count in counts if before[-count:] == lines[:count]), 0)


def _repeated_words(before: list[str], lines: list[str]) -> int:
    """Return the number of words of the cue before if this one repeats and continues them, else 0."""
    old, new = " ".join(before).split(), " ".join(lines).split()
    return len(old) if old and len(new) > len(old) and new[: len(old)] == old else 0


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, thousandths = (part or "0" for part in parts)
    if len(hours) > 9:
        return math.inf
    if hours.startswith("-"):
        return -1.0
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(thousandths.ljust(3, "0")) / 1000
