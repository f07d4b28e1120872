"""Checkpoints -> the reliability spectrum on the test split: artifacts/evaluate/<model>/<seed>/.

The only stage that opens the test split. All seeds of a model see the same degraded clips. With `QAMOE_EXECUTOR=ray`
the cells are measured on a Ray cluster, in chunks, and written here in the same order.
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
from qamoe.config.model_names import specialist_cell
from qamoe.config.params import Params
from qamoe.config.task import is_classification, label_range
from qamoe.data.stats import Stats, timed
from qamoe.errors import UserError
from qamoe.files import atomic_write, file_digest, write_text
from qamoe.pipeline import runner
from qamoe.pipeline.shared import read_stats, refuse_other_kinds, remove_other_seeds
from qamoe.pipeline.source_dependencies import code_digest

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.dataset.degraded_split import DegradedSplit
    from qamoe.evaluation.protocol import Cell
    from qamoe.models.checkpoint import Trained

PREDICTIONS = "predictions.parquet"
PERMUTED_QUALITY = "broken.parquet"
OF_SPECIALISTS = ("clean", "missing", "noise", "burst", "missing_features")
_CHUNKS = 2  # of cells, a worker of Ray: cells beside each other share encodings
T = TypeVar("T")


def run(params: Params, out: Path, model: str | None = None) -> dict[str, Any]:
    """Evaluate the seeds that params.yaml lists, except those evaluated before under the same digests.

    Returns the seeds that were evaluated and those that were kept, as MODEL/SEED.
    """
    stats = read_stats(out)
    refuse_other_kinds(stats, params.evaluate.slices, "evaluate.slices")
    names = [model] if model else list(params.seeds)
    listed = [f"{name}/{seed}" for name in names for seed in params.seeds[name]]
    evaluated = [f"{name}/{seed}" for name in names for seed in _evaluate(params, stats, out, name)]
    return {"seeds": {"evaluated": evaluated, "kept": [seed for seed in listed if seed not in evaluated]}}


def _evaluate(params: Params, stats: Stats, out: Path, name: str) -> list[int]:
    """Evaluate a model and return the seeds that had to be."""
    from qamoe.evaluation import media_slice, protocol
    from qamoe.models import checkpoint
    from qamoe.tracking.runs import record_evaluation

    folder = out / "evaluate" / name
    seeds = params.seeds[name]
    remove_other_seeds(folder, seeds)
    of_cells = [_of_signals(out, cell) for cell, _, _ in media_slice.cells(_signal_severities(params))]
    for path in of_cells:
        if not path.is_file():
            raise UserError(f"There is no {path}; run the stages extract and preprocess first.")
    digests = {}
    for seed in seeds:
        source = out / "train" / name / str(seed)
        checkpoint.load(source)
        digest = parameters.digest(
            checkpoint.digest(source),
            params.evaluate,
            [file_digest(path) for path in (_test(out), *of_cells)],
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
        sinks = [files.enter_context(protocol.predictions_file(seed_folder / PREDICTIONS)) for seed_folder in folders]
        for frames in _measured(grid):
            for append, rows in zip(sinks, frames, strict=True):
                append(rows)
    for _ in _spread(_finish, grid, range(len(folders))):
        pass
    for seed_folder, trained, digest in zip(folders, grid.models, digests.values(), strict=True):
        write_text(seed_folder / "digest", digest)
        record_evaluation(trained.folder, seed_folder, params.registry.name)
    return list(digests)


@dataclass(frozen=True)
class _Grid:
    """The checkpoints of a model, the cells that they are measured on, and the split under all views of these.

    `arguments` are what it was made of: what goes to another machine, which makes it there anew from the same files.
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
    test = _test(out)
    if not len(Store(test)):
        raise UserError("The test split is empty; there is nothing to evaluate on.")
    modalities = tuple(stats["modalities"])
    cells = protocol.plan(params.evaluate.slices, params.evaluate, modalities, timed(stats, modalities))
    of_signals = media_slice.plan(_signal_severities(params), params.evaluate.seed, modalities)
    encoder = checkpoint.shared_encoder(models)

    def opened(path: Path, views: list[View]) -> DegradedSplit:
        about = (
            modalities,
            references_from_stats(stats),
            out / "states" / "evaluate",
            file_digest(path),
            settings.device(),
        )
        return open_views(Store(path), views, *about, encoder=encoder)

    def degraded(cell: Cell) -> DegradedSplit:
        return opened(_of_signals(out, cell.name), list(cell.views)) if cell.severity else split

    split = opened(test, protocol.views([*cells, *of_signals]))
    if name == "oracle":  # nobody can tell it the severity of a kind that it never saw
        cells, of_signals = [cell for cell in cells if cell.slice != "held_out"], []
    if specialist_cell(name):  # made for one cell: the others would cost time and say nothing
        cells, of_signals = [cell for cell in cells if cell.slice in OF_SPECIALISTS], []
    if encoder is not None:
        restrict_threads()  # the models are small: a second thread only waits
    alone = encoder is None or settings.device() != "cpu"  # then one model uses all cores, or the GPU
    at_once = 1 if alone else min(settings.workers(), len(models))
    return _Grid((params, stats, out, name, seeds), models, [*cells, *of_signals], split, degraded, at_once)


