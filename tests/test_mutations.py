"""Mutants of pickles and checkpoints are read or refused with one sentence: no crash, hang, traceback or flood."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.mutations import checkpoint_mutants, pickle_mutants, run, sample_pickle

pytestmark = pytest.mark.integration


def test_few_mutants_of_a_pickle() -> None:
    _check_pickles(60, 1)


@pytest.mark.slow
@pytest.mark.endurance
def test_mutants_of_a_pickle(cases: Callable[[int], int]) -> None:
    _check_pickles(cases(2000), 2)


def _check_pickles(count: int, seed: int) -> None:
    mutants = pickle_mutants(count, seed)
    assert len(set(mutants)) > count / 2
    assert sample_pickle() not in mutants
    assert run("pickle", [{"m.pkl": content} for content in mutants]) == []


def test_few_mutants_of_a_checkpoint(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    assert run("checkpoint", checkpoint_mutants(folder, 20, 1), folder) == []


@pytest.mark.slow
@pytest.mark.endurance
def test_mutants_of_a_checkpoint(tiny_checkpoint: Any, tmp_path: Path, cases: Callable[[int], int]) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    assert run("checkpoint", checkpoint_mutants(folder, cases(2000), 2), folder) == []


def test_the_runner_sees_what_may_not_happen() -> None:
    problems = run("broken", [{"a": b"KeyError"}, {"a": b"kill"}, {"a": b"write"}, {"a": b""}])
    assert [problem.split()[2] for problem in problems] == ["0:", "1:", "2:"]
    for problem, named in zip(problems, ("KeyError", "ended with -9", "changed"), strict=True):
        assert named in problem
