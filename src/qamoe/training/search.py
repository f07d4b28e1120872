"""Hyperparameter search with Optuna: the only module that imports it.

The study lives in a database with heartbeats: a killed search goes on where it was, and a trial whose worker died is
tried again. A study's name is a digest of what it searches over, so changed parameters start a new one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qamoe.params import Params

_HEARTBEAT_S = 30


def tuned(params: Params, values: dict[str, float]) -> Params:
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


def search(
    params: Params,
    study_name: str,
    folder: Path,
    train_one: Callable[[Params, int, Callable[[dict[str, Any]], None]], float],
) -> tuple[dict[str, float], float, list[dict[str, Any]]]:
    """Run trials until `params.tune.trials` are finished; returns the best values, their score and all trials.

    `train_one(params, trial number, on_epoch)` trains a model and returns its validation value; `on_epoch` may end it
    early by raising.
    """
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = RDBStorage(
        f"sqlite:///{(folder / 'study.db').resolve()}",
        heartbeat_interval=_HEARTBEAT_S,
        grace_period=4 * _HEARTBEAT_S,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
    )
    tune = params.tune
    study = optuna.create_study(
        storage=storage,
        study_name=study_name,
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=tune.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=tune.epochs // 3),
    )

    def objective(trial: optuna.Trial) -> float:
        values = {
            "lr": trial.suggest_float("lr", *tune.lr, log=True),
            "weight_decay": trial.suggest_float("weight_decay", *tune.weight_decay, log=True),
            "dropout": trial.suggest_float("dropout", *tune.dropout),
        }

        def on_epoch(line: dict[str, Any]) -> None:
            trial.report(line["valid"], line["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

        return train_one(tuned(params, values), trial.number, on_epoch)

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    remaining = tune.trials - len(study.get_trials(states=ended))
    if remaining > 0:
        study.optimize(objective, n_trials=remaining)
    trials = [{"number": t.number, "state": t.state.name, "value": t.value, **t.params} for t in study.get_trials()]
    return dict(study.best_params), float(study.best_value), trials
