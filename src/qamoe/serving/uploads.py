"""Media from anywhere -> raw features, in a worker process that may die, hang or ask for too much at its own cost.

Nothing of an uploaded file is opened in the server's own process. The worker looks at the headers and walks the
packets before anything is decoded, decodes no more than the allowed seconds, has a time limit, and on Linux no more
memory than _MEMORY.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as TimeLimit
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool

from qamoe.errors import Refused
from qamoe.features.extractors import extractor
from qamoe.features.media import Problem
from qamoe.params import Block

# FFmpeg's names of mp4, mov, avi, wav, mkv and webm: fewer formats than a corpus may have.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,wav,matroska,webm"
_MEMORY = 4 << 30  # bytes of a worker's own data; extraction of a small film maps 1.5 GB and touches 0.3
_WAITING = 8  # files that are being extracted or wait for it


class Busy(Refused):
    """Too many files are waiting already."""


@dataclass(frozen=True)
class Limits:
    """What a server takes: bytes of a file and of a JSON body, seconds and pixels of a film, seconds of work on it."""

    media_bytes: int = 64 << 20
    json_bytes: int = 16 << 20
    seconds: float = 60.0
    pixels: int = 4096 * 2304
    work_s: float = 60.0


@dataclass(frozen=True)
class Extracted:
    """Raw frames (T, D) by modality, why a modality has none, and how long the clip is (seconds)."""

    frames: dict[str, np.ndarray]
    problems: dict[str, str]
    seconds: float = 0.0
    refusal: str = ""


class Extraction:
    """One worker process that extracts one file after the other; `close` ends it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pool = ProcessPool(max_workers=1, context=get_context("spawn"), initializer=_bound_memory)
        self._places = threading.BoundedSemaphore(_WAITING)

    def warm_up(self, extractors: dict[str, Block]) -> None:
        """Let the worker load its extractors, which takes seconds, before the first file comes."""
        self._pool.schedule(_load, args=(extractors,))

    def extract(
        self, path: Path, extractors: dict[str, Block], start_s: float = 0.0, end_s: float | None = None
    ) -> Extracted:
        """The features of a file. Raises Refused for a file beyond the limits or without anything usable."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{_WAITING} files are waiting already; send this one again in a while.")
        try:
            work = (path, extractors, self.limits, start_s, end_s)
            found: Extracted = self._pool.schedule(_extract, args=work, timeout=self.limits.work_s).result()
        except TimeLimit:
            raise Refused(f"The file took longer than {self.limits.work_s:g} s to read; send a shorter clip.") from None
        except ProcessExpired:
            raise Refused("Reading the file failed beyond recovery; it may be damaged.") from None
        finally:
            self._places.release()
        if found.refusal:
            raise Refused(found.refusal)
        return found

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


def in_process(path: Path, extractors: dict[str, Block]) -> Extracted:
    """The same for a file of one's own: here, and without limits."""
    frames, problems = {}, {}
    for modality, chosen in extractors.items():
        try:
            frames[modality] = extractor(chosen).extract(path, 0.0, None)
        except Problem as problem:
            problems[modality] = str(problem)
    return Extracted(frames, problems)


def _bound_memory() -> None:
    import resource
    import sys

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))


def _load(extractors: dict[str, Block]) -> None:
    for chosen in extractors.values():
        extractor(chosen).warm_up()


def _extract(
    path: Path, extractors: dict[str, Block], limits: Limits, start_s: float, end_s: float | None
) -> Extracted:
    """Runs in the worker. What goes wrong becomes a sentence, since no exception of a codec travels well."""
    try:
        seconds = _measured(path, limits) if end_s is None else end_s - start_s
    except Problem as problem:
        return Extracted({}, {}, refusal=str(problem))
    frames, problems = {}, {}
    last_s = start_s + limits.seconds if end_s is None else end_s  # packets may lie about time, decoded frames not
    for modality, chosen in extractors.items():
        try:
            frames[modality] = extractor(chosen).extract(path, start_s, last_s)
        except Problem as problem:
            problems[modality] = str(problem)
        except Exception as error:  # a codec is foreign code
            problems[modality] = f"cannot be decoded ({type(error).__name__})"
    if not frames:
        why = "; ".join(f"{modality}: {reason}" for modality, reason in problems.items())
        return Extracted({}, {}, refusal=f"The file has nothing that can be used ({why}).")
    return Extracted(frames, problems, seconds)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as container:
            yield container
    except (av.FFmpegError, UnicodeDecodeError, ValueError, MemoryError):
        raise Problem("The file is no mp4, mov, avi, wav, mkv or webm that can be read.") from None


def _measured(path: Path, limits: Limits) -> float:
    """How long a file is (seconds), by its packets and not by what its header says, before anything is decoded."""
    with _opened(path) as container:
        streams = [s for s in container.streams if s.type in ("audio", "video")]
        for stream in container.streams.video:
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > limits.pixels:
                raise Problem(f"The pictures have {width} x {height} pixels; allowed are {limits.pixels} in all.")
        begin_s = (container.start_time or 0) / 1_000_000
        seconds = 0.0
        for packet in container.demux(streams) if streams else ():
            if packet.pts is None or packet.time_base is None:
                continue
            seconds = max(seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin_s)
            if seconds > limits.seconds:
                raise Problem(f"The clip is longer than {limits.seconds:g} s, which is allowed.")
    return seconds
