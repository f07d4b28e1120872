"""Media from anywhere -> raw features, in a worker process that may die, hang or ask for too much at its own cost.

Nothing of an uploaded file is opened in the server's own process. The worker looks at the headers and walks the
packets before anything is decoded, decodes no more than the allowed seconds, has a time limit, and on Linux no more
memory than _MEMORY.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.config.block import Block
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.worker_pool import START_S, WorkerProcess
from qamoe.media.decode import ClipError

# FFmpeg's names of mp4, mov, avi, wav, mkv and webm: fewer formats than a corpus may have.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,wav,matroska,webm"
_MEMORY = 4 << 30  # bytes of a worker's own data; extraction of a small film maps 1.5 GB and touches 0.3
_WAITING = 8  # files that are being extracted or wait for it


class Busy(UserError):
    """Too many files are waiting already."""


class WorkerLost(UserError):
    """A file that ended its worker, or took too long; another one may do."""


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
    """One worker process that extracts one file after the other; a worker that died has a successor. `close` ends it.

    A worker loads the extractors that the first file is likely to need before it says that it is ready. Files of one's
    own are read without limits (None).
    """

    def __init__(self, limits: Limits | None, likely: dict[str, Block]) -> None:
        self.limits = limits
        self._likely = likely
        self._places = threading.BoundedSemaphore(_WAITING)
        self._turn = threading.Lock()
        self._closed = False
        self._worker = self._started()

    def extract(
        self, path: Path, extractors: dict[str, Block], start_s: float = 0.0, end_s: float | None = None
    ) -> Extracted:
        """The features of a file. Raises UserError for a file beyond the limits or, where there are limits, without
        anything usable; Lost where the worker did not survive it."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{_WAITING} files are waiting already; send this one again in a while.")
        limit_s = self.limits.work_s if self.limits else None
        try:
            with self._turn:
                if self._closed:
                    raise UserError("The server is about to end.")
                try:
                    if not self._worker.ready:
                        self._wait_until_ready()
                    self._worker.pipe.send((path, extractors, start_s, end_s))
                    if not self._worker.pipe.poll(limit_s):
                        self._replace()
                        raise WorkerLost(f"The file took longer than {limit_s:g} s to read; send a shorter clip.")
                    extracted: Extracted = self._worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace()
                    raise WorkerLost("Reading the file failed beyond recovery; it may be damaged.") from None
        finally:
            self._places.release()
        if extracted.refusal:
            raise UserError(extracted.refusal)
        return extracted

    def close(self) -> None:
        self._closed = True
        self._worker.process.kill()
        with self._turn:
            self._worker.end(0)

    def _started(self) -> WorkerProcess:
        # It is not tied to its parent: Linux takes the thread that started it for that, and a server's threads end.
        work = extract_file if self.limits is None else partial(_extract_upload, self.limits)
        return WorkerProcess(partial(_prepare, self._likely, self.limits is not None), work)

    def _wait_until_ready(self) -> None:
        if not self._worker.pipe.poll(START_S):
            self._replace()
            raise WorkerLost("The extractors could not be loaded in time; send the file again.")
        if refusal := self._worker.pipe.recv():
            raise UserError(refusal)
        self._worker.ready = True

    def _replace(self) -> None:
        self._worker.end(0)
        if not self._closed:
            self._worker = self._started()


def extract_file(
    path: Path, extractors: dict[str, Block], start_s: float = 0.0, end_s: float | None = None
) -> Extracted:
    """The features of a span of a file of one's own, in this process and without limits."""
    frames, problems = {}, {}
    for modality, chosen in extractors.items():
        try:
            frames[modality] = extractor(chosen).extract(path, start_s, end_s)
        except ClipError as problem:
            problems[modality] = str(problem)
        except Exception as error:  # a codec is foreign code
            problems[modality] = f"cannot be decoded ({type(error).__name__})"
    return Extracted(frames, problems)


def _prepare(likely: dict[str, Block], bounded: bool) -> str | None:
    """Runs first in the worker: bound its memory and load the extractors.

    An extractor that cannot be made at all is told to a person at the terminal, and to no client of a server.
    """
    if bounded and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    try:
        for chosen in likely.values():
            extractor(chosen).warm_up()
    except UserError as refusal:
        if bounded:
            raise
        return str(refusal)
    return None


def _extract_upload(
    limits: Limits, path: Path, extractors: dict[str, Block], start_s: float, end_s: float | None
) -> Extracted:
    """Runs in the worker. What goes wrong becomes a sentence, since no exception of a codec travels well."""
    try:
        seconds = _measured(path, limits) if end_s is None else end_s - start_s
    except ClipError as problem:
        return Extracted({}, {}, refusal=str(problem))
    last_s = start_s + limits.seconds if end_s is None else end_s  # packets may lie about time, decoded frames not
    extracted = extract_file(path, extractors, start_s, last_s)
    if not extracted.frames:
        why = "; ".join(f"{modality}: {reason}" for modality, reason in extracted.problems.items())
        return Extracted({}, {}, refusal=f"The file has nothing that can be used ({why}).")
    return replace(extracted, seconds=seconds)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as container:
            yield container
    except (av.FFmpegError, UnicodeDecodeError, ValueError, MemoryError):
        raise ClipError("The file is no mp4, mov, avi, wav, mkv or webm that can be read.") from None


def _measured(path: Path, limits: Limits) -> float:
    """How long a file is (seconds), by its packets and not by what its header says, before anything is decoded."""
    with _opened(path) as container:
        streams = [s for s in container.streams if s.type in ("audio", "video")]
        for stream in container.streams.video:
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > limits.pixels:
                raise ClipError(f"The pictures have {width} x {height} pixels; allowed are {limits.pixels} in all.")
        begin_s = (container.start_time or 0) / 1_000_000
        seconds = 0.0
        for packet in container.demux(streams) if streams else ():
            if packet.pts is None or packet.time_base is None:
                continue
            seconds = max(seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin_s)
            if seconds > limits.seconds:
                raise ClipError(f"The clip is longer than {limits.seconds:g} s, which is allowed.")
    return seconds
