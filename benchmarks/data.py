"""The data path at CMU-MOSEI's shape: `python benchmarks/data.py [FOLDER]`, four minutes and 8 GB of disk meanwhile.

Writes stores of made-up clips as preprocess does, and measures in processes of their own: opening and the first batch,
anonymous memory (RssAnon, what the page cache cannot take back), and in one process batches from the map against the
same batches from tensors in memory. Linux.
"""

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
from qamoe.rng import MODALITIES, clip_key

CLIPS = 32  # in a batch
HELD = 4_000  # clips that are held in memory for the comparison
BATCHES = 300  # read before memory is looked at


def main(folder: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="qamoe-data-", dir=folder) as name:
        here = Path(name)
        written(here / "mosei.arrow", shapes.CLIPS, shapes.FRAMES)
        for cold in (True, False):
            found = opened(here / "mosei.arrow", cold=cold)
            state = "cold" if cold else "warm"
            figure(f"data: MOSEI's shape, open and first batch, page cache {state}", found["seconds"], "s", at_most=1)
        figure("data: MOSEI's shape, anonymous memory after the first batch", found["first"], "MB", at_most=400)
        figure("data: MOSEI's shape, anonymous memory after an epoch's start", found["then"], "MB")
        rate(Store(here / "mosei.arrow"))
        (here / "mosei.arrow").unlink()
        memory(here)


def memory(folder: Path) -> None:
    """Anonymous memory with a hundred times the clips, of a twentieth of the frames."""
    short = shapes.FRAMES | {m: length // 20 for m, length in shapes.FRAMES.items() if m != "text"}
    found = {}
    for clips in (2_000, 200_000):
        path = folder / f"{clips}.arrow"
        written(path, clips, short)
        found[clips] = opened(path, cold=False)["then"]
        path.unlink()
    figure("data: anonymous memory, 2,000 clips of a twentieth", found[2_000], "MB")
    grown = 100 * (found[200_000] / found[2_000] - 1)
    figure("data: anonymous memory, growth to 200,000 clips", grown, "%", at_most=5)


def written(path: Path, clips: int, frames: dict[str, int]) -> None:
    """A preprocessed store; clips are cut from one block of noise at places of their own."""
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


def opened(path: Path, *, cold: bool) -> dict[str, float]:
    """What a fresh process measures that opens a store and reads from it."""
    if cold:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--opened", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def reads(path: Path) -> None:
    """Open, take the first batch, then more; prints seconds to the first and RssAnon in MB after it and after all."""
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
    """RssAnon of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def rate(store: Store) -> None:
    """Batches of random clips from the map, by the rate of the same ones from tensors in memory."""
    torch.set_num_threads(1)
    random = np.random.default_rng(2)
    chosen = random.choice(len(store), HELD, replace=False)
    held = collate(store, chosen.tolist(), MODALITIES)
    assert held.target is not None
    ids = [store.value("clip_id", row) for row in chosen]
    batches = [random.choice(HELD, CLIPS, replace=False) for _ in range(40)]

    def mapped() -> None:
        for places in batches:
            collate(store, chosen[places].tolist(), MODALITIES)

    def in_memory() -> None:
        for places in batches:
            rows = torch.from_numpy(places)
            keys = torch.tensor([clip_key(ids[place]) for place in places])
            x, mask = {m: v[rows] for m, v in held.x.items()}, {m: v[rows] for m, v in held.mask.items()}
            Batch(keys, x, mask, held.target[rows])

    taken = alternated({"mapped": mapped, "memory": in_memory}, 9, clock=time.process_time)
    figure("data: MOSEI's shape, reading", 40 * CLIPS / min(taken["mapped"]), "clips/s")
    share = 100 * ratio(taken, "memory", "mapped")
    figure("data: MOSEI's shape, reading by the rate from memory, page cache warm", share, "%", at_least=80)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--opened"]:
        reads(Path(sys.argv[2]))
    else:
        main(*(sys.argv[1:] or [None]))
