"""A study that several workers share ends with the configured number of trials, even if workers die."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from qamoe.config.params import Params
from qamoe.training import search


@pytest.fixture
def params(tiny_params: Any) -> Params:
    content = tiny_params.model_dump(mode="json")
    content["tune"] |= {"trials": 7, "epochs": 2}
    return Params.model_validate(content)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def quick(params: Params, number: int, on_epoch: Callable[[dict[str, Any]], None]) -> float:
    """Stand in for a training, without taking time."""
    on_epoch({"epoch": 1, "valid": 1.0 - number / 100})  # each trial is better than the last: none is pruned
    return params.train.common.lr


def work(params: Params, url: str, worker: str) -> None:
    search.work(params, search.open_study(params, "s", url), worker, quick)


def states(study: optuna.Study) -> list[str]:
    return sorted(t.state.name for t in study.get_trials() if t.state != TrialState.FAIL)


@pytest.mark.integration
def test_a_study_ends_and_a_new_one_has_the_same_first_trials(params: Params, url: str, tmp_path: Path) -> None:
    work(params, url, "one")
    study = search.open_study(params, "s", url)
    assert len(study.get_trials()) == 7
    work(params, url, "two")
    assert len(study.get_trials()) == 7, "the study has already ended"
    best, value, trials = search.outcome(study)
    assert value == best["lr"] == min(t["lr"] for t in trials)
    assert len({t["lr"] for t in trials}) == 7

    other = f"sqlite:///{tmp_path / 'other.db'}"
    work(params, other, "one")
    repeated = search.outcome(search.open_study(params, "s", other))[2]
    assert [t["lr"] for t in repeated] == [t["lr"] for t in trials]


@pytest.mark.integration
def test_workers_that_start_together_create_one_study(params: Params, url: str) -> None:
    together = threading.Barrier(6)

    def opened(_: int) -> int:
        together.wait()
        return len(search.open_study(params, "s", url).get_trials())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(opened, range(6))) == [0] * 6
    assert len(optuna.get_all_study_names(url)) == 1


@pytest.mark.integration
def test_the_trial_of_a_dead_worker_is_tried_again(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    for worker in ("dead", "alive"):
        trial = study.ask()
        trial.set_user_attr("worker", worker)
        trial.suggest_float("lr", 0.0003, 0.003, log=True)
    search.retry_dead_trials(study, "dead")
    assert states(study) == ["RUNNING", "WAITING"]
    search.retry_dead_trials(study)
    work(params, url, "new")
    assert states(study) == ["COMPLETE"] * 5 + ["COMPLETE", "COMPLETE"]
    trials = {t.number: t for t in study.get_trials()}
    assert trials[2].params["lr"] == trials[0].params["lr"], "the retry has the same values"


@pytest.mark.integration
def test_a_trial_that_keeps_killing_its_worker_is_given_up(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    study.ask().set_user_attr("worker", "dead")
    for _ in range(5):
        search.retry_dead_trials(study)
        waiting = study.get_trials(states=(TrialState.WAITING,))
        if waiting:
            study.ask().set_user_attr("worker", "dead")
    assert states(study) == []
    assert len(study.get_trials()) == 4, "one attempt and three retries"


@pytest.mark.slow
def test_parallel_workers_do_not_run_more_trials_than_configured(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    context = get_context("spawn")
    workers = [context.Process(target=work, args=(params, url, str(i))) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    # The order in which trials end determines whether the last ones are pruned.
    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(ended) == len(states(study)) == 7
    assert len({t.params["lr"] for t in ended}) == 7


@pytest.mark.integration
def test_a_waiting_trial_is_taken_by_one_worker_only(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    for _ in range(24):
        study.enqueue_trial({})
    together = threading.Barrier(8)

    def take(_: int) -> list[int]:
        study_of_worker = search.open_study(params, "s", url)
        taken = []
        for _ in range(3):
            together.wait()
            taken.append(study_of_worker.ask().number)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [number for numbers in pool.map(take, range(8)) for number in numbers]
    assert sorted(taken) == list(range(24))


@pytest.mark.integration
@pytest.mark.slow
def test_plots_of_a_study_are_reproducible(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    work(params.model_copy(update={"tune": params.tune.model_copy(update={"trials": 1})}), url, "one")
    assert set(search.plots(study)) == {"history", "slice"}, "importances need two trials"
    work(params, url, "one")
    plots = search.plots(study)
    assert set(plots) == {"history", "slice", "importances"}
    assert search.plots(study) == plots
    for name, svg in plots.items():
        text = svg.decode()
        assert text.startswith("<?xml"), name
        assert "<svg" in text


@pytest.mark.integration
@pytest.mark.slow
def test_a_study_of_identical_trials_can_be_plotted(params: Params, url: str) -> None:
    same = {"lr": (0.001, 0.001), "weight_decay": (0.01, 0.01), "dropout": (0.2, 0.2)}
    params = params.model_copy(update={"tune": params.tune.model_copy(update=same)})
    work(params, url, "one")
    assert {"history", "slice"} <= set(search.plots(search.open_study(params, "s", url)))
