"""Measure the reliability spectrum of the checkpoints on the test split: artifacts/evaluate/<model>/<seed>/.

No other stage opens the test split. All seeds of a model see the same degraded clips. With `QAMOE_EXECUTOR=ray` a Ray
cluster measures the cells in chunks; this process writes them in the same order.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qamoe import ray_worker_pool
from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.model_names import family, specialist_cell
from qamoe.config.params import Params
from qamoe.config.task import has_classes, label_range
from qamoe.data.stats import Stats, timed
from qamoe.errors import UserError
from qamoe.files import atomic_write, file_digest, write_text
from qamoe.pipeline import runner
from qamoe.pipeline.shared import read_stats, refuse_unsuitable_kinds, remove_other_seeds
from qamoe.pipeline.source_dependencies import code_digest

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.dataset.degraded_split import DegradedSplit
    from qamoe.evaluation.protocol import Cell
    from qamoe.models.checkpoint import Trained

PREDICTIONS = "predictions.parquet"
PERMUTED_QUALITY = "broken.parquet"
DIAGNOSTIC = "diagnostic.parquet"
SPECIALIST_SLICES = ("clean", "missing", "noise", "burst", "missing_features")
_CHUNKS_PER_WORKER = 2  # on Ray; adjacent cells share encodings, so a chunk holds adjacent cells
T = TypeVar("T")


def run(params: Params, out: Path, model: str | None = None) -> dict[str, Any]:
    """Evaluate the seeds that params.yaml lists, except those already evaluated with the same digests.

    Returns the evaluated and the kept seeds, as MODEL/SEED.
    """
    stats = read_stats(out)
    refuse_unsuitable_kinds(stats, params.evaluate.slices, "evaluate.slices")
    names = [model] if model else list(params.seeds)
    listed = [f"{name}/{seed}" for name in names for seed in params.seeds[name]]
    evaluated = [f"{name}/{seed}" for name in names for seed in _evaluate(params, stats, out, name)]
    return {"seeds": {"evaluated": evaluated, "kept": [seed for seed in listed if seed not in evaluated]}}


def _evaluate(params: Params, stats: Stats, out: Path, name: str) -> list[int]:
    """Evaluate the seeds of a model whose digests have changed, and return them."""
    from qamoe.evaluation import media_slice, protocol
    from qamoe.models import checkpoint
    from qamoe.tracking.runs import record_evaluation

    folder = out / "evaluate" / name
    seeds = params.seeds[name]
    remove_other_seeds(folder, seeds)
    signal_files = [_signal_file(out, cell) for cell, _, _ in media_slice.cells(_signal_severities(params))]
    for path in signal_files:
        if not path.is_file():
            raise UserError(f"{path} does not exist; run the stages extract and preprocess first.")
    digests = {}
    for seed in seeds:
        source = out / "train" / name / str(seed)
        checkpoint.load(source)
        digest = parameters.digest(
            checkpoint.digest(source),
            params.evaluate,
            [file_digest(path) for path in (_test_file(out), *signal_files)],
            code_digest("qamoe.pipeline.evaluate"),
        )
        if _read_digest(folder / str(seed)) != digest:
            digests[seed] = digest
    if not digests:
        return []
    runner.log.info("evaluate %s: seeds %s", name, ", ".join(map(str, digests)))
    grid = _grid(params, stats, out, name, tuple(digests))
    folders = [folder / str(seed) for seed in digests]
    with ExitStack() as files:
        for seed_folder in folders:
            seed_folder.mkdir(parents=True, exist_ok=True)
            (seed_folder / "digest").unlink(missing_ok=True)
        writers = [files.enter_context(protocol.predictions_file(seed_folder / PREDICTIONS)) for seed_folder in folders]
        for tables in _measure(grid):
            for append, rows in zip(writers, tables, strict=True):
                append(rows)
    for _ in _map_tasks(_write_summaries, grid, range(len(folders))):
        pass
    for seed_folder, trained, digest in zip(folders, grid.models, digests.values(), strict=True):
        write_text(seed_folder / "digest", digest)
        record_evaluation(trained.folder, seed_folder, params.registry.name)
    return list(digests)


@dataclass(frozen=True)
class _Grid:
    """The checkpoints of a model, the cells to measure them on, and the test split under all views of these cells.

    `arguments` are the arguments of `_grid`. A Ray worker receives only these and builds the grid from the same files.
    """

    arguments: tuple[Params, Stats, Path, str, tuple[int, ...]]
    models: list["Trained"]
    cells: list["Cell"]
    split: "DegradedSplit"
    degraded: Callable[["Cell"], "DegradedSplit"]
    at_once: int


def _grid(params: Params, stats: Stats, out: Path, name: str, seeds: tuple[int, ...]) -> _Grid:
    from qamoe.data.arrow_store import Store
    from qamoe.dataset.degraded_split import DegradedSplit, open_views, restrict_threads
    from qamoe.degradation.views import View, references_from_stats
    from qamoe.evaluation import media_slice, protocol
    from qamoe.evaluation.protocol import Cell
    from qamoe.models import checkpoint

    models = [checkpoint.load(out / "train" / name / str(seed), settings.device()) for seed in seeds]
    test = _test_file(out)
    if not len(Store(test)):
        raise UserError(f"The test split is empty ({test}); evaluation needs at least one clip in split test.")
    modalities = tuple(stats["modalities"])
    cells = protocol.plan(params.evaluate.slices, params.evaluate, modalities, timed(stats, modalities))
    signal_cells = media_slice.plan(_signal_severities(params), params.evaluate.seed, modalities)
    encoder = checkpoint.shared_encoder(models)

    def open_file(path: Path, views: list[View]) -> DegradedSplit:
        inputs = (
            modalities,
            references_from_stats(stats),
            out / "states" / "evaluate",
            file_digest(path),
            settings.device(),
        )
        return open_views(Store(path), views, *inputs, encoder=encoder)

    def degraded(cell: Cell) -> DegradedSplit:
        return open_file(_signal_file(out, cell.name), list(cell.views)) if cell.severity else split

    split = open_file(test, protocol.views([*cells, *signal_cells]))
    if family(name) == "oracle":  # its true quality is defined only for the kinds of training
        cells, signal_cells = [cell for cell in cells if cell.slice != "held_out"], []
    if specialist_cell(name):  # trained for one cell; the other slices cost time and say nothing
        cells, signal_cells = [cell for cell in cells if cell.slice in SPECIALIST_SLICES], []
    if encoder is not None:
        restrict_threads()  # the models are too small to profit from a second thread
    alone = encoder is None or settings.device() != "cpu"  # then one model uses all cores, or the GPU
    at_once = 1 if alone else min(settings.workers(), len(models))
    return _Grid((params, stats, out, name, seeds), models, [*cells, *signal_cells], split, degraded, at_once)


def _measure(grid: _Grid) -> Iterator[list["pd.DataFrame"]]:
    """Yield the predictions, cell by cell and view by view, as one table per checkpoint."""
    if settings.executor() == "processes":
        yield from _rows(grid, range(len(grid.cells)))
        return
    count = min(len(grid.cells), _CHUNKS_PER_WORKER * settings.workers())
    starts = [len(grid.cells) * number // count for number in range(count + 1)]
    chunks = [range(start, stop) for start, stop in pairwise(starts)]
    for tables in _map_tasks(_list_rows, grid, chunks):
        yield from tables


def _rows(grid: _Grid, numbers: range) -> Iterator[list["pd.DataFrame"]]:
    """Yield the predictions on the cells of these numbers."""
    from qamoe.evaluation import media_slice, protocol

    cells = grid.cells[numbers.start : numbers.stop]
    signal_cells = [cell for cell in cells if cell.slice in media_slice.SLICES]
    feature_cells = [cell for cell in cells if cell.slice not in media_slice.SLICES]
    yield from protocol.by_view(grid.models, grid.split, feature_cells, settings.device(), grid.at_once)
    yield from media_slice.by_cell(grid.models, grid.degraded, signal_cells, settings.device())


def _list_rows(grid: _Grid, numbers: range) -> list[list["pd.DataFrame"]]:
    return list(_rows(grid, numbers))


def _write_summaries(grid: _Grid, number: int) -> None:
    """Write the files of a checkpoint that are computed from its predictions."""
    params, _, out, name, seeds = grid.arguments
    folder, trained = out / "evaluate" / name / str(seeds[number]), grid.models[number]
    aggregate(trained, grid.cells, folder)
    _permute_quality(params, trained, grid.split, grid.cells, folder)


def _map_tasks(work: Callable[[_Grid, Any], T], grid: _Grid, tasks: Iterable[Any]) -> Iterator[T]:
    """Yield `work(grid, task)` for each task, in order; run in this process or on Ray, one task per worker."""
    if settings.executor() == "processes":
        yield from (work(grid, task) for task in tasks)
        return
    calls = ((work, grid.arguments, task) for task in tasks)
    yield from ray_worker_pool.map_in_order(_call_on_ray, calls, settings.workers())


def _call_on_ray(work: Callable[[_Grid, Any], T], arguments: tuple[Any, ...], task: Any) -> T:
    """Build the grid in a Ray worker and run the task there."""
    return work(_grid(*arguments), task)


def _test_file(out: Path) -> Path:
    return out / "preprocess" / "test.arrow"


def _signal_file(out: Path, cell: str) -> Path:
    return out / "preprocess" / "signals" / f"{cell}.arrow"


def _signal_severities(params: Params) -> dict[str, tuple[float, ...]]:
    """Return the severities of slices `signals` and `harmless` by kind, empty if evaluate.slices lists neither."""
    from qamoe.media.degradations import slice_of

    severities = params.extract.signals.severities if params.extract.signals else {}
    return {kind: levels for kind, levels in severities.items() if slice_of(kind) in params.evaluate.slices}


def aggregate(trained: Any, cells: list[Any], folder: Path) -> None:
    """Aggregate predictions.parquet into cells.parquet, reading one slice at a time to save memory."""
    import pandas as pd

    from qamoe.evaluation import metrics, protocol

    calibration, task = trained.config["calibration"], trained.config["task"]
    fitted = (calibration.get("sigmas", {}), calibration.get("temperature", 1.0))
    limits = metrics.LIMITS if has_classes(task) else label_range(task["low"], task["high"])
    tables = []
    for name in dict.fromkeys(cell.slice for cell in cells):
        rows = pd.read_parquet(folder / PREDICTIONS, filters=[("slice", "==", name)])
        tables.append(protocol.aggregate(rows, [cell for cell in cells if cell.slice == name], *fitted, limits))
    with atomic_write(folder / "cells.parquet") as temporary:
        pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)


def _permute_quality(params: Params, trained: Any, split: Any, cells: list[Any], folder: Path) -> None:
    """Measure slice mixed with permuted reliability r and with interventions on r, for a model that estimates r.

    Writes broken.parquet and diagnostic.parquet, from one pass over the draws of mixed.
    """
    import numpy as np
    import pandas as pd

    from qamoe.evaluation import protocol
    from qamoe.evaluation.quality_diagnostic import diagnose
    from qamoe.evaluation.quality_permutation import all_donors, mixed_draws, permuted_quality

    for name in (PERMUTED_QUALITY, DIAGNOSTIC):
        (folder / name).unlink(missing_ok=True)
    mixed = [cell for cell in cells if cell.slice == "mixed"]
    permutations, seed = params.evaluate.quality_permutations, params.evaluate.seed
    if not mixed or not permutations:
        return
    rows = pd.read_parquet(folder / PREDICTIONS, filters=[("slice", "==", "mixed")])
    r = rows[[f"r_{m}" for m in trained.config["modalities"]]].to_numpy(np.float32)
    if np.isnan(r).all():
        return
    donors_of = all_donors(len(mixed[0].views), len(split.store), permutations, seed)
    diagnosed = []
    with protocol.predictions_file(folder / PERMUTED_QUALITY) as append:
        for draw in mixed_draws(trained, split, mixed[0], rows, settings.device()):
            for permuted in permuted_quality(trained, draw, r, donors_of):
                append(permuted)
            diagnosed.append(diagnose(trained, draw, permutations, seed))
    with atomic_write(folder / DIAGNOSTIC) as temporary:
        pd.concat(diagnosed, ignore_index=True).to_parquet(temporary, index=False)


def _read_digest(folder: Path) -> str | None:
    try:
        return (folder / "digest").read_text()
    except FileNotFoundError:
        return None
