"""Extraction over many clips: processes, incremental by content, one bad clip at a time.

Each (clip, modality) becomes a part, a file named by the hash of what made it: the media's bytes, the span and the
extractor's name, version and rate. A part that exists is never made again. A worker that dies or takes too long
costs its own clip; nothing is kept of it, so the next run tries again.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import TimeoutError as TimeLimit
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pebble import ProcessExpired, ProcessPool

from qamoe.features.media import NoStream, Problem
from qamoe.files import write_text, written_aside


class Extractor(Protocol):
    """What turns a span of a media file into frames (T, D) float32 at `rate` Hz; raises Problem where it cannot."""

    name: str
    version: str
    columns: tuple[str, ...]
    rate: float

    def extract(self, path: Path, start_s: float, end_s: float | None) -> np.ndarray: ...


@dataclass(frozen=True)
class Job:
    """One modality of one clip."""

    clip_id: str
    modality: str
    media: Path
    start_s: float
    end_s: float | None


@cache
def extractor(name: str, rate: float) -> Extractor:
    """The extractor of that name; made once a process, since some load a model."""
    if name == "egemaps":
        from qamoe.features.egemaps import Egemaps

        return Egemaps(rate)
    from qamoe.features.landmarks import Landmarks

    return Landmarks(rate)


def part_key(job: Job, media_digest: str, made_by: Extractor) -> str:
    """The name of a part: SHA-256 of everything that its content depends on."""
    identity = f"{media_digest} {job.start_s!r} {job.end_s!r} {made_by.name} {made_by.version} {made_by.rate!r}"
    return hashlib.sha256(identity.encode()).hexdigest()


def _make_part(name: str, rate: float, job: Job, part: Path) -> None:
    """Runs in a worker: write the frames, or the reason why there are none, as a part."""
    try:
        frames = extractor(name, rate).extract(job.media, job.start_s, job.end_s)
    except NoStream:
        write_text(part.with_suffix(".problem"), "")
    except Problem as problem:
        write_text(part.with_suffix(".problem"), str(problem))
    else:
        with written_aside(part.with_suffix(".npy")) as aside, aside.open("wb") as file:
            np.save(file, frames)


def read_part(part: Path) -> np.ndarray | str | None:
    """Frames (T, D), the reason of a problem ("" for a format without that stream), or None if not made yet."""
    if part.with_suffix(".npy").exists():
        return np.load(part.with_suffix(".npy"))
    if part.with_suffix(".problem").exists():
        return part.with_suffix(".problem").read_text()
    return None


def make_parts(
    jobs: list[tuple[Job, Path]],
    extractors: dict[str, tuple[str, float]],
    workers: int,
    seconds_per_clip: float,
    advance: Callable[[], Any],
) -> dict[tuple[str, str], str]:
    """Make the parts that do not exist; returns the reasons of the jobs that left none, by (clip id, modality).

    `extractors` names extractor and rate (Hz) of each modality; `advance` is called once a finished job.
    """
    lost: dict[tuple[str, str], str] = {}
    with ProcessPool(max_workers=workers, context=get_context("spawn")) as pool:
        running = []
        for job, part in jobs:
            future = pool.schedule(_make_part, args=(*extractors[job.modality], job, part), timeout=seconds_per_clip)
            running.append((job, future))
        for job, future in running:
            try:
                future.result()
            except TimeLimit:
                lost[job.clip_id, job.modality] = f"took longer than {seconds_per_clip:g} s"
            except ProcessExpired as death:
                lost[job.clip_id, job.modality] = f"the extractor died (exit code {death.exitcode})"
            except Exception as error:  # an extractor is foreign code: whatever it raises costs its clip alone
                lost[job.clip_id, job.modality] = f"the extractor failed: {type(error).__name__}: {error}"
            advance()
    return lost
