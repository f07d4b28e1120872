"""Record a search in MLflow: one parent run per study and one child run per trial, which a restarted search reuses."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qamoe.config import settings
from qamoe.config.params import Params
from qamoe.config.search_space import OBJECTIVES, Value
from qamoe.data.stats import Stats
from qamoe.process_lifetime import this_process
from qamoe.tracking import mlflow_store
from qamoe.tracking.mlflow_store import PARENT, connect, experiment_id, reason, store_errors_as_user_errors
from qamoe.tracking.provenance import provenance, user
from qamoe.tracking.runs import (
    CHECKPOINT,
    CHECKPOINTS,
    PROCESS,
    SELECTION,
    Record,
    corpus_name,
    log,
    milliseconds,
)
from qamoe.tracking.titles import flat
from qamoe.training.search import searched_values

_STUDY, _TRIAL, _STATE = "qamoe.study", "qamoe.trial", "qamoe.state"
_OF_STUDY = (_STUDY, "model", "corpus", "commit", "mlflow.user")  # tags that a trial takes from its study
_SOURCE = {"mlflow.source.name": "qamoe.pipeline.tune", "mlflow.source.type": "LOCAL"}
_WITHOUT = "; QAMOE_TRACKING=off searches without records"
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "KILLED"}  # Optuna's state -> MLflow's status


def parent_run(params: Params, study: str, stats: Stats) -> str | None:
    """Return the run of a study, created if it does not exist; None with QAMOE_TRACKING=off.

    Raises UserError before any trial if the store does not answer.
    """
    if settings.untracked():
        return None
    client = connect(_WITHOUT)
    with store_errors_as_user_errors(_WITHOUT):
        experiment = experiment_id(client, params.registry.name)
        tags = {_STUDY: study, "qamoe.role": "study"}
        about = {"model": params.tune.model, "corpus": corpus_name(stats)}
        run, created = mlflow_store.one_run(client, experiment, study, tags, _SOURCE | user() | about | provenance())
        if created:
            _log_params(client, run, {"tune": params.tune.model_dump(mode="json", exclude_none=True)})
        client.set_tag(run, PROCESS, this_process())
        client.update_run(run, status="RUNNING")  # the search of an earlier process goes on
        return run


def _log_params(client: Any, run: str, values: dict[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run, params=[Param(key, value) for key, value in flat(values).items()])


@contextmanager
def trial_run(
    parent: str | None, params: Params, number: int, folder: Path
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Record one trial while it runs; yield a function that takes the line of each epoch.

    If the store fails, the trial continues without a record. `finish` sets the status of the run, also after a pruned
    trial or a failure. With tracking.keep_trials, a complete trial leaves its checkpoint, which is in `folder`.
    """
    if parent is None:
        yield lambda line: None
        return
    lines: list[tuple[dict[str, Any], int]] = []
    client, run = connect(), None
    try:
        study = client.get_run(parent)
        tags = {name: value for name, value in study.data.tags.items() if name in _OF_STUDY}
        tags |= _SOURCE | {PARENT: parent, _TRIAL: str(number), PROCESS: this_process()}
        run = client.create_run(study.info.experiment_id, tags=tags, run_name=f"trial-{number}").info.run_id
        _log_params(client, run, searched_values(params))
    except Exception as error:
        log.warning("trial %d was not recorded: %s", number, reason(error))
    try:
        yield lambda line: lines.append((line, milliseconds()))
        if run is not None and params.tracking.keep_trials:
            _keep_checkpoint(client, run, folder, number)
    finally:
        if run is not None:
            try:
                Record(client, run).lines([line for line, _ in lines], [at for _, at in lines])
            except Exception as error:
                log.warning("trial %d was recorded only in part: %s", number, reason(error))


def _keep_checkpoint(client: Any, run: str, folder: Path, number: int) -> None:
    place = f"{CHECKPOINTS}/best"
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file():  # its texts may be in a folder of their own
                client.log_artifact(run, str(path), place)
        client.set_tag(run, f"{CHECKPOINT}_best", f"runs:/{run}/{place}")
    except Exception as error:
        log.warning("the checkpoint of trial %d was not recorded: %s", number, reason(error))


def finish(
    parent: str | None, trials: list[dict[str, Any]], places: Mapping[int, int], best: dict[str, Value], value: float
) -> None:
    """Record the final state of each trial, also of one whose worker was killed, and the best trial.

    `places` are the places of the trials that count by their numbers; a run has its place in its name, as trials.csv.
    The best numbers are metrics `best.<name>` of the parent; best words and truth values are tags of that name.
    """
    if parent is None:
        return
    client = connect(_WITHOUT)
    with store_errors_as_user_errors(_WITHOUT):
        experiment = client.get_run(parent).info.experiment_id
        by_number = {str(trial["number"]): trial for trial in trials}
        for run in client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", max_results=5000):
            trial = by_number.get(run.data.tags.get(_TRIAL, ""))
            if trial is None or _STATE in run.data.tags:
                continue
            client.set_tag(run.info.run_id, _STATE, trial["state"])
            if places.get(trial["number"], trial["number"]) != trial["number"]:
                client.update_run(run.info.run_id, name=f"trial-{places[trial['number']]}")
            if trial["value"] is not None and math.isfinite(trial["value"]):
                client.log_metric(run.info.run_id, SELECTION, trial["value"])
            for objective in (set(OBJECTIVES) - {"error"}) & trial.keys():
                client.log_metric(run.info.run_id, f"{SELECTION}.{objective}", trial[objective])
            client.set_terminated(run.info.run_id, _STATUS.get(trial["state"], "KILLED"))
        now = milliseconds()
        numbers = {k: v for k, v in best.items() if not isinstance(v, str | bool)}
        Record(client, parent).log(
            [(SELECTION, value, 0, now), *((f"best/{k}", v, 0, now) for k, v in numbers.items())]
        )
        for name in best.keys() - numbers.keys():
            client.set_tag(parent, f"best.{name}", str(best[name]))
        client.set_terminated(parent, "FINISHED")
