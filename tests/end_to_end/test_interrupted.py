"""Commands that are killed, meet a full disk or run twice at once leave what they leave when nothing disturbs them."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import interruptions
from tests.fixtures.interruptions import OPERATIONS, PAIRS, Checkout

pytestmark = [pytest.mark.slow, pytest.mark.endurance]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, empty_records: Path) -> Checkout:
    return interruptions.build(tmp_path_factory.mktemp("interrupted"), empty_records)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_loses_nothing(checkout: Checkout, cases: Callable[[int], int], name: str) -> None:
    draws = random.Random(f"1.{name}")
    faults = [interruptions.killed(checkout, name, draws) for _ in range(cases(25))]
    assert faults == [[]] * len(faults)


def test_a_full_disk_loses_nothing(checkout: Checkout, cases: Callable[[int], int]) -> None:
    draws = random.Random(1)
    faults = [interruptions.filled(checkout, draws) for _ in range(cases(40))]
    assert faults == [[]] * len(faults)


def test_two_at_once_lose_nothing(checkout: Checkout, cases: Callable[[int], int]) -> None:
    drawn = random.Random(1).sample(2 * PAIRS, cases(2 * len(PAIRS)))
    faults = [interruptions.together(checkout, *pair) for pair in drawn]
    assert faults == [[]] * len(faults)
