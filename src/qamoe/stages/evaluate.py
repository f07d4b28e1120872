"""Checkpoints -> the reliability spectrum on the test split: artifacts/evaluate/<model>/<seed>/.

The only stage that opens the test split. All seeds of a model see the same degraded clips.
"""

import json
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from qamoe import params as parameters
from qamoe import settings
from qamoe.errors import Refused
from qamoe.files import write_text, written_aside
from qamoe.params import Params, specialist_cell
from qamoe.stages import entry
from qamoe.stages.closure import code_digest
from qamoe.stages.data import file_digest, read_stats, refuse_other_kinds, remove_other_seeds

PREDICTIONS = "predictions.parquet"
BROKEN = "broken.parquet"
OF_SPECIALISTS = ("clean", "missing", "noise", "burst", "missing_features")


def run(params: Params, out: Path, model: str | None = None) -> None:
    """Evaluate what params.yaml lists and is not evaluated under the same digests."""
    stats = read_stats(out)
    refuse_other_kinds(stats, params.evaluate.slices, "evaluate.slices")
    for name in [model] if model else list(params.seeds):
        _evaluate(params, stats, out, name)


def _evaluate(params: Params, stats: dict[str, Any], out: Path, name: str) -> None:
    from qamoe.degradation.views import View, references
    from qamoe.evaluation import signals, spectrum
    from qamoe.evaluation.spectrum import Cell
    from qamoe.features.store import Store
    from qamoe.records.tracking import record_evaluation
    from qamoe.training import checkpoint
    from qamoe.training.views import Views, open_views, restrict_threads

    folder = out / "evaluate" / name
    seeds = params.seeds[name]
    remove_other_seeds(folder, seeds)
    test = out / "preprocess" / "test.arrow"
    severities = _signal_severities(params)
    of_cells = [out / "preprocess" / "signals" / f"{cell}.arrow" for cell, _, _ in signals.cells(severities)]
    for path in of_cells:
        if not path.is_file():
            raise Refused(f"There is no {path}; run the stages extract and preprocess first.")
    waiting = []
    for seed in seeds:
        source = out / "train" / name / str(seed)
        trained = checkpoint.load(source, settings.device())
        digest = parameters.digest(
            checkpoint.digest(source),
            params.evaluate,
            [file_digest(path) for path in (test, *of_cells)],
            code_digest("qamoe.stages.evaluate"),
        )
        if _read_digest(folder / str(seed)) != digest:
            waiting.append((seed, trained, digest))
    entry.log.info(json.dumps({"stage": "evaluate", "model": name, "seeds": len(waiting)}))
    if not waiting:
        return
    store = Store(test)
    if not len(store):
        raise Refused("The test split is empty; there is nothing to evaluate on.")
    modalities = tuple(stats["modalities"])
    timed = [m for m in modalities if m in stats and stats[m].get("rate")]
    cells = spectrum.plan(params.evaluate.slices, params.evaluate, modalities, timed)
    of_signals = signals.plan(severities, params.evaluate.seed, modalities)
    encoder = checkpoint.shared_encoder([trained for _, trained, _ in waiting])

    def opened(path: Path, views: list[View]) -> Views:
        about = (modalities, references(stats), out / "evaluate" / "states", file_digest(path), settings.device())
        return open_views(Store(path), views, *about, encoder=encoder)

    def degraded(cell: Cell) -> Views:
        path = out / "preprocess" / "signals" / f"{cell.name}.arrow"
        return opened(path, list(cell.views)) if cell.severity else split

    split = opened(test, spectrum.views([*cells, *of_signals]))
    if name == "oracle":  # nobody can tell it the severity of a kind that it never saw
        cells, of_signals = [cell for cell in cells if cell.slice != "held_out"], []
    if specialist_cell(name):  # made for one cell: the others would cost time and say nothing
        cells, of_signals = [cell for cell in cells if cell.slice in OF_SPECIALISTS], []
    if encoder is not None:
        restrict_threads()  # the models are small: a second thread only waits
    places = [folder / str(seed) for seed, _, _ in waiting]
    with ExitStack() as files:
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            (place / "digest").unlink(missing_ok=True)
        sinks = [files.enter_context(spectrum.predictions_file(place / PREDICTIONS)) for place in places]
        models = [trained for _, trained, _ in waiting]
        alone = encoder is None or settings.device() != "cpu"  # then one model uses all cores, or the GPU
        at_once = 1 if alone else min(settings.workers(), len(models))
        for found in chain(
            spectrum.by_view(models, split, cells, settings.device(), at_once),
            signals.by_cell(models, degraded, of_signals, settings.device()),
        ):
            for append, rows in zip(sinks, found, strict=True):
                append(rows)
    for place, (_, trained, digest) in zip(places, waiting, strict=True):
        aggregate(trained, [*cells, *of_signals], place)
        _break(params, trained, split, cells, place)
        write_text(place / "digest", digest)
        record_evaluation(trained.folder, place, params.registry.name)


def _signal_severities(params: Params) -> dict[str, tuple[float, ...]]:
    """Severities by kind of the slice `signals`; none where it is not asked for."""
    asked = "signals" in params.evaluate.slices
    return params.extract.signals.severities if asked and params.extract.signals else {}


def aggregate(trained: Any, cells: list[Any], place: Path) -> None:
    """predictions.parquet -> cells.parquet, a slice at a time."""
    import pandas as pd

    from qamoe.evaluation import metrics, spectrum

    calibration, task = trained.config["calibration"], trained.config["task"]
    fitted = (calibration.get("sigmas", {}), calibration.get("temperature", 1.0))
    limits = (task.get("low", metrics.LIMITS[0]), task.get("high", metrics.LIMITS[1]))
    tables = []
    for name in dict.fromkeys(cell.slice for cell in cells):
        rows = pd.read_parquet(place / PREDICTIONS, filters=[("slice", "==", name)])
        tables.append(spectrum.aggregate(rows, [cell for cell in cells if cell.slice == name], *fitted, limits))
    with written_aside(place / "cells.parquet") as aside:
        pd.concat(tables, ignore_index=True).to_parquet(aside, index=False)


def _break(params: Params, trained: Any, split: Any, cells: list[Any], place: Path) -> None:
    """Slice mixed with permuted r -> broken.parquet, for a model that has r."""
    import pandas as pd

    from qamoe.evaluation import spectrum
    from qamoe.evaluation.broken import broken

    (place / BROKEN).unlink(missing_ok=True)
    mixed = [cell for cell in cells if cell.slice == "mixed"]
    permutations = params.evaluate.broken_permutations
    if not mixed or not permutations:
        return
    rows = pd.read_parquet(place / PREDICTIONS, filters=[("slice", "==", "mixed")])
    if rows[[f"r_{m}" for m in trained.config["modalities"]]].isna().all(axis=None):
        return
    seed = params.evaluate.seed
    with spectrum.predictions_file(place / BROKEN) as append:
        for made in broken(trained, split, mixed[0], rows, permutations, seed, settings.device()):
            append(made)


def _read_digest(folder: Path) -> str | None:
    try:
        return (folder / "digest").read_text()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    entry.main("evaluate", run, selects_model=True)
