"""A killed extraction and a growing corpus: no feature is extracted twice, and no store is ever wrong."""

import csv
import io
import os
import random
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store
from qamoe.data.manifest import COLUMNS
from qamoe.extractors.openface import COLUMNS as MEASURED
from qamoe.extractors.worker_pool import Job
from qamoe.pipeline import extract

RATE = 16_000  # Hz
STREAMS = ("audio", "vision")
KILLS = 20
WORKERS = 2
CHANGES: dict[str, Any] = {
    "extract.corpus": {"kind": "clips", "path": "data"},
    "extract.audio": {"extractor": "logmel", "rate": 20, "bands": 12},
    "extract.vision": {"extractor": "openface", "rate": 5},
    "extract.max_problem_share": 1.0,
}


def corpus(folder: Path, count: int, seconds: float) -> None:
    """Write a corpus of noise with one wav file and one csv file of OpenFace per clip; all clips are different."""
    import wave

    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number:04d}"
        rows.append((name, f"source-{number}", f"{name}.wav", "", "", "hello", 0, "train"))
        if (folder / f"{name}.wav").exists():
            continue
        measured = [["timestamp", "success", *MEASURED[:-1]]]
        measured += [[f"{k / 5}", "1", *(f"{number + k}" for _ in MEASURED[:-1])] for k in range(4)]
        (folder / f"{name}.csv").write_text("\n".join(map(",".join, measured)) + "\n")
        noise = np.random.default_rng(number).integers(-3000, 3000, round(seconds * RATE)).astype("<i2")
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(noise.tobytes())
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def files(out: Path) -> dict[str, bytes]:
    """Return the output files of a run without its parts, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def finished(out: Path) -> list[Path]:
    """List parts and outputs: all files except temporary ones."""
    return [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]


def identity(path: Path) -> tuple[int, int]:
    """Return inode and time of modification, which change when a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def parts(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: identity(path) for path in finished(out / "parts")}


@pytest.fixture
def started(params_file: Any, tmp_path: Path, environment: dict[str, str]) -> Callable[[], subprocess.Popen[bytes]]:
    """Start the stage as a command in a process group of its own, with two workers."""
    path = params_file(CHANGES)
    command = [sys.executable, "-m", "qamoe", "run", "extract", "-q", "--params", str(path), "--out", "out"]

    def start() -> subprocess.Popen[bytes]:
        variables = environment | {"QAMOE_WORKERS": str(WORKERS)}
        return subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True)

    return start


@pytest.mark.slow
def test_a_repeatedly_killed_stage_loses_only_the_files_in_progress(
    started: Any, params_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment is the number of files written since the start: 16 while parts, 4 while outputs are written."""
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "data", count=100, seconds=1.0)
    extract.run(parameters.load(params_file(CHANGES)), tmp_path / "whole")
    outputs, all_parts = files(tmp_path / "whole/extract"), parts(tmp_path / "whole/extract")
    assert len(all_parts) == 200
    draws = random.Random(2026)
    out = tmp_path / "out/extract"
    out.mkdir(parents=True)
    kept: dict[str, tuple[int, int]] = {}
    for number in range(KILLS):
        output_number = number - (KILLS - 4)
        moment = draws.randint(1, 10) if output_number < 0 else len(all_parts) - len(kept) + 1 + output_number
        before = set(map(identity, finished(out)))
        stage = started()
        ended = os.pidfd_open(stage.pid)
        while not select.select([ended], [], [], 0.005)[0]:
            if len(set(map(identity, finished(out))) - before) >= moment:
                os.killpg(stage.pid, signal.SIGKILL)
                break
        os.close(ended)
        assert stage.wait() == -signal.SIGKILL, f"the stage ended before it had written {moment} files"
        now = parts(out)
        assert {name: now[name] for name in kept} == kept, "a part was extracted again"
        assert len(now) > len(kept) or len(now) == len(all_parts)
        assert len(list((out / "parts").rglob(".*"))) <= WORKERS
        for path in finished(out):
            assert path.name in all_parts or path.read_bytes() == outputs[path.name], f"{path.name} has changed"
        kept = now
    assert len(kept) == len(all_parts)
    assert started().wait() == 0
    assert parts(out) == kept
    assert files(out) == outputs
    assert list(out.rglob(".*")) == [], "temporary files are removed"
    same = {path.name: path.read_bytes() for path in finished(tmp_path / "whole/extract")}
    assert {path.name: path.read_bytes() for path in finished(out)} == same


@pytest.mark.slow
def test_ten_new_clips_extract_only_ten(
    params_file: Any, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = parameters.load(params_file(CHANGES))
    corpus(tmp_path / "data", count=1000, seconds=0.1)
    extract.run(params, tmp_path / "out")
    out = tmp_path / "out/extract"
    before = parts(out)
    assert len(before) == 2000
    first = {m: [Store(out / f"{m}.arrow").sequence("frames", row).tobytes() for row in range(1000)] for m in STREAMS}

    corpus(tmp_path / "data", count=1010, seconds=0.1)
    extracted: list[tuple[str, str]] = []
    make_parts = extract.make_parts

    def record_jobs(jobs: list[tuple[Job, Path]], *rest: Any) -> dict[tuple[str, str], str]:
        extracted.extend((job.clip_id, job.modality) for job, _ in jobs)
        return make_parts(jobs, *rest)

    monkeypatch.setattr(extract, "make_parts", record_jobs)
    extract.run(params, tmp_path / "out")
    assert sorted(extracted) == [(f"{number:04d}", m) for number in range(1000, 1010) for m in STREAMS]
    after = parts(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2020
    for modality, frames in first.items():
        store = Store(out / f"{modality}.arrow")
        assert len(store) == 1010
        assert [store.sequence("frames", row).tobytes() for row in range(1000)] == frames


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_shows_count_rate_and_time_left(
    params_file: Any,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="qamoe")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    corpus(tmp_path / "data", count=6, seconds=0.1)
    for quiet in (False, True):
        if quiet:
            caplog.set_level("WARNING", logger="qamoe")
        waiting = [
            (Job(f"{i:04d}", "vision", tmp_path / f"data/{i:04d}.wav", 0.0, None), tmp_path / f"{quiet}/{i}")
            for i in range(6)
        ]
        extract._make_parts(parameters.load(params_file(CHANGES)).extract, waiting)
        shown = terminal.getvalue()
        terminal.truncate(0)
        assert (re.search(r"extract.*6/6.*\d\.\d/s.*0:00:00", shown) is not None) is not quiet
        assert not (quiet and shown)
