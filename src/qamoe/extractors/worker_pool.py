"""Worker processes with pipes, and feature extraction over many clips by such processes or a Ray cluster.

Extraction is incremental by content, and a bad clip affects no other clip.

Each (clip, modality) becomes a part: a file named by the hash of its inputs (the media's bytes, the span and the
extractor with its settings). A part that exists is never made again. If a worker dies or takes too long, its clip
fails and leaves no part, so the next run tries again. Each worker has its own pipe and one job at a time, so the
failed job is always known, and no lock can be left behind by a dead worker. On Ray, a worker is an actor with one call
at a time, which writes the same parts by the same code.
"""

import errno
import hashlib
import io
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from qamoe.config.extractor_settings import ExtractorSettings
from qamoe.errors import UserError
from qamoe.extractors.registry import Extractor, extractor
from qamoe.files import file_digest, write_bytes, write_text
from qamoe.media import decode
from qamoe.media.decode import ClipError, NoStream
from qamoe.process_lifetime import die_with_parent
from qamoe.ray_worker_pool import connect, last_line

if TYPE_CHECKING:
    from qamoe.media.degraded_copy import Signal

START_S = 120.0  # time limit for a new worker to become ready
_END_S = 10.0  # time limit for a worker without work to end


class WorkerProcess:
    """A spawned process that prepares and then runs one job after another, with jobs and answers on its `pipe`.

    The process first runs `prepare()` and sends its result: None, or the reason why it cannot work. It then answers
    each job with `work(*job)`. EOF on the pipe means that the process has died.
    """

    def __init__(self, prepare: Callable[[], str | None], work: Callable[..., Any]) -> None:
        context = get_context("spawn")
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=_run_worker, args=(worker_end, prepare, work), daemon=True)
        self.process.start()
        worker_end.close()  # so that the pipe reports EOF when the worker ends
        self.ready = False  # whether the first message has been read

    def end(self, wait_s: float = _END_S) -> int | None:
        """Let the process end, kill it after `wait_s` seconds, and return its exit code."""
        self.pipe.close()
        self.process.join(wait_s)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def _run_worker(pipe: Connection, prepare: Callable[[], str | None], work: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
    problem = prepare()
    with suppress(EOFError, OSError):  # the parent has finished or ended
        pipe.send(problem)
        while problem is None:
            pipe.send(work(*pipe.recv()))


@dataclass(frozen=True)
class Job:
    """One modality of one clip."""

    clip_id: str
    modality: str
    media: Path
    start_s: float
    end_s: float | None
    signal: "Signal | None" = None  # how to degrade the media before reading
    track: str = ""  # of its audio


def media_digest(path: Path) -> str:
    """Return the SHA-256 of the file that an extractor reads; "absent" or "unreadable", so that it is read later."""
    try:
        return file_digest(path) if path.is_file() else "absent"
    except OSError:
        return "unreadable"


def part_key(job: Job, digest: str, made_by: Extractor) -> str:
    """Return the name of a part: the SHA-256 of everything it depends on. `digest` is that of the file to read."""
    extraction = f"{made_by.name} {made_by.version} {made_by.rate!r} {made_by.made_with}"
    identity = f"{decode.VERSION} {digest} {job.start_s!r} {job.end_s!r} {extraction}"
    if job.track:  # words are heard in it, and it tells which of several faces speaks
        identity += f" {job.track!r}"
    if job.signal is not None:
        identity += f" {job.signal.identity}"
    return hashlib.sha256(identity.encode()).hexdigest()


def _make_part(chosen: ExtractorSettings, job: Job, part: Path) -> None:
    """Write the frames of a job, or the reason why it has none, as a part (runs in a worker)."""
    try:
        with decode.reading(job.track) as notes:
            frames = _extract(extractor(chosen), job, part.parent)
    except NoStream:
        write_text(part.with_suffix(".problem"), "")
    except ClipError as problem:
        write_text(part.with_suffix(".problem"), "; ".join([str(problem), *notes]))
    else:
        if notes:
            write_text(part.with_suffix(".note"), "; ".join(notes))
        content = io.BytesIO()
        np.save(content, frames)
        write_bytes(part.with_suffix(".npy"), content.getvalue())


def _extract(made_by: Extractor, job: Job, folder: Path) -> np.ndarray:
    """Return the frames of a clip, or those of its degraded copy, which is kept in `folder` only while it is read."""
    if job.signal is None:
        return made_by.extract(job.media, job.start_s, job.end_s)
    from qamoe.media.degraded_copy import write as write_copy  # a late import: few jobs need it

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".copy-", dir=folder) as temporary:
        copy = write_copy(job.signal, job.media, job.start_s, job.end_s, made_by.rate, Path(temporary))
        return made_by.extract(copy)


