"""A batch in parts has the losses of the whole batch, within one process or under torchrun."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qamoe.models import moe
from qamoe.training.distributed import WHOLE_BATCH, BatchShare


def history(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between two histories."""
    pairs = zip(history(one), history(other), strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in a)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("clips", [1, 2, 3, 7, 12])
def test_every_clip_has_the_same_weight(processes: int, parts: int, clips: int) -> None:
    rows = list(range(100, 100 + clips))
    by_process = [BatchShare(process, processes, parts).split(rows) for process in range(processes)]
    weights = dict.fromkeys(rows, 0.0)
    for part, weight in (pair for parts_of_process in by_process for pair in parts_of_process):
        for row in part:
            weights[row] += weight / len(part) / processes
    assert all(math.isclose(weight, 1 / clips) for weight in weights.values())
    assert len({len(parts_of_process) for parts_of_process in by_process}) == 1, (
        "every process has as many parts, because processes wait for each other"
    )
    assert all(part for parts_of_process in by_process for part, _ in parts_of_process)
    if clips >= processes:
        assert sum(len(part) for parts_of_process in by_process for part, _ in parts_of_process) == clips, (
            "no clip is computed twice"
        )
    assert max(len(parts_of_process) for parts_of_process in by_process) <= parts


@pytest.mark.integration
@pytest.mark.parametrize("model", ["qamoe", "moe", "concat"])
@pytest.mark.slow
def test_parts_within_a_process_have_the_losses_of_the_whole(train: Any, tmp_path: Path, model: str) -> None:
    for name, share in (("whole", WHOLE_BATCH), ("parts", BatchShare(parts=3))):
        train(tmp_path / name, model, dropout=0.0, share=share)
    assert 0 < largest_difference(tmp_path / "whole", tmp_path / "parts") < 1e-4


@pytest.mark.integration
def test_a_balance_loss_of_each_part_alone_would_differ(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows that the previous test can detect a wrong balance loss."""
    train(tmp_path / "whole", dropout=0.0)
    original = moe.balance_loss
    monkeypatch.setattr(moe, "balance_loss", lambda logits, weights, step: original(logits, weights))
    train(tmp_path / "parts", dropout=0.0, share=BatchShare(parts=3))
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") > 1e-3


@pytest.mark.integration
@pytest.mark.slow
def test_the_counting_pass_does_not_change_the_random_state(train: Any, tmp_path: Path) -> None:
    """A batch of one clip is one part, so the counting pass must not advance the generator of dropout."""
    for name, share in (("whole", WHOLE_BATCH), ("parts", BatchShare(parts=3))):
        train(tmp_path / name, common={"batch_size": 1, "epochs": 2}, dropout=0.3, share=share)
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
