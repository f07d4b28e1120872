"""Read the transcript next to a media file: NAME.srt or NAME.txt for NAME.mp4, in UTF-8.

A .srt takes precedence, because it has times.
"""

import re
from itertools import pairwise
from pathlib import Path

from qamoe.media.decode import ClipError

_TIME = r"(-?\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_LATEST_S = 3.6e6
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")


def sidecar_transcript(media: Path, start_s: float = 0.0, end_s: float | None = None) -> str:
    """Return the transcript of a span (seconds) of a media file, or "" if neither file exists.

    A cue of a .srt belongs to the span that contains its middle, so that neighbouring spans share no words. A .txt
    covers the whole file. Raises ClipError for a file that cannot be read, and for a .txt if only a span is read.
    """
    timed, plain = media.with_suffix(".srt"), media.with_suffix(".txt")
    file = plain
    try:
        file = timed if timed.is_file() else plain
        if not file.is_file():
            return ""
        if file is plain and (start_s or end_s is not None):
            raise ClipError(f"{plain.name} has no times and cannot be used for a span; provide {timed.name}")
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ClipError(f"{file.name} is not UTF-8 text") from None
    except OSError as error:
        raise ClipError(f"{file.name} cannot be read: {error.strerror}") from None
    if file is plain:
        return " ".join(content.split())
    last_s = float("inf") if end_s is None else end_s
    return " ".join(words for middle_s, words in _cues(content, file.name) if start_s <= middle_s < last_s)


def _cues(content: str, name: str) -> list[tuple[float, str]]:
    """Return the middle (seconds) and the text of each cue, without markup; `name` is that of the file."""
    lines = content.splitlines()
    cues: list[tuple[float, list[str]]] = []
    for line, following in pairwise([*lines, ""]):
        if times := _CUE.match(line):
            begin_s, end_s = (_seconds(times.groups()[first : first + 4]) for first in (0, 4))
            if not 0 <= begin_s <= end_s <= _LATEST_S:
                raise ClipError(f"{name}: the times {line.strip()[:60]!r} are not in order or above 1000 hours")
            cues.append(((begin_s + end_s) / 2, []))
        elif cues and not (line.strip().isdecimal() and _CUE.match(following)):  # the number of the next cue
            cues[-1][1].extend(_MARKUP.sub(" ", line).split())
    if not cues and any(map(str.strip, lines)):
        raise ClipError(f"{name} has no time line like 00:00:01,000 --> 00:00:02,500")
    return [(middle_s, " ".join(words)) for middle_s, words in cues]


def _seconds(parts: tuple[str, ...]) -> float:
    hours, minutes, seconds, thousandths = parts
    if len(hours) > 9:
        return float("inf")
    if hours.startswith("-"):
        return -1.0
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(thousandths.ljust(3, "0")) / 1000
