"""Hyperparameter search with Optuna: the only module that imports it.

The study lives in a database with heartbeats, and any number of workers take their trials from it: a killed search
goes on where it was, and a trial whose worker died is tried again. A study's name is a digest of what it searches
over, so changed parameters start a new one.
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
_LOOK_S = 1.0  # between looks at trials that others run
_MOST_RETRIES = 3  # of one trial
_TABLES = 20  # more than Optuna has
_ALREADY_MADE = ("already exists", "duplicate key", "UNIQUE constraint")  # in words of PostgreSQL and SQLite
TrainOne = Callable[[Params, int, Callable[[dict[str, Any]], None]], float]


def with_trial_values(params: Params, values: dict[str, float]) -> Params:
    """The parameters with a trial's values put in."""
    content = params.model_dump(mode="json")
    common = content["train"]["common"]
    common |= {"lr": values["lr"], "weight_decay": values["weight_decay"], "epochs": params.tune.epochs}
    content["models"]["encoders"]["dropout"] = values["dropout"]
    return Params.model_validate(content)


def overlay(values: dict[str, float]) -> dict[str, Any]:
    """A trial's values as an overlay on params.yaml."""
    common = {"lr": values["lr"], "weight_decay": values["weight_decay"]}
    return {"train": {"common": common}, "models": {"encoders": {"dropout": values["dropout"]}}}


class _Enough(Exception):
    """There are as many trials as were asked for; this one was begun beyond them."""


def open_study(params: Params, name: str, url: str) -> "Study":
    """The study of that name in a database, made where there is none: every worker, on any machine, opens it so."""
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _without_warnings():
        make = partial(
            RDBStorage,
            url,
            heartbeat_interval=_HEARTBEAT_S,
            grace_period=4 * _HEARTBEAT_S,
            heartbeat_stale_trial_callback=_again(),
        )
        storage = _opened_beside_others(make)
    if storage.engine.dialect.name == "sqlite":
        _lock_at_begin(storage.engine)
    return optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=params.tune.epochs // 3),
    )


def _opened_beside_others(make: Callable[[], "RDBStorage"]) -> "RDBStorage":
    """Open a storage again where another worker made the same tables in an empty database meanwhile, table by table."""
    from sqlalchemy.exc import SQLAlchemyError

    for left in reversed(range(_TABLES)):
        try:
            return make()
        except SQLAlchemyError as error:
            if not left or not any(sign in str(error) for sign in _ALREADY_MADE):
                raise
    raise AssertionError("the last attempt returns or raises")


def _lock_at_begin(engine: Any) -> None:
    """Have every transaction of a SQLite database take its lock at the beginning.

    A worker takes a waiting trial by reading its state and then writing it. Other databases lock the row that is read;
    SQLite knows no such lock, and two workers took the same trial. The recipe is SQLAlchemy's for its driver.
    """
    from sqlalchemy import event

    def plain(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own
        connection.execute(f"PRAGMA busy_timeout = {1000 * _HEARTBEAT_S}")

    event.listen(engine, "connect", plain)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # connections made before


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Heartbeats are experimental in Optuna, which says so at each use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _again() -> "RetryHeartbeatStaleTrialCallback":
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    return RetryHeartbeatStaleTrialCallback(max_retry=_MOST_RETRIES)


def retry_dead_trials(study: "Study", worker: str | None = None) -> None:
    """Let the running trials of a dead worker be tried again at once: of that one, or of all where none can live."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if worker is None or trial.user_attrs.get("worker") == worker:
            study.tell(trial.number, state=TrialState.FAIL)
            with _without_warnings():
                _again()(study, trial)


def work(params: Params, study: "Study", worker: str, train_one: TrainOne) -> None:
    """Run trials beside other workers until `params.tune.trials` of the study have ended, complete or pruned.

    `worker` names this process. `train_one(params, trial number, on_epoch)` trains a model and returns its validation
    value; `on_epoch` may end it early by raising. Where others run the last trials this waits, to take over if they
    die: at the latest when their heartbeat has failed for four times its interval.
    """
    import optuna
    from optuna.trial import TrialState

    tune = params.tune

    def objective(trial: optuna.Trial) -> float:
        live = (t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL)
        if sum(t.number < trial.number for t in live) >= tune.trials:
            raise _Enough
        trial.set_user_attr("worker", worker)
        # Drawn by the trial's number: workers do not draw alike, and a study begun anew draws the same first trials.
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
            study.optimize(objective, n_trials=1, catch=(_Enough,))
        else:
            time.sleep(_LOOK_S)  # the last trials are run by other workers, and a study tells nobody of their end
            with _without_warnings():
                optuna.storages.fail_stale_trials(study)


def plots(study: "Study") -> dict[str, bytes]:
    """Optuna's own plots of a study by name, as SVG: `history`, `slice`, and `importances` of two trials or more."""
    import matplotlib
    from matplotlib import pyplot
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as drawn

    draw: dict[str, Callable[..., Any]] = {"history": drawn.plot_optimization_history, "slice": drawn.plot_slice}
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) > 1:
        draw["importances"] = drawn.plot_param_importances
    svgs = {}
    pyplot.switch_backend("agg")  # these plots know pyplot alone, and there may be no screen
    for name, plot in draw.items():
        with matplotlib.rc_context({"svg.hashsalt": "qamoe"}), _without_warnings(), io.BytesIO() as file:
            plot(study, target_name="validation error")
            if name == "slice":  # its axes are narrow, and their labels would lie on each other
                pyplot.gcf().set_size_inches(11, 4.5)
                for axis in pyplot.gcf().axes[:3]:
                    axis.tick_params(axis="x", which="both", labelsize=9, labelrotation=45)
            pyplot.savefig(file, format="svg", bbox_inches="tight", metadata=dict.fromkeys(("Creator", "Date")))
            pyplot.close("all")
            svgs[name] = file.getvalue()
    return svgs


def outcome(study: "Study") -> tuple[dict[str, float], float, list[dict[str, Any]]]:
    """The best values, their score, and all trials: number, state, value, and what was tried."""
    trials = [{"number": t.number, "state": t.state.name, "value": t.value, **t.params} for t in study.get_trials()]
    return dict(study.best_params), float(study.best_value), trials
