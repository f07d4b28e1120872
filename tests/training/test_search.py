"""A study that several workers share ends with the asked number of trials, whoever dies."""

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
    """A training that takes no time."""
    on_epoch({"epoch": 1, "valid": 1.0 - number / 100})  # better and better: none is pruned
    return params.train.common.lr


def work(params: Params, url: str, worker: str) -> None:
    search.work(params, search.open_study(params, "s", url), worker, quick)


def states(study: optuna.Study) -> list[str]:
    return sorted(t.state.name for t in study.get_trials() if t.state != TrialState.FAIL)


def test_a_study_ends_and_is_begun_anew_with_the_same_first_trials(params: Params, url: str, tmp_path: Path) -> None:
    work(params, url, "one")
    study = search.open_study(params, "s", url)
    assert len(study.get_trials()) == 7
    work(params, url, "two")
    assert len(study.get_trials()) == 7, "there is nothing left to do"
    best, value, trials = search.outcome(study)
    assert value == best["lr"] == min(t["lr"] for t in trials)
    assert len({t["lr"] for t in trials}) == 7

    other = f"sqlite:///{tmp_path / 'other.db'}"
    work(params, other, "one")
    again = search.outcome(search.open_study(params, "s", other))[2]
    assert [t["lr"] for t in again] == [t["lr"] for t in trials]


def test_workers_that_begin_at_once_make_one_study(params: Params, url: str) -> None:
    begin = threading.Barrier(6)

    def opened(_: int) -> int:
        begin.wait()
        return len(search.open_study(params, "s", url).get_trials())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(opened, range(6))) == [0] * 6
    assert len(optuna.get_all_study_names(url)) == 1


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
    tried = {t.number: t for t in study.get_trials()}
    assert tried[2].params["lr"] == tried[0].params["lr"], "with the values that it had"


def test_a_trial_that_kills_its_worker_again_and_again_is_given_up(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    study.ask().set_user_attr("worker", "dead")
    for _ in range(5):
        search.retry_dead_trials(study)
        waiting = study.get_trials(states=(TrialState.WAITING,))
        if waiting:
            study.ask().set_user_attr("worker", "dead")
    assert states(study) == []
    assert len(study.get_trials()) == 4, "once, and three times more"


@pytest.mark.slow
def test_workers_side_by_side_do_not_begin_more_than_was_asked_for(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    context = get_context("spawn")
    workers = [context.Process(target=work, args=(params, url, str(i))) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    # In which order they end says whether the last ones are pruned.
    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(ended) == len(states(study)) == 7
    assert len({t.params["lr"] for t in ended}) == 7


def test_a_waiting_trial_is_taken_once_however_many_workers_ask(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    for _ in range(24):
        study.enqueue_trial({})
    together = threading.Barrier(8)

    def take(_: int) -> list[int]:
        own = search.open_study(params, "s", url)
        taken = []
        for _ in range(3):
            together.wait()
            taken.append(own.ask().number)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [number for numbers in pool.map(take, range(8)) for number in numbers]
    assert sorted(taken) == list(range(24))


def test_a_study_is_drawn_the_same_twice(params: Params, url: str) -> None:
    study = search.open_study(params, "s", url)
    work(params.model_copy(update={"tune": params.tune.model_copy(update={"trials": 1})}), url, "one")
    assert set(search.plots(study)) == {"history", "slice"}, "one trial says nothing of importance"
    work(params, url, "one")
    drawn = search.plots(study)
    assert set(drawn) == {"history", "slice", "importances"}
    assert search.plots(study) == drawn
    for name, svg in drawn.items():
        shown = svg.decode()
        assert shown.startswith("<?xml"), name
        assert "<svg" in shown


def test_a_study_of_one_and_the_same_trial_is_drawn_too(params: Params, url: str) -> None:
    same = {"lr": (0.001, 0.001), "weight_decay": (0.01, 0.01), "dropout": (0.2, 0.2)}
    params = params.model_copy(update={"tune": params.tune.model_copy(update=same)})
    work(params, url, "one")
    assert {"history", "slice"} <= set(search.plots(search.open_study(params, "s", url)))
