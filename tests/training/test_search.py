"""A study that several workers share ends with the configured number of trials, even if workers die.

The space may be that of any model, and several objectives give a Pareto front.
"""

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
from qamoe.errors import UserError
from qamoe.training import search
from qamoe.training.trainer import Diverged

LR = "train.common.lr"
SPACE = {
    "train.common.batch_size": {"low": 8, "high": 64, "step": 8},
    "train.common.schedule": {"choices": ["cosine", "linear"]},
    "models.concat.hidden": {"low": 16, "high": 256, "log": True},
}


@pytest.fixture
def params(tiny_params: Any) -> Params:
    return changed(tiny_params, trials=7, epochs=2)


def changed(params: Params, **tune: Any) -> Params:
    content = params.model_dump(mode="json")
    content["tune"] |= tune
    return Params.model_validate(content)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def quick(params: Params, number: int, on_epoch: Callable[[dict[str, Any]], None]) -> dict[str, float]:
    """Stand in for a training, without taking time."""
    on_epoch({"epoch": 1, "valid": 1.0 - number / 100})  # each trial is better than the last: none is pruned
    return {"error": params.train.common.lr}


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
    best, value, trials = search.outcome(study, ["error"])
    assert value == best[LR] == min(t[LR] for t in trials)
    assert len({t[LR] for t in trials}) == 7

    other = f"sqlite:///{tmp_path / 'other.db'}"
    work(params, other, "one")
    repeated = search.outcome(search.open_study(params, "s", other), ["error"])[2]
    assert [t[LR] for t in repeated] == [t[LR] for t in trials]


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
        trial.suggest_float(LR, 0.0003, 0.003, log=True)
    search.retry_dead_trials(study, "dead")
    assert states(study) == ["RUNNING", "WAITING"]
    search.retry_dead_trials(study)
    work(params, url, "new")
    assert states(study) == ["COMPLETE"] * 5 + ["COMPLETE", "COMPLETE"]
    trials = {t.number: t for t in study.get_trials()}
    assert trials[2].params[LR] == trials[0].params[LR], "the retry has the same values"


@pytest.mark.integration
@pytest.mark.parametrize("suggested", [True, False])
def test_a_search_that_was_killed_ends_like_an_undisturbed_one(
    params: Params, url: str, tmp_path: Path, suggested: bool
) -> None:
    undisturbed = f"sqlite:///{tmp_path / 'undisturbed.db'}"
    work(params, undisturbed, "one")
    work(changed(params, trials=2), url, "one")
    study = search.open_study(params, "s", url)
    study.sampler = search._sampler(params, 2)
    trial = study.ask()
    trial.set_user_attr("worker", "dead")
    if suggested:
        for name, dimension in params.tune.space.items():
            search._suggest(trial, name, dimension)
    search.retry_dead_trials(study)
    work(params, url, "two")
    written: list[Any] = []
    for one in (study, search.open_study(params, "s", undisturbed)):
        trials = search.outcome(one, ["error"])[2]
        last = search.last_attempts(one).items()
        written.append([(place, *(trials[number][key] for key in ("state", "value", LR))) for place, number in last])
        written.append(search.plots(one, ["error"]))
    assert written[:2] == written[2:]
    assert len(written[0]) == 7


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
    assert len({t.params[LR] for t in ended}) == 7


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
    work(changed(params, trials=1), url, "one")
    assert set(search.plots(study, ["error"])) == {"history", "slice"}, "importances need two trials"
    work(params, url, "one")
    plots = search.plots(study, ["error"])
    assert set(plots) == {"history", "slice", "importances"}
    assert search.plots(study, ["error"]) == plots
    for name, svg in plots.items():
        text = svg.decode()
        assert text.startswith("<?xml"), name
        assert "<svg" in text


@pytest.mark.integration
@pytest.mark.slow
def test_a_study_of_identical_trials_can_be_plotted(params: Params, url: str) -> None:
    params = changed(params, space={LR: {"choices": [0.001]}, "train.common.schedule": {"choices": ["linear"]}})
    work(params, url, "one")
    assert {"history", "slice"} <= set(search.plots(search.open_study(params, "s", url), ["error"]))