def read_part(part: Path) -> np.ndarray | str | None:
    """Return frames (T, D), the reason of a problem ("" for a file without that stream), or None if not made yet.

    A damaged file counts as not made.
    """
    if part.with_suffix(".npy").exists():
        try:
            frames: np.ndarray = np.load(part.with_suffix(".npy"))
        except (ValueError, EOFError):
            return None
        return frames
    if part.with_suffix(".problem").exists():
        return part.with_suffix(".problem").read_text()
    return None


def read_note(part: Path) -> str:
    """Return what was left out of the frames of a part, or ""."""
    note = part.with_suffix(".note")
    return note.read_text() if note.exists() else ""


def _failure(
    make: Callable[..., None], extractors: dict[str, ExtractorSettings], job: Job, part: Path
) -> str | UserError | None:
    """Make a part; return the reason if that fails, else None. A UserError is not the clip's: the part has no place."""
    try:
        make(extractors[job.modality], job, part)
    except UserError as error:
        return error
    except Exception as error:  # an extractor is third-party code; its errors must not affect other clips
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # a degraded copy had no place
            return UserError(f"{part.parent} cannot be written: {os.strerror(errno.ENOSPC)}.")
        return f"the extractor failed: {type(error).__name__}: {error}"
    return None


def _note(failed: dict[tuple[str, str], str], job: Job, reason: str | UserError | None) -> None:
    """Note why a job left no part. Raises the UserError of a part that could not be written."""
    if isinstance(reason, UserError):
        raise reason
    if reason is not None:
        failed[job.clip_id, job.modality] = reason


@dataclass
class _Assigned:
    """A worker, its current job and part, and its deadline (monotonic seconds)."""

    worker: WorkerProcess
    task: tuple[Job, Path]
    deadline: float


def make_parts(
    jobs: list[tuple[Job, Path]],
    extractors: dict[str, ExtractorSettings],
    workers: int,
    seconds_per_clip: float,
    advance: Callable[[], Any],
) -> dict[tuple[str, str], str]:
    """Make the parts of `jobs`; return the reasons of the jobs that left no part, by (clip id, modality).

    `extractors` holds the settings of each modality's extractor; `advance` is called once per finished job.
    Raises UserError if parts cannot be written, such as on a full disk.
    """
    waiting = deque(jobs)
    failed: dict[tuple[str, str], str] = {}
    pool: list[_Assigned] = []
    try:
        while waiting or pool:
            while waiting and len(pool) < workers:
                # A hanging decoder never notices the closed pipe, so tie the worker to its parent.
                worker = WorkerProcess(die_with_parent, partial(_failure, _make_part, extractors))
                pool.append(_Assigned(worker, waiting.popleft(), time.monotonic() + START_S))
            pool, ended = _advance_pool(pool, waiting, seconds_per_clip)
            for job, reason in ended:
                _note(failed, job, reason)
                advance()
    finally:
        for assigned in pool:
            assigned.worker.end(0)
    return failed


