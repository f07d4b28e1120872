"""Extraction in processes: a worker that dies or hangs costs its own clip, and what was made is not made again."""

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

from qamoe.config.block import Block
from qamoe.errors import UserError
from qamoe.extractors import worker_pool
from qamoe.extractors.worker_pool import Job, make_parts, part_key, read_part
from qamoe.media.decode import ClipError, NoStream


class Obedient:
    """An extractor that does what the file says, step by step."""

    name, version, columns, made_with = "obedient", "1", ("value",), ""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        pass

    def extract(self, path: Path, start_s: float, end_s: float | None) -> np.ndarray:
        *steps, last = path.read_text().split(";")
        for step in steps:
            what, pipe = step.split(" ", 1)
            if what == "tell":
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


def make_part_obediently(chosen: Block, job: Job, part: Path) -> None:
    """What a worker runs: it imports this file, and there alone the extractor is another."""
    worker_pool.extractor = lambda chosen: Obedient(20.0)  # type: ignore[assignment]
    _make_part(chosen, job, part)


@pytest.fixture
def extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run orders, one a clip, with a limit; gives the lost, the parts by order and how often it advanced.

    `advance` is called with how many jobs are done.
    """
    monkeypatch.setattr(worker_pool, "_make_part", make_part_obediently)

    def run(*orders: str, workers: int = 2, limit_s: float = 60, advance: Any = None) -> SimpleNamespace:
        jobs = []
        for i, order in enumerate(orders):
            (tmp_path / f"{i}.txt").write_text(order)
            jobs.append((Job(f"clip-{i}", "audio", tmp_path / f"{i}.txt", 0.0, None), tmp_path / "parts" / f"{i:064x}"))
        done: list[int] = []

        def advanced() -> None:
            done.append(1)
            if advance is not None:
                advance(len(done))

        lost = make_parts(jobs, {"audio": Block()}, workers, limit_s, advanced)
        return SimpleNamespace(lost=lost, parts=[read_part(part) for _, part in jobs], advanced=len(done))

    return run


def values(parts: list[Any]) -> list[Any]:
    return [part.ravel().tolist() if isinstance(part, np.ndarray) else part for part in parts]


def test_a_worker_that_dies_costs_its_clip_alone(extracted: Any, tmp_path: Path) -> None:
    """Each dies in the middle of its work: after its neighbour, which waited for it to begin, was reported done."""
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
    assert result.lost == {
        ("clip-1", "audio"): "the extractor died (exit code 7)",
        ("clip-3", "audio"): "the extractor died (exit code -9)",
    }
    assert result.advanced == 5
    made = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert all(name.endswith(".npy") for name in made), "nothing half-written is left"


def test_workers_that_die_at_once_cost_their_clips_alone(extracted: Any) -> None:
    """Before anybody could have noticed that they had begun, one after the other and side by side."""
    deaths = {2: "kill", 3: "exit", 4: "kill", 8: "exit"}
    for workers in (1, 2):
        result = extracted(*(deaths.get(i, str(i)) for i in range(10)), workers=workers)
        assert values(result.parts) == [None if i in deaths else [i, i] for i in range(10)]
        assert result.lost == {
            (f"clip-{i}", "audio"): f"the extractor died (exit code {-9 if how == 'kill' else 7})"
            for i, how in deaths.items()
        }
        assert result.advanced == 10


def test_workers_that_cannot_even_start_cost_each_clip_and_end(extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_make_part", Unreadable())
    result = extracted("1", "2", "3")
    assert result.lost == {(f"clip-{i}", "audio"): "the extractor died (exit code 5)" for i in range(3)}


def test_nothing_to_do_starts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "WorkerProcess", lambda *_: pytest.fail("a worker was started"))
    assert make_parts([], {}, 2, 60, lambda: None) == {}


def test_what_a_stage_breaks_off_leaves_no_worker(extracted: Any) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        extracted("1", "hang", "hang", "2", advance=stop)
    assert set(multiprocessing.active_children()) <= before


KILLED = """
import os, signal, sys
from tests.extractors.test_worker_pool import *
worker_pool._make_part = make_part_obediently
folder = Path(sys.argv[1])
(folder / "0.txt").write_text(f"tell {folder / 'here'};hang")
job = (Job("clip", "audio", folder / "0.txt", 0.0, None), folder / "part")
make_parts([job], {"audio": Block()}, 1, 600, lambda: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a process to its parent on Linux only")
def test_a_stage_that_is_killed_takes_a_hanging_worker_along(tmp_path: Path) -> None:
    """The worker inherits the standard output, which ends with the last who holds it."""
    os.mkfifo(tmp_path / "here")
    here = os.open(tmp_path / "here", os.O_RDWR)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None
        assert select.select([here], [], [], 60)[0], "the worker has not begun"
        stage.kill()
        assert select.select([stage.stdout], [], [], 60)[0], "the worker is there still"
        assert stage.stdout.read() == b""
    os.close(here)


def test_a_clip_that_hangs_is_given_up_and_costs_its_clip_alone(extracted: Any) -> None:
    result = extracted("1", "hang", "2", workers=1, limit_s=2)
    assert values(result.parts) == [[1, 1], None, [2, 2]]
    assert result.lost == {("clip-1", "audio"): "took longer than 2 s"}


def test_problems_are_parts_and_an_absent_stream_is_none(extracted: Any) -> None:
    result = extracted("problem", "no stream", "5", workers=1)
    assert result.lost == {}
    assert values(result.parts) == ["no face", "", [5, 5]]


def test_an_error_nobody_thought_of_costs_its_clip_alone(extracted: Any) -> None:
    result = extracted("1", "error", "2", workers=1)
    assert values(result.parts) == [[1, 1], None, [2, 2]]
    assert "list index out of range" in result.lost["clip-1", "audio"]


def test_a_part_is_named_by_all_that_its_content_depends_on(tmp_path: Path) -> None:
    job = Job("clip", "audio", tmp_path / "a.mp4", 0.0, 2.5)
    made_by = Obedient(20.0)
    key = part_key(job, "digest", made_by)
    assert len(key) == 64
    assert part_key(replace(job, clip_id="other", media=tmp_path / "moved.mp4"), "digest", made_by) == key
    faster, newer, renamed, finer = Obedient(25.0), Obedient(20.0), Obedient(20.0), Obedient(20.0)
    newer.version, renamed.name, finer.made_with = "2", "other", "80 bands"  # type: ignore[misc]
    others = [
        part_key(replace(job, start_s=0.1), "digest", made_by),
        part_key(replace(job, end_s=None), "digest", made_by),
        part_key(job, "other digest", made_by),
        *(part_key(job, "digest", extractor) for extractor in (faster, newer, renamed, finer)),
    ]
    assert len({key, *others}) == 8


def test_an_unmade_part_is_none(tmp_path: Path) -> None:
    assert read_part(tmp_path / "part") is None


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"QAMOE_EXECUTOR is ray, which is not installed: pip install -e '\.\[ray\]'\."):
        worker_pool.make_parts_on_ray([], {}, 1, 60, lambda: None)
