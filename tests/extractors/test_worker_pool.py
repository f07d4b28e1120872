"""Extraction in processes: a worker that dies or hangs affects only its own clip."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qamoe.config.extractor_settings import ExtractorSettings
from qamoe.errors import UserError
from qamoe.extractors import worker_pool
from qamoe.extractors.worker_pool import Job, make_parts, part_key, read_part
from qamoe.media.decode import ClipError, NoStream


class ScriptedExtractor:
    """An extractor that follows the instructions in its file, step by step."""

    name, version, made_with = "scripted", "1", ""
    columns: tuple[str, ...] = ("value",)

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        pass

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        *steps, last = path.read_text().split(";")
        for step in steps:
            action, pipe = step.split(" ", 1)
            if action == "tell":
                Path(pipe).write_bytes(b".")
            else:
                os.read(os.open(pipe, os.O_RDONLY), 1)
        if last == "exit":
            os._exit(7)
        if last == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if last == "hang":
            reading, _ = os.pipe()
            os.read(reading, 1)  # nobody ever writes
        if last == "problem":
            raise ClipError("no face")
        if last == "no stream":
            raise NoStream("no video stream")
        if last == "error":
            raise IndexError("list index out of range")
        return np.full((2, 1), float(last), np.float32)


class Unreadable:
    """Ends the process that reads it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (5,)


_make_part = worker_pool._make_part


def make_scripted_part(chosen: ExtractorSettings, job: Job, part: Path) -> None:
    """Make a part with the scripted extractor; replaces the extractor only in the worker, which imports this file."""
    worker_pool.extractor = lambda chosen: ScriptedExtractor(20.0)  # type: ignore[assignment]
    _make_part(chosen, job, part)


@pytest.fixture
def extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run instructions, one per clip; return the failed jobs, the parts in order and the number of finished jobs.

    `advance` is called with the number of finished jobs.
    """
    monkeypatch.setattr(worker_pool, "_make_part", make_scripted_part)

    def run(*scripts: str, workers: int = 2, limit_s: float = 60, advance: Any = None) -> SimpleNamespace:
        jobs = []
        for i, script in enumerate(scripts):
            (tmp_path / f"{i}.txt").write_text(script)
            jobs.append((Job(f"clip-{i}", "audio", tmp_path / f"{i}.txt", 0.0, None), tmp_path / "parts" / f"{i:064x}"))
        done: list[int] = []

        def advanced() -> None:
            done.append(1)
            if advance is not None:
                advance(len(done))

        failed = make_parts(jobs, {"audio": ExtractorSettings()}, workers, limit_s, advanced)
        return SimpleNamespace(failed=failed, parts=[read_part(part) for _, part in jobs], advanced=len(done))

    return run


def values(parts: list[Any]) -> list[Any]:
    return [part.ravel().tolist() if isinstance(part, np.ndarray) else part for part in parts]


@pytest.mark.integration
def test_a_worker_that_dies_affects_only_its_clip(extracted: Any, tmp_path: Path) -> None:
    """Each dies while working: after its neighbour, which waited for it to begin, was reported done."""
    pipes = {}
    for name in ("begun 1", "end 1", "begun 3", "end 3"):
        os.mkfifo(tmp_path / name)
        pipes[name] = os.open(tmp_path / name, os.O_RDWR)

    def neighbour_done(count: int) -> None:
        if count in (1, 3):
            os.write(pipes[f"end {count}"], b".")

    def pair(number: int, last: str) -> list[str]:
        begun, end = tmp_path / f"begun {number}", tmp_path / f"end {number}"
        return [f"await {begun};{number}", f"tell {begun};await {end};{last}"]

    try:
        result = extracted(*pair(1, "exit"), *pair(3, "kill"), "4", advance=neighbour_done)
    finally:
        for pipe in pipes.values():
            os.close(pipe)
    assert values(result.parts) == [[1, 1], None, [3, 3], None, [4, 4]]
    assert result.failed == {
        ("clip-1", "audio"): "the extractor died (exit code 7)",
        ("clip-3", "audio"): "the extractor died (exit code -9)",
    }
    assert result.advanced == 5
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert all(name.endswith(".npy") for name in names), "no temporary file is left"


@pytest.mark.slow
def test_workers_that_die_at_once_affect_only_their_clips(extracted: Any) -> None:
    """They die before the pool notices that they started, one at a time and two in parallel."""
    deaths = {2: "kill", 3: "exit", 4: "kill", 8: "exit"}
    for workers in (1, 2):
        result = extracted(*(deaths.get(i, str(i)) for i in range(10)), workers=workers)
        assert values(result.parts) == [None if i in deaths else [i, i] for i in range(10)]
        assert result.failed == {
            (f"clip-{i}", "audio"): f"the extractor died (exit code {-9 if how == 'kill' else 7})"
            for i, how in deaths.items()
        }
        assert result.advanced == 10


@pytest.mark.integration
def test_workers_that_cannot_start_fail_every_clip(extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_make_part", Unreadable())
    result = extracted("1", "2", "3")
    assert result.failed == {(f"clip-{i}", "audio"): "the extractor died (exit code 5)" for i in range(3)}


def test_no_jobs_start_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "WorkerProcess", lambda *_: pytest.fail("a worker was started"))
    assert make_parts([], {}, 2, 60, lambda: None) == {}


@pytest.mark.integration
def test_an_interrupted_stage_leaves_no_worker(extracted: Any) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        extracted("1", "hang", "hang", "2", advance=stop)
    assert set(multiprocessing.active_children()) <= before


KILLED = """
import os, signal, sys
from tests.extractors.test_worker_pool import *
worker_pool._make_part = make_scripted_part
folder = Path(sys.argv[1])
(folder / "0.txt").write_text(f"tell {folder / 'here'};hang")
job = (Job("clip", "audio", folder / "0.txt", 0.0, None), folder / "part")
make_parts([job], {"audio": ExtractorSettings()}, 1, 600, lambda: None)
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a process to its parent on Linux only")
def test_a_hanging_worker_ends_with_a_killed_stage(tmp_path: Path) -> None:
    """The worker inherits the standard output, which reports EOF when the last process that holds it ends."""
    os.mkfifo(tmp_path / "here")
    here = os.open(tmp_path / "here", os.O_RDWR)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None
        assert select.select([here], [], [], 60)[0], "the worker has not begun"
        stage.kill()
        assert select.select([stage.stdout], [], [], 60)[0], "the worker still runs"
        assert stage.stdout.read() == b""
    os.close(here)


