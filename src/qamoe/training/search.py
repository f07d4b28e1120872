"""Hyperparameter search with Optuna: the only module that imports it.

The study is in a database with heartbeats, and any number of workers take their trials from it. An interrupted search
resumes, and the trial of a dead worker is tried again. The name of a study is a digest of what it searches over, so
changed parameters start a new study.
"""

import io
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from qamoe.config.params import Params

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

_HEARTBEAT_S = 15
_POLL_S = 1.0  # between checks of the trials of other workers
_MOST_RETRIES = 3  # per trial
_TABLES = 20  # more than Optuna has
# Messages of PostgreSQL and SQLite.
_ALREADY_EXISTS = ("already exists", "duplicate key", "UNIQUE constraint")
TrainOne = Callable[[Params, int, Callable[[dict[str, Any]], None]], float]


def with_trial_values(params: Params, values: dict[str, float]) -> Params:
    """Return the parameters with a trial's values."""
    content = params.model_dump(mode="json")
    common = content["train"]["common"]
    common |= {"lr": values["lr"], "weight_decay": values["weight_decay"], "epochs": params.tune.epochs}
    content["models"]["encoders"]["dropout"] = values["dropout"]
    return Params.model_validate(content)


def overlay(values: dict[str, float]) -> dict[str, Any]:
    """Return a trial's values as an overlay on params.yaml."""
    common = {"lr": values["lr"], "weight_decay": values["weight_decay"]}
    return {"train": {"common": common}, "models": {"encoders": {"dropout": values["dropout"]}}}


class _EnoughTrials(Exception):
    """Raised by a trial beyond the configured number, to end it."""


def open_study(params: Params, name: str, url: str) -> "Study":
    """Open the study of that name in a database, and create it if it does not exist. Every worker does this."""
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _without_warnings():
        make = partial(
            RDBStorage,
            url,
            heartbeat_interval=_HEARTBEAT_S,
            grace_period=4 * _HEARTBEAT_S,
            heartbeat_stale_trial_callback=_retry_callback(),
        )
        storage = _open_storage(make)
    if storage.engine.dialect.name == "sqlite":
        _lock_at_begin(storage.engine)
    return optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=params.tune.epochs // 3),
    )


def _open_storage(make: Callable[[], "RDBStorage"]) -> "RDBStorage":
    """Open a storage; try again if another worker creates the same tables of an empty database at the same time."""
    from sqlalchemy.exc import SQLAlchemyError

    for left in reversed(range(_TABLES)):
        try:
            return make()
        except SQLAlchemyError as error:
            if not left or not any(text in str(error) for text in _ALREADY_EXISTS):
                raise
    raise AssertionError("the last attempt returns or raises")


def _lock_at_begin(engine: Any) -> None:
    """Make every transaction of a SQLite database take its lock at the beginning.

    A worker takes a waiting trial by reading and then writing its state. Other databases lock the row that is read;
    SQLite does not, so two workers could take the same trial. The method is from SQLAlchemy's documentation.
    """
    from sqlalchemy import event

    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions itself
        connection.execute(f"PRAGMA busy_timeout = {1000 * _HEARTBEAT_S}")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # close connections without these settings


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress warnings: Optuna warns at each use that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _retry_callback() -> "RetryHeartbeatStaleTrialCallback":
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    return RetryHeartbeatStaleTrialCallback(max_retry=_MOST_RETRIES)


def retry_dead_trials(study: "Study", worker: str | None = None) -> None:
    """Queue the running trials of a dead worker again, without waiting for its heartbeat; None means all workers."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if worker is None or trial.user_attrs.get("worker") == worker:
            study.tell(trial.number, state=TrialState.FAIL)
            with _without_warnings():
                _retry_callback()(study, trial)


def work(params: Params, study: "Study", worker: str, train_one: TrainOne) -> None:
    """Run trials, next to other workers, until `params.tune.trials` of the study have ended (complete or pruned).

    `worker` names this process. `train_one(params, trial number, on_epoch)` trains a model and returns its validation
    value; `on_epoch` ends it early by raising. While other workers run the last trials, this one waits, and takes over
    if they die: at the latest when a heartbeat is missing for four times its interval.
    """
    import optuna
    from optuna.trial import TrialState

    tune = params.tune

    def objective(trial: optuna.Trial) -> float:
        not_failed = (t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL)
        if sum(t.number < trial.number for t in not_failed) >= tune.trials:
            raise _EnoughTrials
        trial.set_user_attr("worker", worker)
        # Seeded by trial number: workers draw different values, and a new study draws the same first trials.
        study.sampler = optuna.samplers.TPESampler(seed=(tune.seed * 1_000_003 + trial.number) % 2**32)
        values = {
            "lr": trial.suggest_float("lr", *tune.lr, log=True),
            "weight_decay": trial.suggest_float("weight_decay", *tune.weight_decay, log=True),
            "dropout": trial.suggest_float("dropout", *tune.dropout),
        }

        def on_epoch(line: dict[str, Any]) -> None:
            trial.report(line["valid"], line["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

        return train_one(with_trial_values(params, values), trial.number, on_epoch)

    while True:
        states = Counter(t.state for t in study.get_trials(deepcopy=False))
        ended = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
        if ended >= tune.trials:
            return
        if states[TrialState.WAITING] or ended + states[TrialState.RUNNING] < tune.trials:
            study.optimize(objective, n_trials=1, catch=(_EnoughTrials,))
        else:
            time.sleep(_POLL_S)  # other workers run the last trials; a study does not notify when they end
            with _without_warnings():
                optuna.storages.fail_stale_trials(study)


def plots(study: "Study") -> dict[str, bytes]:
    """Return Optuna's plots of a study by name, as SVG: `history`, `slice`, and `importances` from two trials on."""
    import matplotlib
    from matplotlib import pyplot
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as optuna_plots

    functions: dict[str, Callable[..., Any]] = {
        "history": optuna_plots.plot_optimization_history,
        "slice": optuna_plots.plot_slice,
    }
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) > 1:
        functions["importances"] = optuna_plots.plot_param_importances
    svgs = {}
    pyplot.switch_backend("agg")  # the plots use pyplot, and there may be no display
    for name, plot in functions.items():
        with matplotlib.rc_context({"svg.hashsalt": "qamoe"}), _without_warnings(), io.BytesIO() as file:
            plot(study, target_name="validation error")
            if name == "slice":  # its axes are narrow, and their labels would overlap
                pyplot.gcf().set_size_inches(11, 4.5)
                for axis in pyplot.gcf().axes[:3]:
                    axis.tick_params(axis="x", which="both", labelsize=9, labelrotation=45)
            pyplot.savefig(file, format="svg", bbox_inches="tight", metadata=dict.fromkeys(("Creator", "Date")))
            pyplot.close("all")
            svgs[name] = file.getvalue()
    return svgs


def outcome(study: "Study") -> tuple[dict[str, float], float, list[dict[str, Any]]]:
    """Return the best values, their validation value, and all trials: number, state, value and parameters."""
    trials = [{"number": t.number, "state": t.state.name, "value": t.value, **t.params} for t in study.get_trials()]
    return dict(study.best_params), float(study.best_value), trials
