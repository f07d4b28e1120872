"""Checkpoints -> the reliability spectrum on the test split: artifacts/evaluate/<model>/<seed>/.

The only stage that opens the test split. All seeds of a model see the same degraded clips.
"""

import json
from pathlib import Path
from typing import Any

from qamoe import params as parameters
from qamoe import settings
from qamoe.errors import Refused
from qamoe.files import write_text, written_aside
from qamoe.params import Params
from qamoe.stages import entry
from qamoe.stages.closure import code_digest
from qamoe.stages.data import file_digest, read_stats, remove_other_seeds


def run(params: Params, out: Path, model: str | None = None) -> None:
    """Evaluate what params.yaml lists and is not evaluated under the same digests."""
    stats = read_stats(out)
    for name in [model] if model else list(params.seeds):
        _evaluate(params, stats, out, name)


def _evaluate(params: Params, stats: dict[str, Any], out: Path, name: str) -> None:
    from qamoe.degradation.views import references
    from qamoe.evaluation import spectrum
    from qamoe.features.store import Store
    from qamoe.records.tracking import record_evaluation
    from qamoe.training import checkpoint
    from qamoe.training.views import open_views, restrict_threads

    folder = out / "evaluate" / name
    seeds = params.seeds[name]
    remove_other_seeds(folder, seeds)
    test = out / "preprocess" / "test.arrow"
    waiting = []
    for seed in seeds:
        source = out / "train" / name / str(seed)
        trained = checkpoint.load(source, settings.device())
        digest = parameters.digest(
            checkpoint.digest(source), params.evaluate, file_digest(test), code_digest("qamoe.stages.evaluate")
        )
        if _read_digest(folder / str(seed)) != digest:
            waiting.append((seed, trained, digest))
    entry.log.info(json.dumps({"stage": "evaluate", "model": name, "seeds": len(waiting)}))
    if not waiting:
        return
    store = Store(test)
    if not len(store):
        raise Refused("The test split is empty; there is nothing to evaluate on.")
    cells = spectrum.plan(params.evaluate.slices, params.evaluate)
    models = [trained for _, trained, _ in waiting]
    split = open_views(
        store,
        spectrum.views(cells),
        tuple(stats["modalities"]),
        references(stats),
        out / "evaluate" / "states",
        file_digest(test),
        settings.device(),
    )
    restrict_threads()  # the models are small: a second thread only waits
    measured = spectrum.measure(models, split, cells, settings.device())
    for (seed, trained, digest), rows in zip(waiting, measured, strict=True):
        place = folder / str(seed)
        place.mkdir(parents=True, exist_ok=True)
        (place / "digest").unlink(missing_ok=True)
        spectrum.write_predictions(rows, place / "predictions.parquet")
        table = spectrum.aggregate(rows, cells, trained.config["calibration"]["sigmas"])
        with written_aside(place / "cells.parquet") as aside:
            table.to_parquet(aside, index=False)
        write_text(place / "digest", digest)
        record_evaluation(trained.folder, place, params.registry.name)


def _read_digest(folder: Path) -> str | None:
    try:
        return (folder / "digest").read_text()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    entry.main("evaluate", run, selects_model=True)