def _advance_pool(
    pool: list[_Assigned], waiting: deque[tuple[Job, Path]], limit_s: float
) -> tuple[list[_Assigned], list[tuple[Job, str | UserError | None]]]:
    """Wait until a worker answers, dies or exceeds its deadline; return the busy workers and the jobs that ended.

    Each ended job comes with the reason why it left no part, or None.
    """
    timeout = max(0.0, min(assigned.deadline for assigned in pool) - time.monotonic())
    answering = wait([assigned.worker.pipe for assigned in pool], timeout=timeout)
    busy: list[_Assigned] = []
    ended: list[tuple[Job, str | UserError | None]] = []
    for assigned in pool:
        worker, (job, _) = assigned.worker, assigned.task
        if worker.pipe in answering:
            try:
                reason = worker.pipe.recv()
            except (EOFError, OSError):
                ended.append((job, f"the extractor died (exit code {worker.end()})"))
                continue
            if worker.ready:
                ended.append((job, reason))
                if not waiting:
                    worker.end()
                    continue
                assigned.task = waiting.popleft()
            worker.ready = True
            assigned.deadline = time.monotonic() + limit_s
            with suppress(OSError):  # the worker is dead; its pipe reports that in the next call
                worker.pipe.send(assigned.task)
        elif time.monotonic() >= assigned.deadline:
            reason = f"took longer than {limit_s:g} s" if worker.ready else f"no extractor within {START_S:g} s"
            ended.append((job, reason))
            worker.end(0)
            continue
        busy.append(assigned)
    return busy, ended


class _Actor:
    """A worker on Ray, in the folder of the stage, which every machine of a cluster sees under the same path."""

    def __init__(self, folder: Path, extractors: dict[str, ExtractorSettings], make: Callable[..., None]) -> None:
        os.chdir(folder)
        self.extractors = extractors
        self.part = make

    def ready(self) -> None:
        """Return as soon as the worker runs."""

    def make(self, job: Job, part: Path) -> str | UserError | None:
        return _failure(self.part, self.extractors, job, part)


@dataclass
class _RayWorker:
    """An actor, its current job and part, and its deadline (monotonic seconds)."""

    actor: Any
    task: tuple[Job, Path]
    deadline: float = math.inf  # Ray starts the actor when a core is free
    ready: bool = False


def make_parts_on_ray(
    jobs: list[tuple[Job, Path]],
    extractors: dict[str, ExtractorSettings],
    workers: int,
    seconds_per_clip: float,
    advance: Callable[[], Any],
) -> dict[tuple[str, str], str]:
    """Do the same as make_parts with `workers` Ray actors of one core each.

    Uses the cluster of RAY_ADDRESS, or else this machine. Ray does not report how a worker died. Raises UserError if
    Ray is not installed or its cluster does not answer.
    """
    ray = connect(workers)
    actor = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
    waiting = deque(jobs)
    failed: dict[tuple[str, str], str] = {}
    pool: dict[Any, _RayWorker] = {}  # by the pending answer

    def ended(worker: _RayWorker, reason: str | UserError | None) -> None:
        _note(failed, worker.task[0], reason)
        advance()

    try:
        while waiting or pool:
            while waiting and len(pool) < workers:
                worker = _RayWorker(actor.remote(Path.cwd(), extractors, _make_part), waiting.popleft())
                pool[worker.actor.ready.remote()] = worker
            deadline = min(worker.deadline for worker in pool.values())
            timeout = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            answered, _ = ray.wait(list(pool), timeout=timeout)
            for answer, worker in list(pool.items()):
                if answer in answered:
                    del pool[answer]
                    try:
                        reason = ray.get(answer)
                    except ray.exceptions.RayError as error:
                        why = "the extractor died" if worker.ready else f"no worker on Ray: {last_line(error)}"
                        ended(worker, why)
                        continue
                    if worker.ready:
                        ended(worker, reason)
                        if not waiting:
                            ray.kill(worker.actor)
                            continue
                        worker.task = waiting.popleft()
                    worker.ready, worker.deadline = True, time.monotonic() + seconds_per_clip
                    pool[worker.actor.make.remote(*worker.task)] = worker
                elif time.monotonic() >= worker.deadline:
                    del pool[answer]
                    ray.kill(worker.actor)
                    ended(worker, f"took longer than {seconds_per_clip:g} s")
    finally:
        for worker in pool.values():
            ray.kill(worker.actor)
    return failed
