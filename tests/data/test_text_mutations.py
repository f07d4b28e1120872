"""Mutated manifests, parameter files and subtitles are read or refused in a sentence; nothing crashes or hangs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.text_mutations import MANIFEST, faults, mutated

pytestmark = pytest.mark.integration
KINDS = ("manifest", "params", "subtitles")


def test_a_seed_always_gives_the_same_mutation() -> None:
    assert [mutated(MANIFEST, seed) for seed in range(50)] == [mutated(MANIFEST, seed) for seed in range(50)]
    assert len({mutated(MANIFEST, seed) for seed in range(50)}) > 45


@pytest.mark.parametrize("kind", KINDS)
def test_few_mutations_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert faults(kind, tmp_path, 20) == []


@pytest.mark.slow
@pytest.mark.endurance
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutations_are_read_or_refused(kind: str, cases: Callable[[int], int], tmp_path: Path) -> None:
    assert faults(kind, tmp_path, cases(2000), first=30) == []
