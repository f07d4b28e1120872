"""Search over the training parameters of QA-MoE: artifacts/tune/best_params.yaml, an overlay on params.yaml, and plots.

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
from qamoe.errors import UserError
from qamoe.files import atomic_write, write_text
from qamoe.pipeline import runner
from qamoe.pipeline.shared import data_digest, read_stats
from qamoe.pipeline.train import initialise_worker, open_splits, refuse_kinds

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_MODEL = "qamoe"
_MAX_DEATHS = 10  # dead workers after which the search fails


def run(params: Params, out: Path) -> dict[str, Any]:
    """Search with one seed for the smallest mean error over the selection cells of the validation split.

    Returns the number of trials, the best error and its parameters.
    """
    from qamoe.models.factory import block_of
    from qamoe.tracking import search_runs
    from qamoe.tracking.runs import runs_end_with_their_processes
    from qamoe.training import search

    stats = read_stats(out)
    refuse_kinds(params, stats)
    open_splits(params, stats, out, _MODEL)  # encode the text once, before the workers map it
    folder = out / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    searched = (params.tune, params.train, params.models.encoders, block_of(params.models, _MODEL))
    name = parameters.digest(*searched, data_digest(out))[:16]
    study = _open_study(params, name, _url(folder))
    if settings.study_url() is None:
        search.retry_dead_trials(study)  # the stage runs alone on its folder, so no worker of an earlier run is alive
    try:
        with runs_end_with_their_processes():
            parent = search_runs.parent_run(params, name)
            _search(params, out, name, parent, study)
    finally:
        shutil.rmtree(folder / "trials", ignore_errors=True)
    best, value, trials = search.outcome(study)
    search_runs.finish(parent, trials, best, value)
    text = yaml.safe_dump(search.overlay(best), sort_keys=False)
    write_text(folder / "best_params.yaml", f"# validation error {value:.4f}, best of {len(trials)} trials\n{text}")
    shutil.rmtree(folder / "plots", ignore_errors=True)
    (folder / "plots").mkdir()
    for plot, svg in search.plots(study).items():
        with atomic_write(folder / "plots" / f"{plot}.svg") as temporary:
            temporary.write_bytes(svg)
    with atomic_write(folder / "trials.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["number", "state", "value", "lr", "weight_decay", "dropout"])
        writer.writeheader()
        writer.writerows(trials)
    if parent is not None:
        print(f"run: {parent}", flush=True)
    return {"trials": len(trials), "best": round(value, 4), **best}


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
    from qamoe.models.checkpoint_config import read_config
    from qamoe.tracking import search_runs
    from qamoe.training import search
    from qamoe.training.distributed import BatchShare
    from qamoe.training.trainer import Trainer, TrainingJob

    restrict_threads()
    stats = read_stats(out)
    splits_and_cells = open_splits(params, stats, out, _MODEL)
    device, share = settings.device(), BatchShare(parts=settings.batch_parts())

    def train_one(changed: Params, number: int, on_epoch: Callable[[dict[str, Any]], None]) -> float:
        folder = out / "tune" / "trials" / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        job = TrainingJob(_MODEL, changed.tune.seed, changed, stats, *splits_and_cells, {}, folder, device, share)
        with search_runs.trial_run(parent, changed, number) as record:

            def record_and_report(line: dict[str, Any]) -> None:
                record(line)
                on_epoch(line)

            Trainer(job, record_and_report).run()
        config = read_config(folder)
        assert config is not None
        return config["selection"]

    study = search.open_study(params, name, _url(out / "tune"))
    search.work(params, study, _worker_name(os.getpid()), train_one)
