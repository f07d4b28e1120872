"""A worker process with a pipe, and extraction over many clips by such processes or a Ray cluster.

Extraction is incremental by content, and one bad clip costs itself alone.

Each (clip, modality) becomes a part, a file named by the hash of what made it: the media's bytes, the span and the
extractor with its settings. A part that exists is never made again. A worker that dies or takes too long
costs its own clip; nothing is kept of it, so the next run tries again. Each worker has a pipe of its own and one
job at a time, so it is always plain whose work it was, and there is no lock that a dead worker could take with it.
On Ray a worker is an actor with one call at a time, which writes the same parts by the same code.
"""

import hashlib
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

from qamoe.config.block import Block
from qamoe.extractors.registry import Extractor, extractor
from qamoe.files import atomic_write, file_digest, write_text
from qamoe.media import decode
from qamoe.media.decode import ClipError, NoStream
from qamoe.process_lifetime import die_with_parent
from qamoe.ray_worker_pool import connect, last_line

if TYPE_CHECKING:
    from qamoe.media.degraded_copy import Signal

START_S = 120.0  # given to a new worker to get ready
_END_S = 10.0  # given to a worker that has no more work


class WorkerProcess:
    """A spawned process that gets ready and then does one job after the other; jobs and answers go through its `pipe`.

    In the process `prepare()` runs first. Its answer is the first message: None, or the reason why there will be no
    work. Then `work(*job)` is the answer to each job that is sent. A pipe at its end says that the process has died.
    """

    def __init__(self, prepare: Callable[[], str | None], work: Callable[..., Any]) -> None:
        context = get_context("spawn")
        self.pipe, its_end = context.Pipe()
        self.process = context.Process(target=_run_worker, args=(its_end, prepare, work), daemon=True)
        self.process.start()
        its_end.close()  # so that the pipe ends when the worker does
        self.ready = False  # whether the first message has been read

    def end(self, wait_s: float = _END_S) -> int | None:
        """Let a process end that has no job, and kill one that does not; returns its exit code."""
        self.pipe.close()
        self.process.join(wait_s)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def _run_worker(pipe: Connection, prepare: Callable[[], str | None], work: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    refusal = prepare()
    with suppress(EOFError, OSError):  # the parent is done, or gone
        pipe.send(refusal)
        while refusal is None:
            pipe.send(work(*pipe.recv()))


@dataclass(frozen=True)
class Job:
    """One modality of one clip."""

    clip_id: str
    modality: str
    media: Path
    start_s: float
    end_s: float | None
    signal: "Signal | None" = None  # how its media are degraded before they are read


def media_digest(path: Path) -> str:
    """SHA-256 of the file that an extractor reads; where there is none a word, so that it is read when it comes."""
    return file_digest(path) if path.is_file() else "absent"


def part_key(job: Job, digest: str, made_by: Extractor) -> str:
    """The name of a part: SHA-256 of all that its content depends on. `digest` is that of the file that is read."""
    extraction = f"{made_by.name} {made_by.version} {made_by.rate!r} {made_by.made_with}"
    identity = f"{decode.VERSION} {digest} {job.start_s!r} {job.end_s!r} {extraction}"
    if job.signal is not None:
        identity += f" {job.signal.identity}"
    return hashlib.sha256(identity.encode()).hexdigest()


def _make_part(chosen: Block, job: Job, part: Path) -> None:
    """Runs in a worker: write the frames, or the reason why there are none, as a part."""
    try:
        frames = _frames(extractor(chosen), job, part.parent)
    except NoStream:
        write_text(part.with_suffix(".problem"), "")
    except ClipError as problem:
        write_text(part.with_suffix(".problem"), str(problem))
    else:
        with atomic_write(part.with_suffix(".npy")) as aside, aside.open("wb") as file:
            np.save(file, frames)


def _frames(made_by: Extractor, job: Job, folder: Path) -> np.ndarray:
    """The frames of a clip, or those of its degraded copy, which lies in `folder` as long as it is read."""
    if job.signal is None:
        return made_by.extract(job.media, job.start_s, job.end_s)
    from qamoe.media.degraded_copy import write as write_copy  # here, since it needs torch and takes seconds to import

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".copy-", dir=folder) as temporary:
        copy = write_copy(job.signal, job.media, job.start_s, job.end_s, made_by.rate, Path(temporary))
        return made_by.extract(copy)


def read_part(part: Path) -> np.ndarray | str | None:
    """Frames (T, D), the reason of a problem ("" for a format without that stream), or None if not made yet."""
    if part.with_suffix(".npy").exists():
        return np.load(part.with_suffix(".npy"))
    if part.with_suffix(".problem").exists():
        return part.with_suffix(".problem").read_text()
    return None


def _failure(make: Callable[..., None], extractors: dict[str, Block], job: Job, part: Path) -> str | None:
    """Make a part; returns why it could not be made, or None."""
    try:
        make(extractors[job.modality], job, part)
    except Exception as error:  # an extractor is foreign code: whatever it raises costs its clip alone
        return f"the extractor failed: {type(error).__name__}: {error}"
    return None


