"""Extract raw features of untrusted media in a worker process, which may crash or hang without harm to the server.

The server's own process never opens an uploaded file. The worker checks headers and packets before it decodes, decodes
at most the allowed seconds, and has a time limit and, on Linux, the memory limit _MEMORY.
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

from qamoe.config import settings
from qamoe.config.extractor_settings import ExtractorSettings
from qamoe.data.subtitles import transcript
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.worker_pool import START_S, WorkerProcess
from qamoe.media.decode import FORMATS, ClipError, reading

_MEMORY = 4 << 30  # bytes of a worker's data; extraction of a small video maps 1.5 GB and uses 0.3
MOST_CHARACTERS = 10_000  # of a text that a client sends, itself or as subtitles
_WAITING = 8  # files that are being extracted or waiting


class Busy(UserError):
    """Raised if too many files are waiting already."""


class WorkerLost(UserError):
    """Raised if the worker died or took too long; another file may work."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server: bytes of a file and of a JSON body, seconds and pixels of a video, and seconds of work.

    head_s: seconds for the head of a request, and for a client that does not read its answer. body_s: seconds for a
    body. exchange_s: seconds from the head of a request to the end of its answer; eight files may wait.
    """

    media_bytes: int = 64 << 20
    json_bytes: int = 16 << 20
    seconds: float = 60.0
    pixels: int = 4096 * 2304
    work_s: float = 60.0
    head_s: float = 10.0
    body_s: float = 60.0
    exchange_s: float = 600.0


@dataclass(frozen=True)
class Extracted:
    """Raw frames (T, D) by modality, and the clip's length in seconds.

    problems: why a modality has no frames, or what was left out of them. text: the words of a subtitle track inside an
    uploaded file.
    """

    frames: dict[str, np.ndarray]
    problems: dict[str, str]
    seconds: float = 0.0
    refusal: str = ""
    text: str = ""


class Extraction:
    """A worker process that extracts one file at a time, and is replaced if it dies. `close` ends it.

    The worker loads the `likely` extractors before it reports that it is ready. With `limits` None, for trusted files,
    there are no limits. temporary: the folder of its temporary files, which a worker that is killed leaves behind.
    """

    def __init__(
        self, limits: Limits | None, likely: dict[str, ExtractorSettings], temporary: Path | None = None
    ) -> None:
        self.limits = limits
        self._likely = likely
        self._temporary = temporary
        self._slots = threading.BoundedSemaphore(_WAITING)
        self._turn = threading.Lock()
        self._closed = False
        self._worker = self._start_worker()

    def extract(
        self,
        path: Path,
        extractors: dict[str, ExtractorSettings],
        start_s: float = 0.0,
        end_s: float | None = None,
        track: str = "",
    ) -> Extracted:
        """Return the features of a file; `track` as in `reading` of qamoe.media.decode.

        Raises UserError for a file beyond the limits or, with limits, for a file without any usable modality; Busy if
        too many files wait; WorkerLost if the worker died or took too long.
        """
        if not self._slots.acquire(blocking=False):
            raise Busy(f"{_WAITING} files are waiting already; send this file again later.")
        limit_s = self.limits.work_s if self.limits else None
        try:
            with self._turn:
                if self._closed:
                    raise UserError("The server is shutting down.")
                # An idle worker sends nothing: what can be read is the end of a worker that died before this file.
                if self._worker.ready and self._worker.pipe.poll(0):
                    self._replace()
                if not self._worker.ready:
                    self._wait_until_ready()
                try:
                    self._worker.pipe.send((path, extractors, start_s, end_s, track))
                    if not self._worker.pipe.poll(limit_s):
                        self._replace()
                        raise WorkerLost(f"The file took longer than {limit_s:g} s to read; send a shorter clip.")
                    extracted: Extracted = self._worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace()
                    raise WorkerLost("The worker died while it read the file; the file may be damaged.") from None
        finally:
            self._slots.release()
        if extracted.refusal:
            raise UserError(extracted.refusal)
        return extracted

    def close(self) -> None:
        self._closed = True
        self._worker.process.kill()
        with self._turn:
            self._worker.end(0)

    def _start_worker(self) -> WorkerProcess:
        # Not tied to its parent's life: on Linux the parent is the thread that started it, and a server's threads end.
        work = extract_file if self.limits is None else partial(_extract_upload, self.limits)
        return WorkerProcess(partial(_prepare, self._likely, self.limits is not None, self._temporary), work)

    def _wait_until_ready(self) -> None:
        if not self._worker.pipe.poll(START_S):
            self._replace()
            raise WorkerLost(f"Loading the extractors took longer than {START_S:g} s; send the file again.")
        try:
            refusal = self._worker.pipe.recv()
        except (EOFError, OSError):
            self._replace()
            raise WorkerLost("The worker died before it read the file; send the file again.") from None
        if refusal:
            raise UserError(refusal)
        self._worker.ready = True

    def _replace(self) -> None:
        self._worker.end(0)
        if not self._closed:
            self._worker = self._start_worker()


def extract_file(
    path: Path,
    extractors: dict[str, ExtractorSettings],
    start_s: float = 0.0,
    end_s: float | None = None,
    track: str = "",
) -> Extracted:
    """Return the features of a span of a trusted file, in this process and without limits.

    Raises UserError for an extractor that cannot be loaded, such as one whose weights are absent.
    """
    frames, problems = {}, {}
    for modality, block in extractors.items():
        with reading(track) as notes:
            try:
                frames[modality] = extractor(block).extract(path, start_s, end_s)
            except ClipError as problem:
                notes.insert(0, str(problem))
            except UserError:
                raise
            except Exception as error:  # codecs may raise anything
                notes.insert(0, f"cannot be decoded ({type(error).__name__})")
        if notes:
            problems[modality] = "; ".join(notes)
    return Extracted(frames, problems)


def _prepare(likely: dict[str, ExtractorSettings], bounded: bool, temporary: Path | None) -> str | None:
    """Initialise a worker process: limit its memory (if `bounded`), set its temporary folder, load the extractors.

    Return the error of an extractor that cannot be loaded. With `bounded`, in a server, raise it instead: its clients
    must not see it.
    """
    if bounded and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    if temporary is not None:
        settings.keep_temporary_files_in(temporary)
    try:
        for block in likely.values():
            extractor(block).warm_up()
    except UserError as refusal:
        if bounded:
            raise
        return str(refusal)
    return None


def _extract_upload(
    limits: Limits,
    path: Path,
    extractors: dict[str, ExtractorSettings],
    start_s: float,
    end_s: float | None,
    track: str,
) -> Extracted:
    """Extract an uploaded file in the worker. Errors become text, because codec exceptions may not pickle."""
    try:
        seconds = _measured(path, limits) if end_s is None else end_s - start_s
    except ClipError as problem:
        return Extracted({}, {}, refusal=str(problem))
    # The times of packets may be wrong; those of decoded frames are not.
    last_s = start_s + limits.seconds if end_s is None else end_s
    text = _subtitles(path, start_s, last_s)
    if text:
        extractors = {modality: block for modality, block in extractors.items() if modality != "text"}
    extracted = extract_file(path, extractors, start_s, last_s, track)
    if not extracted.frames and not text:
        why = "; ".join(f"{modality}: {reason}" for modality, reason in extracted.problems.items())
        return Extracted({}, {}, refusal=f"The file has no usable modality ({why}).")
    problems = extracted.problems
    if len(text) > MOST_CHARACTERS:
        left_out = f"its subtitles have {len(text)} characters; the first {MOST_CHARACTERS} are used"
        problems = {**problems, "text": left_out}
    return replace(extracted, problems=problems, seconds=seconds, text=text[:MOST_CHARACTERS])


def _subtitles(path: Path, start_s: float, end_s: float) -> str:
    """Return the words of a subtitle track inside a file, "" without one or if it cannot be read."""
    try:
        return transcript(path, start_s, end_s)
    except Exception:  # codecs may raise anything, and the clip has other modalities
        return ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as container:
            yield container
    except (av.FFmpegError, UnicodeDecodeError, ValueError, MemoryError):
        raise ClipError("The file is not a readable video or audio file, such as mp4, mov, avi, wav or mkv.") from None


def _measured(path: Path, limits: Limits) -> float:
    """Return the length of a file in seconds, from its packets instead of its header, without decoding it.

    Raises ClipError for a file beyond the limits.
    """
    with _opened(path) as container:
        streams = [s for s in container.streams if s.type in ("audio", "video")]
        for stream in container.streams.video:
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > limits.pixels:
                raise ClipError(f"The frames have {width} x {height} pixels; the limit is {limits.pixels} pixels.")
        begin_s = (container.start_time or 0) / 1_000_000
        seconds = 0.0
        for packet in container.demux(streams) if streams else ():
            if packet.pts is None or packet.time_base is None:
                continue
            seconds = max(seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin_s)
            if seconds > limits.seconds:
                raise ClipError(f"The clip is at least {seconds:.2f} s long; the limit is {limits.seconds:g} s.")
    return seconds
