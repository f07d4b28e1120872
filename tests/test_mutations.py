"""Mutants of pickles and checkpoints are read or refused with one sentence: no crash, hang, traceback or flood."""

from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.mutations import checkpoint_mutants, pickle_mutants, run, sample_pickle

pytestmark = pytest.mark.integration
COUNTS = [pytest.param(60, 1, id="60"), pytest.param(200, 2, id="200", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("count", "seed"), COUNTS)
def test_mutants_of_a_pickle(count: int, seed: int) -> None:
    mutants = pickle_mutants(count, seed)
    assert len(set(mutants)) > count / 2
    assert sample_pickle() not in mutants
    assert run("pickle", [{"m.pkl": content} for content in mutants]) == []


@pytest.mark.parametrize(("count", "seed"), COUNTS)
def test_mutants_of_a_checkpoint(tiny_checkpoint: Any, tmp_path: Path, count: int, seed: int) -> None:
    folder = tiny_checkpoint(tmp_path / "1")
    assert run("checkpoint", checkpoint_mutants(folder, count, seed), folder) == []


def test_the_runner_sees_what_may_not_happen() -> None:
    problems = run("broken", [{"a": b"KeyError"}, {"a": b"kill"}, {"a": b"write"}, {"a": b""}])
    assert [problem.split()[2] for problem in problems] == ["0:", "1:", "2:"]
    for problem, named in zip(problems, ("KeyError", "ended with -9", "changed"), strict=True):
        assert named in problem