@dataclass
class _Assigned:
    """A worker, the job and part that it has, and until when (monotonic seconds) it may take."""

    worker: WorkerProcess
    task: tuple[Job, Path]
    until: float


def make_parts(
    jobs: list[tuple[Job, Path]],
    extractors: dict[str, Block],
    workers: int,
    seconds_per_clip: float,
    advance: Callable[[], Any],
) -> dict[tuple[str, str], str]:
    """Make the parts that do not exist; returns the reasons of the jobs that left none, by (clip id, modality).

    `extractors` holds the settings of each modality's extractor; `advance` is called once a finished job.
    """
    waiting = deque(jobs)
    lost: dict[tuple[str, str], str] = {}
    pool: list[_Assigned] = []
    try:
        while waiting or pool:
            while waiting and len(pool) < workers:
                # A decoder that hangs would never see that the pipe has closed, so it dies with its parent.
                worker = WorkerProcess(die_with_parent, partial(_failure, _make_part, extractors))
                pool.append(_Assigned(worker, waiting.popleft(), time.monotonic() + START_S))
            pool, ended = _stepped(pool, waiting, seconds_per_clip)
            for job, reason in ended:
                if reason is not None:
                    lost[job.clip_id, job.modality] = reason
                advance()
    finally:
        for assigned in pool:
            assigned.worker.end(0)
    return lost


def _stepped(
    pool: list[_Assigned], waiting: deque[tuple[Job, Path]], limit_s: float
) -> tuple[list[_Assigned], list[tuple[Job, str | None]]]:
    """Wait until a worker speaks, ends or has taken too long; returns those at work and the jobs that ended.

    A job that ended comes with the reason why it left no part, or None.
    """
    patience = max(0.0, min(assigned.until for assigned in pool) - time.monotonic())
    speaking = wait([assigned.worker.pipe for assigned in pool], timeout=patience)
    at_work: list[_Assigned] = []
    ended: list[tuple[Job, str | None]] = []
    for assigned in pool:
        worker, (job, _) = assigned.worker, assigned.task
        if worker.pipe in speaking:
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
            assigned.until = time.monotonic() + limit_s
            with suppress(OSError):  # it is dead, and its pipe says so at the next step
                worker.pipe.send(assigned.task)
        elif time.monotonic() >= assigned.until:
            late = f"took longer than {limit_s:g} s" if worker.ready else f"no extractor within {START_S:g} s"
            ended.append((job, late))
            worker.end(0)
            continue
        at_work.append(assigned)
    return at_work, ended


class _Actor:
    """A worker on Ray. It works in the stage's own folder, which every machine of a cluster sees under one path."""

    def __init__(self, folder: Path, extractors: dict[str, Block], make: Callable[..., None]) -> None:
        os.chdir(folder)
        self.extractors = extractors
        self.part = make

    def ready(self) -> None:
        """Answers as soon as the worker is there."""

    def make(self, job: Job, part: Path) -> str | None:
        return _failure(self.part, self.extractors, job, part)


@dataclass
class _OnRay:
    """An actor, the job and part that it has, and until when (monotonic seconds) it may take."""

    actor: Any
    task: tuple[Job, Path]
    until: float = math.inf  # Ray starts it when there is room
    ready: bool = False


def make_parts_on_ray(
    jobs: list[tuple[Job, Path]],
    extractors: dict[str, Block],
    workers: int,
    seconds_per_clip: float,
    advance: Callable[[], Any],
) -> dict[tuple[str, str], str]:
    """As make_parts, by `workers` actors of one core each: on the cluster of RAY_ADDRESS, else on this machine.

    Ray does not say how a worker died. Raises UserError where Ray is not installed or its cluster does not answer.
    """
    ray = connect(workers)
    actor = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
    waiting = deque(jobs)
    lost: dict[tuple[str, str], str] = {}
    pool: dict[Any, _OnRay] = {}  # by the answer that is awaited

    def ended(worker: _OnRay, reason: str | None) -> None:
        job, _ = worker.task
        if reason is not None:
            lost[job.clip_id, job.modality] = reason
        advance()

    try:
        while waiting or pool:
            while waiting and len(pool) < workers:
                worker = _OnRay(actor.remote(Path.cwd(), extractors, _make_part), waiting.popleft())
                pool[worker.actor.ready.remote()] = worker
            until = min(worker.until for worker in pool.values())
            patience = None if until == math.inf else max(0.0, until - time.monotonic())
            spoken, _ = ray.wait(list(pool), timeout=patience)
            for answer, worker in list(pool.items()):
                if answer in spoken:
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
                    worker.ready, worker.until = True, time.monotonic() + seconds_per_clip
                    pool[worker.actor.make.remote(*worker.task)] = worker
                elif time.monotonic() >= worker.until:
                    del pool[answer]
                    ray.kill(worker.actor)
                    ended(worker, f"took longer than {seconds_per_clip:g} s")
    finally:
        for worker in pool.values():
            ray.kill(worker.actor)
    return lost