@pytest.mark.integration
def test_a_clip_that_hangs_is_given_up_and_affects_no_other(extracted: Any) -> None:
    result = extracted("1", "hang", "2", workers=1, limit_s=2)
    assert values(result.parts) == [[1, 1], None, [2, 2]]
    assert result.failed == {("clip-1", "audio"): "took longer than 2 s"}


@pytest.mark.integration
def test_a_problem_and_an_absent_stream_are_parts(extracted: Any) -> None:
    result = extracted("problem", "no stream", "5", workers=1)
    assert result.failed == {}
    assert values(result.parts) == ["no face", "", [5, 5]]


@pytest.mark.integration
def test_an_unexpected_error_affects_only_its_clip(extracted: Any) -> None:
    result = extracted("1", "error", "2", workers=1)
    assert values(result.parts) == [[1, 1], None, [2, 2]]
    assert "list index out of range" in result.failed["clip-1", "audio"]


def test_the_name_of_a_part_covers_everything_it_depends_on(tmp_path: Path) -> None:
    job = Job("clip", "audio", tmp_path / "a.mp4", 0.0, 2.5)
    made_by = ScriptedExtractor(20.0)
    key = part_key(job, "digest", made_by)
    assert len(key) == 64
    assert part_key(replace(job, clip_id="other", media=tmp_path / "moved.mp4"), "digest", made_by) == key
    faster, newer, renamed, finer = (
        ScriptedExtractor(25.0),
        ScriptedExtractor(20.0),
        ScriptedExtractor(20.0),
        ScriptedExtractor(20.0),
    )
    newer.version, renamed.name, finer.made_with = "2", "other", "80 bands"  # type: ignore[misc]
    others = [
        part_key(replace(job, start_s=0.1), "digest", made_by),
        part_key(replace(job, end_s=None), "digest", made_by),
        part_key(job, "other digest", made_by),
        *(part_key(job, "digest", extractor) for extractor in (faster, newer, renamed, finer)),
    ]
    assert len({key, *others}) == 8


def test_a_missing_part_is_read_as_none(tmp_path: Path) -> None:
    assert read_part(tmp_path / "part") is None


def test_a_missing_ray_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"QAMOE_EXECUTOR .*pip install -e '\.\[ray\]'"):
        worker_pool.make_parts_on_ray([], {}, 1, 60, lambda: None)
