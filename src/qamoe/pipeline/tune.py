"""Search over parameters of one model: artifacts/tune/best_params.yaml, an overlay on params.yaml, and plots.

No other stage depends on this one; you copy its result into params.yaml. `QAMOE_WORKERS` trials run in parallel (by
default one on a GPU). With `QAMOE_STUDY_URL`, the same command on other machines, with the same data and parameters,
works on the same study.
"""

import csv
import os
import platform
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.params import Params
from qamoe.config.search_space import nested
from qamoe.data.stats import Stats
from qamoe.errors import UserError
from qamoe.files import atomic_write, write_text
from qamoe.pipeline import runner
from qamoe.pipeline.shared import data_digest, read_stats
from qamoe.pipeline.source_dependencies import code_digest
from qamoe.pipeline.train import initialise_worker, open_splits, refuse_kinds
from qamoe.pipeline.tune_parameters import fixed

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_MAX_DEATHS = 10  # dead workers after which the search fails


def run(params: Params, out: Path) -> dict[str, Any]:
    """Search with one seed for the smallest mean error over the selection cells of the validation split.

    Returns the study's name, the number of trials, the best error and its parameters.
    """
    from qamoe.models import text_encoder_frozen
    from qamoe.tracking import search_runs
    from qamoe.tracking.runs import runs_end_with_their_processes
    from qamoe.training import search

    encoders = params.tune.space.get(text_encoder_frozen.KEY)
    for encoder in encoders.extremes if encoders else ():
        text_encoder_frozen.folder_of(str(encoder))  # or else the first trial that draws it would fail
    stats = read_stats(out)
    base = search.trial_params(params)
    refuse_kinds(base, stats, params.tune.model)
    open_splits(base, stats, out, params.tune.model)  # encode the text once, before the workers map it
    folder = out / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    name = study_name(params, data_digest(out))
    study = _open_study(params, name, _url(folder))
    search.describe(study, _attributes(params, out))
    if settings.study_url() is None:
        search.retry_dead_trials(study)  # the stage runs alone on its folder, so no worker of an earlier run is alive
    try:
        with runs_end_with_their_processes():
            parent = search_runs.parent_run(params, name, stats)
            _search(params, out, name, parent, study)
    finally:
        shutil.rmtree(folder / "trials", ignore_errors=True)
    best, value, trials = search.outcome(study, params.tune.objectives)
    places = {number: place for place, number in search.last_attempts(study).items()}
    search_runs.finish(parent, trials, places, best, value)
    _write(params, folder, study)
    if parent is not None:
        print(f"run: {parent}", flush=True)
    return {"study": name, "trials": len(trials), "best": round(value, 4), **best}


def study_name(params: Params, data: str) -> str:
    """Return model, searched parameters and a digest of all that the trials depend on, as qamoe-lr-dropout-1a2b3c4d.

    The searched values are not in the digest: accepting the result of a study does not start another one.
    """
    digest = parameters.digest(params.tune, fixed(params), data, code_digest("qamoe.pipeline.tune"))
    names = [name.rpartition(".")[2] for name in params.tune.space]
    return "-".join([params.tune.model, *names, digest[:8]])


def _attributes(params: Params, out: Path) -> dict[str, Any]:
    """Return what a person wants to know of a study."""
    from qamoe.tracking.provenance import provenance

    corpus = {"kind": params.extract.corpus.kind, "path": params.extract.corpus.path, "data_digest": data_digest(out)}
    return {
        "corpus": corpus,
        "commit": provenance().get("mlflow.source.git.commit", ""),
        "model": params.tune.model,
        "objectives": list(params.tune.objectives),
        "parameters": fixed(params),
    }


