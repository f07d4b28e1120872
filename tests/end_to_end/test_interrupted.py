"""Commands that are killed, meet a full disk or run twice at once leave what they leave when nothing disturbs them."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.fixtures import interruptions
from tests.fixtures.interruptions import OPERATIONS, PAIRS, Checkout

pytestmark = [pytest.mark.slow, pytest.mark.endurance]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, empty_records: Path) -> Checkout:
    return interruptions.build(tmp_path_factory.mktemp("interrupted"), empty_records)


def _faults(cases: Iterable[list[str]]) -> list[str]:
    """Return the faults of all cases; print each when it is found, because the cases take hours."""
    found = []
    for faults in cases:
        print(*faults, sep="\n", end="\n" if faults else "", flush=True)
        found += faults
    return found


@pytest.mark.parametrize(("name", "count"), [(name, 11 if name == "dvc repro" else 27) for name in OPERATIONS])
def test_a_kill_loses_nothing(checkout: Checkout, cases: Callable[[int], int], name: str, count: int) -> None:
    draws = random.Random(f"1.{name}")
    assert _faults(interruptions.killed(checkout, name, draws) for _ in range(cases(count))) == []


def test_a_full_disk_loses_nothing(checkout: Checkout, cases: Callable[[int], int]) -> None:
    draws = random.Random(1)
    assert _faults(interruptions.filled(checkout, draws) for _ in range(cases(40))) == []


def test_two_at_once_lose_nothing(checkout: Checkout, cases: Callable[[int], int]) -> None:
    drawn = random.Random(1).sample(2 * PAIRS, cases(2 * len(PAIRS)))
    assert _faults(interruptions.together(checkout, *pair) for pair in drawn) == []