def two_sided(params: Params, number: int, on_epoch: Callable[[dict[str, Any]], None]) -> dict[str, float]:
    """Stand in for a training whose clean error falls, and whose trust falls too, with a wider layer."""
    hidden = params.models.blocks["concat"]["hidden"]
    on_epoch({"epoch": 1, "valid": 0.5})
    return {"error": abs(hidden - 100) / 100, "clean": 1 / hidden, "trust": 1 - hidden / 1000}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_numbers_and_words_of_any_model_are_searched_with_several_objectives(
    params: Params, url: str, sampler: str
) -> None:
    objectives = ("clean", "trust")
    params = changed(params, model="concat", space=SPACE, objectives=objectives, sampler=sampler, pruner="none")
    search.work(params, search.open_study(params, "s", url), "one", two_sided)
    study = search.open_study(params, "s", url)
    best, value, trials = search.outcome(study, objectives)
    assert len(trials) == 7
    assert {t["train.common.batch_size"] % 8 for t in trials} == {0}
    assert {type(t["models.concat.hidden"]) for t in trials} == {int}
    assert {t["train.common.schedule"] for t in trials} <= {"cosine", "linear"}
    errors = [abs(t["models.concat.hidden"] - 100) / 100 for t in trials]
    assert [t["value"] for t in trials] == errors
    assert value == min(errors), "the one scalar decides, though it is no objective here"
    assert best == {name: trials[errors.index(value)][name] for name in SPACE}
    assert all(t["front"] for t in trials), "a wider layer is better in one and worse in the other"
    assert study.metric_names == list(objectives)
    assert "front" in search.plots(study, objectives)


@pytest.mark.integration
def test_the_front_leaves_out_what_another_trial_beats_in_every_objective(params: Params, url: str) -> None:
    def one_sided(params: Params, number: int, on_epoch: Any) -> dict[str, float]:
        return {"error": 1.0, "clean": 1.0 + (number == 3), "trust": 0.9 - 0.1 * (number == 3)}

    objectives = ("error", "clean", "trust")
    params = changed(params, objectives=objectives, pruner="none")
    search.work(params, search.open_study(params, "s", url), "one", one_sided)
    trials = search.outcome(search.open_study(params, "s", url), objectives)[2]
    assert [t["number"] for t in trials if not t["front"]] == [3]


@pytest.mark.integration
def test_a_trial_that_diverges_or_is_not_valid_counts_as_pruned(
    params: Params, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    space = {"models.qamoe.active": {"low": 1, "high": 3}, "models.qamoe.experts": {"low": 2, "high": 3}}
    params = changed(params, space=space, trials=12)
    valid = []

    def train(params: Params, number: int, on_epoch: Any) -> dict[str, float]:
        valid.append(number)
        if len(valid) == 1:
            raise Diverged("it diverged")
        return {"error": 1.0}

    search.work(params, search.open_study(params, "s", url), "one", train)
    trials = search.outcome(search.open_study(params, "s", url), ["error"])[2]
    excluded = {t["number"] for t in trials if t["models.qamoe.active"] > t["models.qamoe.experts"]}
    assert excluded, "the sampler drew such a pair"
    assert {t["number"] for t in trials if t["state"] == "PRUNED"} == excluded | {valid[0]}
    assert "active (3)" in caplog.text
    assert "Value error" not in caplog.text
    assert len(trials) == 12


@pytest.mark.integration
def test_a_search_without_a_complete_trial_has_no_result(params: Params, url: str) -> None:
    def train(params: Params, number: int, on_epoch: Any) -> dict[str, float]:
        raise Diverged("it diverged")

    search.work(params, search.open_study(params, "s", url), "one", train)
    with pytest.raises(UserError, match=r"7 trials.*tune\.trials"):
        search.outcome(search.open_study(params, "s", url), ["error"])


def test_a_trial_has_its_values_and_the_epochs_of_the_search(params: Params) -> None:
    params = changed(params, space={LR: {"low": 0.1, "high": 0.2}, "models.encoders.dropout": {"choices": [0.3, 0.4]}})
    values = {LR: 0.15, "models.encoders.dropout": 0.4}
    trial = search.with_trial_values(params, values)
    assert search.searched_values(trial) == values
    assert trial.train.common.epochs == 2
    assert trial.models.encoders.width == params.models.encoders.width