def _write(params: Params, folder: Path, study: Any) -> None:
    """Write best_params.yaml, trials.csv and plots/."""
    from qamoe.training import search

    objectives = params.tune.objectives
    best, value, trials = search.outcome(study, objectives)
    shown = [{**trials[number], "number": place} for place, number in search.last_attempts(study).items()]
    text = yaml.safe_dump(nested(best), sort_keys=False)
    write_text(folder / "best_params.yaml", f"# validation error {value:.4f}, best of {len(shown)} trials\n{text}")
    shutil.rmtree(folder / "plots", ignore_errors=True)
    (folder / "plots").mkdir()
    for plot, svg in search.plots(study, objectives).items():
        with atomic_write(folder / "plots" / f"{plot}.svg") as temporary:
            temporary.write_bytes(svg)
    further = [name for name in objectives if name != "error"]
    columns = ["number", "state", "value", *further, *(["front"] if len(objectives) > 1 else []), *params.tune.space]
    with atomic_write(folder / "trials.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(shown)


def _open_study(params: Params, name: str, url: str) -> Any:
    """Open the study. Raises UserError if its database cannot be used, for any reason (no server, no driver, ...)."""
    from qamoe.tracking.mlflow_store import masked, reason
    from qamoe.training import search

    try:
        return search.open_study(params, name, url)
    except ModuleNotFoundError:  # Optuna itself; a driver that is missing is an ImportError
        raise
    except Exception as error:
        raise UserError(f"Cannot open the study at {masked(url)} (QAMOE_STUDY_URL): {reason(error)}.") from None


def _url(folder: Path) -> str:
    return settings.study_url() or f"sqlite:///{(folder / 'study.db').resolve()}"


def _search(params: Params, out: Path, name: str, parent: str | None, study: Any) -> None:
    """Run the workers; start a new one if one dies, and run its trial again."""
    from qamoe.training import search

    side_by_side = settings.side_by_side(params.tune.trials)
    if side_by_side == 1:
        _work(params, out, name, parent)
        return
    workers = [_start_worker(params, out, name, parent) for _ in range(side_by_side)]
    deaths = 0
    try:
        while workers:
            wait([process.sentinel for process in workers])
            ended = [process for process in workers if not process.is_alive()]
            workers = [process for process in workers if process.is_alive()]
            for process in ended:
                process.join()
                if process.exitcode == 0:
                    continue
                deaths += 1
                if (process.exitcode or 0) > 0 or deaths > _MAX_DEATHS:
                    raise UserError(
                        f"A worker of the search failed with exit code {process.exitcode}; see its message above."
                    )
                runner.log.warning("worker %s died (%s); its trial runs again", process.pid, process.exitcode)
                search.retry_dead_trials(study, _worker_name(process.pid or 0))
                workers.append(_start_worker(params, out, name, parent))
    finally:
        for process in workers:
            process.kill()
            process.join()


def _worker_name(pid: int) -> str:
    return f"{platform.node()}:{pid}"


def _start_worker(params: Params, out: Path, name: str, parent: str | None) -> "SpawnProcess":
    arguments = (runner.log.level, params, out, name, parent)
    process = get_context("spawn").Process(target=_run_worker, args=arguments, daemon=True)
    process.start()
    return process


def _run_worker(level: int, params: Params, out: Path, name: str, parent: str | None) -> None:
    initialise_worker(level)
    _work(params, out, name, parent)


def _work(params: Params, out: Path, name: str, parent: str | None) -> None:
    from qamoe.dataset.degraded_split import restrict_threads
    from qamoe.training import search

    restrict_threads()
    stats, base = read_stats(out), search.trial_params(params)
    opened = open_splits(base, stats, out, params.tune.model)

    def train_one(changed: Params, number: int, on_epoch: Callable[[dict[str, Any]], None]) -> dict[str, float]:
        folder = out / "tune" / "trials" / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        splits = opened
        if _views(changed) != _views(base):  # the search varies what the clips or their text look like
            splits = open_splits(changed, stats, out, params.tune.model, folder / "states")
        try:
            return _train(changed, stats, splits, folder, number, parent, on_epoch)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    study = search.open_study(params, name, _url(out / "tune"))
    search.work(params, study, _worker_name(os.getpid()), train_one)


def _views(params: Params) -> tuple[Any, ...]:
    return params.train.common.degrade, params.train.common.clips, params.models.encoders.text


def _train(
    changed: Params,
    stats: Stats,
    splits: tuple[Any, Any, Any],
    folder: Path,
    number: int,
    parent: str | None,
    on_epoch: Callable[[dict[str, Any]], None],
) -> dict[str, float]:
    """Train and record one trial, and return its measures."""
    import numpy as np

    from qamoe.dataset.degraded_split import feature_sizes
    from qamoe.evaluation.search_objectives import measures
    from qamoe.tracking import search_runs
    from qamoe.training.distributed import BatchShare
    from qamoe.training.trainer import Trainer, TrainingJob

    device, share, tune = settings.device(), BatchShare(parts=settings.batch_parts()), changed.tune
    job = TrainingJob(tune.model, tune.seed, changed, stats, *splits, {}, folder, device, share, number)
    with search_runs.trial_run(parent, changed, number, folder) as record:

        def record_and_report(line: dict[str, Any]) -> None:
            record(line)
            on_epoch(line)

        predicted = Trainer(job, record_and_report).run()
    _, valid, cells = splits
    present = np.stack([valid.store.lengths(modality) > 0 for modality in feature_sizes(stats)], 1)
    return measures(predicted, cells, present)
