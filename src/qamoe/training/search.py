"""Hyperparameter search with Optuna: the only module that imports it.

The study is in a database with heartbeats, and any number of workers take their trials from it. An interrupted search
resumes, and the trial of a dead worker is tried again. The best trial is the one with the smallest error. A study with
several objectives also has a Pareto front: the trials that no other trial beats in every objective.
"""

import io
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qamoe.config.model_params import for_model
from qamoe.config.overlay import overlaid
from qamoe.config.params import Params
from qamoe.config.search_space import MAXIMISED, Dimension, Value, nested, value_at
from qamoe.errors import UserError
from qamoe.models.factory import block_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

_HEARTBEAT_S = 15
_POLL_S = 1.0  # between checks of the trials of other workers
_MOST_RETRIES = 3  # per trial
_TABLES = 20  # more than Optuna has
# Messages of PostgreSQL and SQLite.
_ALREADY_EXISTS = ("already exists", "duplicate key", "UNIQUE constraint")
_TARGET = "validation error"
# Trains with (params, trial number, on_epoch); returns the trial's measures by name: evaluation/search_objectives.py.
TrainOne = Callable[[Params, int, Callable[[dict[str, Any]], None]], dict[str, float]]
log = logging.getLogger("qamoe")


def with_trial_values(params: Params, values: Mapping[str, Value]) -> Params:
    """Return the parameters of the searched model with a trial's values by dotted name, and tune.epochs.

    Raises pydantic's ValidationError for values that exclude each other, such as more active experts than experts.
    """
    changed = Params.model_validate(overlaid(params.model_dump(mode="json"), nested(values)))
    block_of(changed.models, params.tune.model)
    return trial_params(changed)


def trial_params(params: Params) -> Params:
    """Return the parameters with the searched model's train.common, in which the epochs are tune.epochs."""
    train = for_model(params, params.tune.model).train
    common = train.common.model_copy(update={"epochs": params.tune.epochs})
    return params.model_copy(update={"train": train.model_copy(update={"common": common})})


def searched_values(params: Params) -> dict[str, Value]:
    """Return the values of the searched parameters by dotted name."""
    content = params.model_dump(mode="json")
    return {name: value_at(content, name) for name in params.tune.space}


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
    tune = params.tune
    pruner: Any = optuna.pruners.NopPruner()
    if tune.pruner == "median":
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=tune.epochs // 3)
    directions = ["maximize" if objective in MAXIMISED else "minimize" for objective in tune.objectives]
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, directions=directions, pruner=pruner
    )
    with _without_warnings():
        study.set_metric_names(list(tune.objectives))
    return study


def describe(study: "Study", attributes: Mapping[str, Any]) -> None:
    """Write attributes of a study that a person reads, for example in optuna-dashboard."""
    for name, value in attributes.items():
        study.set_user_attr(name, value)


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

    `worker` names this process. `on_epoch` of train_one ends a trial early by raising. While other workers run the last
    trials, this one waits, and takes over if they die: at the latest when a heartbeat is missing for four times its
    interval.
    """
    import optuna
    from optuna.trial import TrialState

    tune = params.tune

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        not_failed = (t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL)
        if sum(t.number < trial.number for t in not_failed) >= tune.trials:
            raise _EnoughTrials
        trial.set_user_attr("worker", worker)
        study.sampler = _sampler(params, _place(trial.number, study))
        return _run_trial(params, trial, train_one)

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


def _place(number: int, study: "Study") -> int:
    """Return the place of a trial among the trials that were asked for: one that runs again keeps its place."""
    trials = study.get_trials(deepcopy=False)
    first = trials[number].system_attrs.get("failed_trial", number)
    return first - sum("failed_trial" in trial.system_attrs for trial in trials[:first])


def last_attempts(study: "Study") -> dict[int, int]:
    """Return the number of the last attempt of each trial by the trial's place; attempts that died have none.

    So a search that was killed and started again writes what an undisturbed one writes.
    """
    from optuna.trial import TrialState

    attempts: dict[int, int] = {}
    for trial in study.get_trials(deepcopy=False):
        # One that failed and does not run again was asked for when the study had ended.
        if trial.state != TrialState.FAIL or "failed_trial" in trial.system_attrs:
            attempts[_place(trial.number, study)] = trial.number
    return dict(sorted(attempts.items()))


def _sampler(params: Params, number: int) -> Any:
    """Return the sampler, seeded by a trial's place: workers draw different values, and a new study the same first."""
    import optuna

    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return kinds[params.tune.sampler](seed=(params.tune.seed * 1_000_003 + number) % 2**32)


def _run_trial(params: Params, trial: "Trial", train_one: TrainOne) -> tuple[float, ...]:
    """Train one trial and return its objectives. Raises TrialPruned where it is ended early, invalid or diverges."""
    import optuna

    from qamoe.training.trainer import Diverged

    values = {name: _suggest(trial, name, dimension) for name, dimension in params.tune.space.items()}
    log.info("trial %d: %s", trial.number, ", ".join(f"{name} {_short(value)}" for name, value in values.items()))
    prunes = params.tune.objectives == ("error",)  # Optuna takes reports for one objective alone

    def on_epoch(line: dict[str, Any]) -> None:
        if not prunes:
            return
        trial.report(line["valid"], line["epoch"])
        if trial.should_prune():
            log.info("trial %d: pruned after epoch %d", trial.number, line["epoch"])
            raise optuna.TrialPruned

    try:
        measured = train_one(with_trial_values(params, values), trial.number, on_epoch)
    except ValidationError as invalid:
        reason = invalid.errors()[0]["msg"].removeprefix("Value error, ")
        log.warning("trial %d: counts as pruned, because %s", trial.number, reason)
        raise optuna.TrialPruned from None
    except Diverged as diverged:
        log.warning("%s It counts as pruned.", diverged)
        raise optuna.TrialPruned from None
    trial.set_user_attr("error", measured["error"])
    text = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
    log.info("trial %d: complete, %s", trial.number, text)
    return tuple(measured[objective] for objective in params.tune.objectives)


