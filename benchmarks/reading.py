"""Measure reading data of CMU-MOSEI's shape: `python benchmarks/reading.py [FOLDER]`.

Takes four minutes and 8 GB of disk space in FOLDER, a temporary folder by default. Writes stores of random clips as
preprocess does. Separate processes measure opening, the first batch and anonymous memory (RssAnon, which the page
cache cannot reclaim). Another comparison reads batches from the memory map and from tensors in memory. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapes
import torch
from figures import alternated, figure, ratio

from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.data.batch import Batch, collate
from qamoe.dataset.degraded_split import rows_in_batches
from qamoe.errors import UserError, exit_on_user_error
from qamoe.rng import MODALITIES, clip_key

CLIPS = 32  # per batch
IN_MEMORY = 4_000  # clips in memory for the comparison
BATCHES = 300  # read before memory is measured


def main(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    with tempfile.TemporaryDirectory(prefix="qamoe-data-", dir=folder) as name:
        temporary = Path(name)
        write_store(temporary / "mosei.arrow", shapes.CLIPS, shapes.FRAMES)
        for cold in (True, False):
            measured = open_in_process(temporary / "mosei.arrow", cold=cold)
            state = "cold" if cold else "warm"
            name = f"data: MOSEI's shape, open and first batch, page cache {state}"
            figure(name, measured["seconds"], "s", at_most=1)
        figure("data: MOSEI's shape, anonymous memory after the first batch", measured["first"], "MB", at_most=400)
        figure("data: MOSEI's shape, anonymous memory after an epoch's start", measured["then"], "MB")
        rate(Store(temporary / "mosei.arrow"))
        (temporary / "mosei.arrow").unlink()
        memory(temporary)


def memory(folder: Path) -> None:
    """Measure anonymous memory for 2,000 and 200,000 clips with a twentieth of the frames."""
    short = shapes.FRAMES | {m: length // 20 for m, length in shapes.FRAMES.items() if m != "text"}
    megabytes = {}
    for clips in (2_000, 200_000):
        path = folder / f"{clips}.arrow"
        write_store(path, clips, short)
        megabytes[clips] = open_in_process(path, cold=False)["then"]
        path.unlink()
    figure("data: anonymous memory, 2,000 clips of a twentieth", megabytes[2_000], "MB")
    growth = 100 * (megabytes[200_000] / megabytes[2_000] - 1)
    figure("data: anonymous memory, growth to 200,000 clips", growth, "%", at_most=5)


def write_store(path: Path, clips: int, frames: dict[str, int]) -> None:
    """Write a preprocessed store; each clip is a different part of one block of noise."""
    draws = np.random.default_rng(1)
    noise = draws.standard_normal(1 << 20).astype(np.float32)
    ids = draws.integers(1000, shapes.VOCABULARY, 1 << 16).astype(np.int32)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(clips):
            row: dict[str, Any] = {"clip_id": f"clip-{number:06d}", "source": f"source-{number // 7:05d}"}
            row |= {"label": float(noise[number]), "text": ids[number % 60_000 :][: frames["text"]]}
            for m, columns in shapes.COLUMNS.items():
                start = (number * 911) % 900_000
                row[m] = noise[start : start + frames[m] * columns].reshape(frames[m], columns)
            yield row

    schema = pa.schema(
        [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64()), ("text", pa.list_(pa.int32()))]
        + [(m, frames_type(columns)) for m, columns in shapes.COLUMNS.items()]
    )
    write(path, schema, rows(), {})


def open_in_process(path: Path, *, cold: bool) -> dict[str, float]:
    """Run `read_store` in a new process and return its measurements. cold: drop the file from the page cache first."""
    if cold:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--read", str(path)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(process.stdout)
    return measured


def read_store(path: Path) -> None:
    """Open a store and read batches; print the seconds to the first, and RssAnon in MB after the first and the last."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    store = Store(path)
    order = rows_in_batches(len(store), CLIPS, np.random.default_rng(1))
    collate(store, order[0], MODALITIES)
    seconds, first = time.perf_counter() - begin, anonymous()
    for rows in order[1:BATCHES]:
        collate(store, rows, MODALITIES)
    spread = order[:: max(1, len(order) // BATCHES)]  # touches every part of the file
    for rows in spread:
        collate(store, rows, MODALITIES)
    print(json.dumps({"seconds": seconds, "first": first, "then": anonymous()}))


def anonymous() -> float:
    """Return RssAnon of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def rate(store: Store) -> None:
    """Measure batches of random clips from the memory map against the same batches from tensors in memory."""
    torch.set_num_threads(1)
    random = np.random.default_rng(2)
    chosen = random.choice(len(store), IN_MEMORY, replace=False)
    clips = collate(store, chosen.tolist(), MODALITIES)
    target = clips.target
    assert target is not None
    ids = [store.value("clip_id", row) for row in chosen]
    batches = [random.choice(IN_MEMORY, CLIPS, replace=False) for _ in range(40)]

    target = clips.target
    assert target is not None

    def mapped() -> None:
        for indices in batches:
            collate(store, chosen[indices].tolist(), MODALITIES)

    def in_memory() -> None:
        for indices in batches:
            rows = torch.from_numpy(indices)
            keys = torch.tensor([clip_key(ids[index]) for index in indices])
            x, mask = {m: v[rows] for m, v in clips.x.items()}, {m: v[rows] for m, v in clips.mask.items()}
            Batch(keys, x, mask, target[rows])

    taken = alternated({"mapped": mapped, "memory": in_memory}, 9, clock=time.process_time)
    figure("data: MOSEI's shape, reading", 40 * CLIPS / min(taken["mapped"]), "clips/s")
    share = 100 * ratio(taken, "memory", "mapped")
    figure("data: MOSEI's shape, reading by the rate from memory, page cache warm", share, "%", at_least=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure reading data of CMU-MOSEI's shape.")
    parser.add_argument("folder", nargs="?", type=Path, help="where to write temporary stores of up to 8 GB")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # what open_in_process runs
    options = parser.parse_args()
    with exit_on_user_error("reading.py"):
        read_store(options.read) if options.read else main(options.folder)
