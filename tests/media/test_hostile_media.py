"""Damaged media cost their clip alone: no crash of the stage, no hang, no exception that a reader did not foresee."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import media_mutations


@pytest.mark.integration
def test_few_mutants_of_media_give_frames_or_a_reason(tmp_path: Path) -> None:
    assert media_mutations.faults(tmp_path, 12, seed=5) == []


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.endurance
def test_mutants_of_media_give_frames_or_a_reason(cases: Callable[[int], int], tmp_path: Path) -> None:
    assert media_mutations.faults(tmp_path, cases(2000), seed=6) == []


def test_the_same_seed_gives_the_same_mutants(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    whole = media_mutations.undamaged(tmp_path)
    first, second = (
        [path.read_bytes() for path in media_mutations.mutants(whole, tmp_path / folder, 30, 3)]
        for folder in ("a", "b")
    )
    assert first == second
    assert len(set(first)) > 20
