"""A batch in parts has the losses of the whole: one after the other in a process, or side by side under torchrun."""

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


def furthest(one: Path, other: Path) -> float:
    """The largest difference between two histories."""
    pairs = zip(history(one), history(other), strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in a)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("clips", [1, 2, 3, 7, 12])
def test_every_clip_weighs_alike(processes: int, parts: int, clips: int) -> None:
    rows = list(range(100, 100 + clips))
    made = [BatchShare(process, processes, parts).split(rows) for process in range(processes)]
    weights = dict.fromkeys(rows, 0.0)
    for part, weight in (pair for own in made for pair in own):
        for row in part:
            weights[row] += weight / len(part) / processes
    assert all(math.isclose(weight, 1 / clips) for weight in weights.values())
    assert len({len(own) for own in made}) == 1, "processes wait for each other, part by part"
    assert all(part for own in made for part, _ in own)
    if clips >= processes:
        assert sum(len(part) for own in made for part, _ in own) == clips, "none is computed twice"
    assert max(len(own) for own in made) <= parts


@pytest.mark.parametrize("model", ["qamoe", "moe", "concat"])
def test_parts_one_after_the_other_have_the_losses_of_the_whole(train: Any, tmp_path: Path, model: str) -> None:
    for name, share in (("whole", WHOLE_BATCH), ("parts", BatchShare(parts=3))):
        train(tmp_path / name, model, dropout=0.0, share=share)
    assert 0 < furthest(tmp_path / "whole", tmp_path / "parts") < 1e-4


def test_shares_of_a_part_alone_would_be_another_loss(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test above would prove nothing about balance."""
    train(tmp_path / "whole", dropout=0.0)
    as_it_is = moe.balance_loss
    monkeypatch.setattr(moe, "balance_loss", lambda logits, weights, step: as_it_is(logits, weights))
    train(tmp_path / "parts", dropout=0.0, share=BatchShare(parts=3))
    assert furthest(tmp_path / "whole", tmp_path / "parts") > 1e-3


def test_counting_beforehand_draws_nothing(train: Any, tmp_path: Path) -> None:
    """Batches of one clip are one part: the pass that counts may not move the stream of dropout."""
    for name, share in (("whole", WHOLE_BATCH), ("parts", BatchShare(parts=3))):
        train(tmp_path / name, common={"batch_size": 1, "epochs": 2}, dropout=0.3, share=share)
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
