"""Search over the training parameters of QA-MoE: artifacts/tune/best_params.yaml, an overlay on params.yaml, and plots.

A leaf of the pipeline: nothing depends on it; a person takes its result over as a change of params.yaml.
`QAMOE_WORKERS` trials run side by side (on a GPU one, where it is not set). With `QAMOE_STUDY_URL`, the same command
on other machines, on the same data and parameters, works on the same study.
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
from qamoe.pipeline.train import open_splits, refuse_kinds, worker_started

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_MODEL = "qamoe"
_MOST_DEATHS = 10  # of workers, before the search as a whole gives up


def run(params: Params, out: Path) -> dict[str, Any]:
    """Search with one seed for the smallest mean error over the selection cells of the validation split.

    Returns the number of trials, the best error and its parameters.
    """
    from qamoe.models.factory import block_of
    from qamoe.tracking import search_runs
    from qamoe.training import search

    stats = read_stats(out)
    refuse_kinds(params, stats)
    open_splits(params, stats, out, _MODEL)  # made once, before the workers map it
    folder = out / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    changing = (params.tune, params.train, params.models.encoders, block_of(params.models, _MODEL))
    name = parameters.digest(*changing, data_digest(out))[:16]
    study = _opened(params, name, _url(folder))
    if settings.study_url() is None:
        search.retry_dead_trials(study)  # this stage runs alone on its folder, so nobody else's can live
    parent = search_runs.parent_run(params, name)
    try:
        _search(params, out, name, parent, study)
    finally:
        shutil.rmtree(folder / "trials", ignore_errors=True)
    best, value, trials = search.outcome(study)
    search_runs.finish(parent, trials, best, value)
    text = yaml.safe_dump(search.overlay(best), sort_keys=False)
    write_text(folder / "best_params.yaml", f"# validation error {value:.4f}, best of {len(trials)} trials\n{text}")
    shutil.rmtree(folder / "plots", ignore_errors=True)
    (folder / "plots").mkdir()
    for plot, drawn in search.plots(study).items():
        with atomic_write(folder / "plots" / f"{plot}.svg") as aside:
            aside.write_bytes(drawn)
    with atomic_write(folder / "trials.csv") as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["number", "state", "value", "lr", "weight_decay", "dropout"])
        writer.writeheader()
        writer.writerows(trials)
    if parent is not None:
        print(f"run: {parent}", flush=True)
    return {"trials": len(trials), "best": round(value, 4), **best}


def _opened(params: Params, name: str, url: str) -> Any:
    """The study. Raises UserError where its database cannot be used, whatever the matter is: no server, no driver."""
    from qamoe.tracking.mlflow_store import masked, reason
    from qamoe.training import search

    try:
        return search.open_study(params, name, url)
    except Exception as error:
        raise UserError(f"The study at {masked(url)} (QAMOE_STUDY_URL) cannot be used: {reason(error)}.") from None


def _url(folder: Path) -> str:
    return settings.study_url() or f"sqlite:///{(folder / 'study.db').resolve()}"


def _search(params: Params, out: Path, name: str, parent: str | None, study: Any) -> None:
    """Have the workers work; one that dies costs its trial's time, and another takes its place."""
    from qamoe.training import search

    side_by_side = settings.side_by_side(params.tune.trials)
    if side_by_side == 1:
        _work(params, out, name, parent)
        return
    at_work = [_start_worker(params, out, name, parent) for _ in range(side_by_side)]
    deaths = 0
    try:
        while at_work:
            wait([process.sentinel for process in at_work])
            ended = [process for process in at_work if not process.is_alive()]
            at_work = [process for process in at_work if process.is_alive()]
            for process in ended:
                process.join()
                if process.exitcode == 0:
                    continue
                deaths += 1
                if (process.exitcode or 0) > 0 or deaths > _MOST_DEATHS:
                    raise UserError(f"A worker of the search ended with exit code {process.exitcode}; see above.")
                runner.log.warning("worker %s died (%s); its trial is tried again", process.pid, process.exitcode)
                search.retry_dead_trials(study, _name(process.pid or 0))
                at_work.append(_start_worker(params, out, name, parent))
    finally:
        for process in at_work:
            process.kill()
            process.join()


def _name(pid: int) -> str:
    return f"{platform.node()}:{pid}"


def _start_worker(params: Params, out: Path, name: str, parent: str | None) -> "SpawnProcess":
    arguments = (runner.log.level, params, out, name, parent)
    process = get_context("spawn").Process(target=_as_worker, args=arguments, daemon=True)
    process.start()
    return process


def _as_worker(level: int, params: Params, out: Path, name: str, parent: str | None) -> None:
    worker_started(level)
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

            def both(line: dict[str, Any]) -> None:
                record(line)
                on_epoch(line)

            Trainer(job, both).run()
        config = read_config(folder)
        assert config is not None
        return config["selection"]

    study = search.open_study(params, name, _url(out / "tune"))
    search.work(params, study, _name(os.getpid()), train_one)