def _measured(grid: _Grid) -> Iterator[list["pd.DataFrame"]]:
    """The rows of every checkpoint, a frame each, cell by cell and view by view."""
    if settings.executor() == "processes":
        yield from _rows(grid, range(len(grid.cells)))
        return
    count = min(len(grid.cells), _CHUNKS * settings.workers())
    starts = [len(grid.cells) * number // count for number in range(count + 1)]
    chunks = [range(start, stop) for start, stop in pairwise(starts)]
    for frames in _spread(_rows_at_once, grid, chunks):
        yield from frames


def _rows(grid: _Grid, numbers: range) -> Iterator[list["pd.DataFrame"]]:
    """Those of some of the cells."""
    from qamoe.evaluation import media_slice, protocol

    cells = grid.cells[numbers.start : numbers.stop]
    of_signals = [cell for cell in cells if cell.slice == media_slice.SLICE]
    drawn = [cell for cell in cells if cell.slice != media_slice.SLICE]
    yield from protocol.by_view(grid.models, grid.split, drawn, settings.device(), grid.at_once)
    yield from media_slice.by_cell(grid.models, grid.degraded, of_signals, settings.device())


def _rows_at_once(grid: _Grid, numbers: range) -> list[list["pd.DataFrame"]]:
    return list(_rows(grid, numbers))


def _finish(grid: _Grid, number: int) -> None:
    """The files of a checkpoint that are made of its predictions."""
    params, _, out, name, seeds = grid.arguments
    folder, trained = out / "evaluate" / name / str(seeds[number]), grid.models[number]
    aggregate(trained, grid.cells, folder)
    _break(params, trained, grid.split, grid.cells, folder)


def _spread(work: Callable[[_Grid, Any], T], grid: _Grid, tasks: Iterable[Any]) -> Iterator[T]:
    """What `work(grid, task)` returns, task by task: here, or on Ray with one worker for each task at work."""
    if settings.executor() == "processes":
        yield from (work(grid, task) for task in tasks)
        return
    everything = ((work, grid.arguments, task) for task in tasks)
    yield from ray_worker_pool.map_in_order(_elsewhere, everything, settings.workers())


def _elsewhere(work: Callable[[_Grid, Any], T], arguments: tuple[Any, ...], task: Any) -> T:
    """Runs in a worker of Ray, on the files that the stage has made."""
    return work(_grid(*arguments), task)


def _test(out: Path) -> Path:
    return out / "preprocess" / "test.arrow"


def _of_signals(out: Path, cell: str) -> Path:
    return out / "preprocess" / "signals" / f"{cell}.arrow"


def _signal_severities(params: Params) -> dict[str, tuple[float, ...]]:
    """Severities by kind of the slice `signals`; none where it is not asked for."""
    signals = params.extract.signals
    return signals.severities if signals and "signals" in params.evaluate.slices else {}


def aggregate(trained: Any, cells: list[Any], folder: Path) -> None:
    """predictions.parquet -> cells.parquet, a slice at a time."""
    import pandas as pd

    from qamoe.evaluation import metrics, protocol

    calibration, task = trained.config["calibration"], trained.config["task"]
    fitted = (calibration.get("sigmas", {}), calibration.get("temperature", 1.0))
    limits = metrics.LIMITS if is_classification(task) else label_range(task["low"], task["high"])
    tables = []
    for name in dict.fromkeys(cell.slice for cell in cells):
        rows = pd.read_parquet(folder / PREDICTIONS, filters=[("slice", "==", name)])
        tables.append(protocol.aggregate(rows, [cell for cell in cells if cell.slice == name], *fitted, limits))
    with atomic_write(folder / "cells.parquet") as aside:
        pd.concat(tables, ignore_index=True).to_parquet(aside, index=False)


def _break(params: Params, trained: Any, split: Any, cells: list[Any], folder: Path) -> None:
    """Slice mixed with permuted r -> broken.parquet, for a model that has r."""
    import pandas as pd

    from qamoe.evaluation import protocol
    from qamoe.evaluation.quality_permutation import permuted_quality

    (folder / PERMUTED_QUALITY).unlink(missing_ok=True)
    mixed = [cell for cell in cells if cell.slice == "mixed"]
    permutations = params.evaluate.quality_permutations
    if not mixed or not permutations:
        return
    rows = pd.read_parquet(folder / PREDICTIONS, filters=[("slice", "==", "mixed")])
    if rows[[f"r_{m}" for m in trained.config["modalities"]]].isna().all(axis=None):
        return
    seed = params.evaluate.seed
    with protocol.predictions_file(folder / PERMUTED_QUALITY) as append:
        for permuted in permuted_quality(trained, split, mixed[0], rows, permutations, seed, settings.device()):
            append(permuted)


def _read_digest(folder: Path) -> str | None:
    try:
        return (folder / "digest").read_text()
    except FileNotFoundError:
        return None