def _suggest(trial: "Trial", name: str, dimension: Dimension) -> Value:
    if dimension.choices is not None:
        return trial.suggest_categorical(name, dimension.choices)
    suggest = trial.suggest_int if dimension.integers else trial.suggest_float
    step = {} if dimension.step is None else {"step": dimension.step}
    return suggest(name, dimension.low, dimension.high, log=dimension.log, **step)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def by_error(study: "Study") -> "Study":
    """Return the ended trials as a study in memory whose one objective is the error, each at its place."""
    import optuna

    scalar = optuna.create_study(direction="minimize")
    trials = study.get_trials()
    for trial in (trials[number] for number in last_attempts(study).values()):
        if trial.state.is_finished():
            scalar.add_trial(
                optuna.trial.create_trial(
                    state=trial.state,
                    value=_error(trial),
                    params=trial.params,
                    distributions=trial.distributions,
                    intermediate_values=trial.intermediate_values,
                )
            )
    return scalar


def _error(trial: Any) -> float | None:
    """Return the error of a complete trial, the last reported one of a pruned trial, or None."""
    if "error" in trial.user_attrs:
        return float(trial.user_attrs["error"])
    return None if trial.values is None else trial.value


def plots(study: "Study", objectives: Sequence[str]) -> dict[str, bytes]:
    """Return plots of a study by name, as SVG.

    `history`, `slice`, and `importances` from two complete trials on, are Optuna's, of the error; `front` has the
    trials by their objectives, if there are several.
    """
    import matplotlib
    import optuna.visualization.matplotlib as optuna_plots
    from matplotlib import pyplot
    from optuna.trial import TrialState

    scalar = by_error(study)
    functions: dict[str, Callable[[], Any]] = {
        "history": lambda: optuna_plots.plot_optimization_history(scalar, target_name=_TARGET),
        "slice": lambda: _plot_slice(scalar),
    }
    if len(scalar.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) > 1:
        functions["importances"] = lambda: optuna_plots.plot_param_importances(scalar, target_name=_TARGET)
    if len(objectives) > 1:
        functions["front"] = lambda: _plot_front(study, objectives)
    svgs = {}
    pyplot.switch_backend("agg")  # the plots use pyplot, and there may be no display
    for name, plot in functions.items():
        with matplotlib.rc_context({"svg.hashsalt": "qamoe"}), _without_warnings(), io.BytesIO() as file:
            plot()
            pyplot.savefig(file, format="svg", bbox_inches="tight", metadata=dict.fromkeys(("Creator", "Date")))
            pyplot.close("all")
            svgs[name] = file.getvalue()
    return svgs


def _plot_slice(study: "Study") -> None:
    import optuna.visualization.matplotlib as optuna_plots
    from matplotlib import pyplot

    optuna_plots.plot_slice(study, target_name=_TARGET)
    names = {name for trial in study.get_trials(deepcopy=False) for name in trial.params}
    figure = pyplot.gcf()  # its axes are narrow, and their labels would overlap
    figure.set_size_inches(max(6.0, 3.7 * len(names)), 4.5)
    for axis in figure.axes[: len(names)]:
        axis.tick_params(axis="x", which="both", labelsize=9, labelrotation=45)


def _plot_front(study: "Study", objectives: Sequence[str]) -> None:
    """Draw each further objective against the first one; Optuna's plot takes two or three objectives only."""
    from matplotlib import pyplot

    front = {trial.number for trial in study.best_trials}
    places = {number: place for place, number in last_attempts(study).items()}
    complete = [trial for trial in study.get_trials() if trial.values is not None]
    _, axes = pyplot.subplots(1, len(objectives) - 1, figsize=(4.6 * (len(objectives) - 1), 3.8), squeeze=False)
    for column, axis in enumerate(axes[0], 1):
        for trial in complete:
            on_front = trial.number in front
            colour = "#0072B2" if on_front else "#9aa5ae"
            axis.plot(
                trial.values[0], trial.values[column], "o", color=colour, fillstyle="full" if on_front else "none"
            )
            if on_front:
                at = (trial.values[0], trial.values[column])
                axis.annotate(str(places[trial.number]), at, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axis.set_xlabel(objectives[0])
        axis.set_ylabel(objectives[column])


def outcome(study: "Study", objectives: Sequence[str]) -> tuple[dict[str, Value], float, list[dict[str, Any]]]:
    """Return the values with the smallest error, that error, and all trials, one dict each.

    A trial has number, state, value (its error) and its parameters. With several objectives it has those other than
    the error too, and `front`: whether it is on the Pareto front. Raises UserError if no trial is complete.
    """
    from optuna.trial import TrialState

    several = len(objectives) > 1
    front = {trial.number for trial in study.best_trials} if several else set()
    trials = []
    for trial in study.get_trials():
        row: dict[str, Any] = {"number": trial.number, "state": trial.state.name, "value": _error(trial)}
        if trial.state == TrialState.COMPLETE:
            row |= {n: v for n, v in zip(objectives, trial.values, strict=True) if n != "error"}
        trials.append(row | ({"front": trial.number in front} if several else {}) | trial.params)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError(
            f"None of the {len(trials)} trials of the search is complete (tune.trials): every one was pruned, diverged"
            " or had values that exclude each other; see the lines above."
        )
    best = min(complete, key=lambda trial: float(trial.user_attrs["error"]))
    return dict(best.params), float(best.user_attrs["error"]), trials
