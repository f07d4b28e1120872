"""Measure the protocol with shared work against evaluation cell by cell: `python benchmarks/evaluation.py`.

Takes five minutes on one core. Evaluates untrained QA-MoEs, one per seed of params.yaml, on a random test split of the
sample corpus's shape, with every slice of protocol 1 and permuted quality. Cell by cell, each view of each seed
degrades and encodes all modalities, also by the frozen text encoder, and fuses them. This is measured on every 20th
view and scaled by the number of views.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapes
import torch
from figures import figure

from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.dataset.degraded_split import DegradedSplit, feature_sizes, open_views
from qamoe.degradation.views import View, references_from_stats
from qamoe.evaluation import protocol
from qamoe.evaluation.protocol import Cell
from qamoe.evaluation.quality_permutation import all_donors, mixed_draws, permuted_quality
from qamoe.models.checkpoint import Trained, make
from qamoe.rng import MODALITIES

CLIPS = 64
EVERY = 20  # measure every 20th view cell by cell
COLUMNS = {"audio": 25, "vision": 71}
STATS: Any = {
    "modalities": list(MODALITIES),
    "text": {"unk": 100, "special": [0, 101, 102], "vocabulary": shapes.VOCABULARY, "frequencies": [[2204, 3], [9, 2]]},
    "audio": {"dimension": COLUMNS["audio"], "rate": 20.0},
    "vision": {"dimension": COLUMNS["vision"], "rate": 5.0},
}


def main() -> None:
    torch.set_num_threads(1)
    content, protocol = (parameters.read(Path(name)) for name in ("params.yaml", "experiments/protocol.yaml"))
    content["evaluate"] |= protocol["evaluate"]
    params = parameters.validate(content, Path("experiments/protocol.yaml"))
    with tempfile.TemporaryDirectory(prefix="qamoe-evaluation-") as name:
        measure(params, Path(name))


def measure(params: parameters.Params, folder: Path) -> None:
    settings = params.evaluate
    store = Store(write_store(folder / "test.arrow"))
    trained = [untrained(params, seed) for seed in params.seeds["qamoe"]]
    cells = protocol.plan(settings.slices, settings)
    alone = [cell for cell in cells if cell.slice == "alone"]
    others = [cell for cell in cells if cell.slice != "alone"]
    (mixed,) = [cell for cell in cells if cell.slice == "mixed"]

    begin = time.process_time()
    split = open_views(store, protocol.views(cells), MODALITIES, references_from_stats(STATS), folder, "", "cpu")
    text = time.process_time() - begin
    _, without_alone = by_protocol(trained, split, others)
    predictions, dense_forward = by_protocol(trained, split, [*others, *alone])
    _, one_seed = by_protocol(trained[:1], split, [*others, *alone])
    rows = pd.concat([view for view in predictions if view["slice"][0] == "mixed"], ignore_index=True)
    begin = time.process_time()
    r = rows[[f"r_{m}" for m in MODALITIES]].to_numpy(np.float32)
    donors_of = all_donors(len(mixed.views), CLIPS, settings.quality_permutations, settings.seed)
    draws = mixed_draws(trained[0], split, mixed, rows, "cpu")
    permuted = sum(1 for draw in draws for _ in permuted_quality(trained[0], draw, r, donors_of))
    permuting = time.process_time() - begin

    views = [(cell, view) for cell in [*others, *alone] for view in cell.views]
    naive, difference = [], 0.0
    for index in range(0, len(views), EVERY):
        begin = time.process_time()
        single = by_view(trained[0], store, *views[index])
        naive.append(time.process_time() - begin)
        expected = predictions[index].set_index("clip_id")["prediction"]
        difference = max(difference, float((single.set_index("clip_id")["prediction"] - expected).abs().max()))
    per_view = float(np.mean(naive))
    seeds, added = len(trained), sum(len(cell.views) for cell in alone)
    whole, shared = per_view * (len(views) + permuted), text + dense_forward + seeds * permuting
    figure("evaluation: views of the whole protocol", len(views))
    figure("evaluation: permutations of quality", permuted)
    figure("evaluation: a view cell by cell", 1000 * per_view, "ms")
    figure(f"evaluation: {seeds} seeds, the whole protocol", shared, "s")
    figure(f"evaluation: {seeds} seeds, cell by cell by shared", seeds * whole / shared, "times", at_least=8)
    figure("evaluation: one seed alone, cell by cell by shared", whole / (text + one_seed + permuting), "times")
    cost = 100 * (dense_forward - without_alone) / added / (seeds * per_view)
    figure("evaluation: an added view of slice alone by one cell by cell", cost, "%", at_most=15)
    figure("evaluation: largest difference of a prediction", difference, at_most=1e-5)


def by_protocol(trained: list[Trained], split: DegradedSplit, cells: list[Cell]) -> tuple[list[pd.DataFrame], float]:
    """Return the rows of every view by the first checkpoint, and the seconds for all checkpoints."""
    begin = time.process_time()
    rows = [frames[0] for frames in protocol.by_view(trained, split, cells, "cpu")]
    return rows, time.process_time() - begin


def by_view(trained: Trained, store: Store, cell: Cell, view: View) -> pd.DataFrame:
    """Evaluate a single view; return one row per clip."""
    split = DegradedSplit(store, (view,), MODALITIES, references_from_stats(STATS), None)
    batches, _ = protocol.batched(store)
    parts = []
    for rows in batches:
        batch, _, state = split.degraded(0, rows)
        present = {m: mask.any(1) for m, mask in batch.mask.items()}
        columns = protocol.predicted(trained, trained.vectors(batch), present, state=state)
        parts.append(pd.DataFrame({"clip_id": [store.clip_ids[row] for row in rows]} | columns))
    return pd.concat(parts, ignore_index=True)


def untrained(params: parameters.Params, seed: int) -> Trained:
    """Return an untrained QA-MoE of params.yaml; its predictions do not matter here."""
    config: Any = {
        "model": "qamoe",
        "models": params.models.model_dump(mode="json", include={"encoders", "qamoe"}),
        "inputs": feature_sizes(STATS),
        "modalities": list(MODALITIES),
        "stats": STATS,
        "task": {"kind": "regression", "low": -3.0, "high": 3.0},
        "target_mean": 0.0,
        "target_std": 1.0,
        "trust": {m: {"clean": 0.8, "fully_degraded": 0.4, "rescaled": True} for m in MODALITIES},
    }
    torch.manual_seed(seed)
    return Trained(make("qamoe", config).eval(), config, Path())


def write_store(path: Path) -> Path:
    """Write clips of one to three seconds: audio at 20 Hz, vision at 5 Hz, 6 to 18 tokens."""
    draws = np.random.default_rng(1)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(CLIPS):
            seconds = draws.uniform(1, 3)
            words = draws.integers(1000, shapes.VOCABULARY, int(draws.integers(4, 17)))
            row: dict[str, Any] = {"clip_id": f"clip-{number:03d}", "source": f"source-{number // 5}"}
            row |= {"label": float(draws.uniform(-3, 3)), "text": np.array([101, *words, 102], np.int32)}
            for m, rate in (("audio", 20), ("vision", 5)):
                row[m] = draws.standard_normal((round(rate * seconds), COLUMNS[m])).astype(np.float32)
            yield row

    schema = pa.schema(
        [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64()), ("text", pa.list_(pa.int32()))]
        + [(m, frames_type(columns)) for m, columns in COLUMNS.items()]
    )
    write(path, schema, rows(), {})
    return path


if __name__ == "__main__":
    main()
