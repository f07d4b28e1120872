"""The training loop: a seed gives the same bits, interrupted or not, and the best epoch becomes the checkpoint."""

import itertools
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.models.factory import MODELS
from qamoe.models.model import Model
from qamoe.training import trainer
from qamoe.training.selection import SplitPredictions, predictions, selection_value
from qamoe.training.trainer import RESUME, epochs_without_gain, learning_rate, objective


class Stopped(Exception):
    """Stands in for a kill."""


def stop_at(epoch: int) -> Any:
    def on_epoch(line: dict[str, Any]) -> None:
        if line["epoch"] == epoch:
            raise Stopped

    return on_epoch


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a training. DVC identifies outputs by their bytes, so they must be equal."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config_and_history(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return config and history."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    config: Any = checkpoint.read_config(folder)
    return config or {}, history


@pytest.mark.integration
@pytest.mark.parametrize("model", [*MODELS, "specialist-missing-03"])
def test_the_same_seed_gives_the_same_bits(train: Any, tmp_path: Path, model: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, model, seed, common={"epochs": 2})
    assert files(tmp_path / "a") == files(tmp_path / "b")
    if model != "mean":
        assert files(tmp_path / "a")["weights.safetensors"] != files(tmp_path / "c")["weights.safetensors"]
        losses = {key for line in config_and_history(tmp_path / "a")[1] for key in line if key.startswith("losses.")}
        of_baselines = {"precision": {"probe"}, "moe": {"balance", "router_z"}}
        of_qamoe = {"probe", "severity", "balance", "router_z"}
        quality = of_qamoe if model.startswith(("qamoe", "oracle", "specialist")) else set()
        expected = {"task", "variance"} | of_baselines.get(model, quality)
        expected = {"paper": {"task"}, "paper-public": {"task", "balance"}}.get(model, expected)
        assert losses == {f"losses.{name}" for name in expected}


@pytest.mark.integration
def test_every_epoch_takes_every_clip_once_in_its_own_order(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []

    def recorded(*arguments: Any) -> list[np.ndarray]:
        batches = dealt(*arguments)
        orders.append([row for batch in batches for row in batch])
        return batches

    dealt = DegradedSplit.batches
    monkeypatch.setattr(DegradedSplit, "batches", recorded)
    for seed in (1, 2):
        train(tmp_path / str(seed), "concat", seed, common={"epochs": 2})
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4, "the order depends on seed and epoch"


@pytest.mark.integration
def test_earlier_random_draws_do_not_change_a_training(train: Any, whole: Path, tmp_path: Path) -> None:
    torch.rand(17)
    train(tmp_path)
    assert files(tmp_path) == files(whole)


@pytest.mark.integration
@pytest.mark.parametrize("stops", [(1,), (5,), (2, 2, 4)])
def test_a_resumed_training_gives_the_same_bits(
    train: Any, whole: Path, tmp_path: Path, stops: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    caplog.set_level(logging.INFO, "qamoe")
    for stop in stops:
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", on_epoch=stop_at(stop))
        assert checkpoint.read_config(tmp_path / "stopped") is None
    train(tmp_path / "stopped", on_epoch=lambda line: seen.append(line["epoch"]))
    assert files(tmp_path / "stopped") == files(whole)
    assert seen == list(range(stops[-1], 6)), "only unfinished epochs are run again"
    if stops[-1] > 1:
        assert re.search(rf"qamoe, seed 1: .*\b{stops[-1] - 1}$", caplog.text, re.MULTILINE)
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == [
        "history.jsonl",
        "model.json",
        "weights.safetensors",
    ]


PLATEAU = {"epochs": 9, "schedule": "plateau", "warmup_share": 0.05, "patience": 9}


@pytest.mark.integration
@pytest.mark.parametrize("stops", [(2,), (5,), (4, 5, 8)])
def test_a_resumed_training_with_halved_rates_gives_the_same_bits(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """No epoch after the first improves by that much, so the rate is halved after epochs 4 and 7."""
    monkeypatch.setattr(trainer, "_GAIN", 10.0)
    peaks: dict[str, list[float]] = {"whole": [], "stopped": []}
    running = "whole"

    def recorded(step: int, steps: int, common: Any, peak: float) -> float:
        peaks[running].append(peak / common.lr)
        return learning_rate(step, steps, common, peak)

    monkeypatch.setattr(trainer, "learning_rate", recorded)
    train(tmp_path / "whole", "concat", common=PLATEAU)
    running = "stopped"
    for stop in stops:
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", "concat", common=PLATEAU, on_epoch=stop_at(stop))
    train(tmp_path / "stopped", "concat", common=PLATEAU)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    per_epoch = len(peaks["whole"]) // 9
    assert peaks["whole"] == [1.0] * 4 * per_epoch + [0.5] * 3 * per_epoch + [0.25] * 2 * per_epoch
    assert peaks["stopped"][-per_epoch:] == [0.25] * per_epoch


@pytest.mark.integration
def test_a_plateau_ends_the_training_although_a_later_epoch_is_kept(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.4, 0.39995, 0.39992, 0.41, 0.3, 0.2])
    monkeypatch.setattr(trainer, "selection_value", lambda *_: next(values))
    train(tmp_path, "concat", common=PLATEAU | {"patience": 3})
    config, history = config_and_history(tmp_path)
    assert [line["valid"] for line in history] == [0.5, 0.4, 0.39995, 0.39992, 0.41]
    assert (config["best_epoch"], config["selection"]) == (4, 0.39992)


@pytest.mark.integration
def test_a_training_killed_between_its_last_epoch_and_its_checkpoint_is_finished(
    train: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(Stopped):
            train(tmp_path / "killed")
    train(tmp_path / "killed", on_epoch=stop_at(1))
    assert files(tmp_path / "killed") == files(whole)


@pytest.mark.integration
@pytest.mark.parametrize("changed", ["params", "data", "code"])
def test_a_state_with_other_digests_is_ignored_with_a_log_line(
    train: Any, setting: Any, whole: Path, tmp_path: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = setting.digests | {changed: "other"}
    with pytest.raises(Stopped):
        train(tmp_path, digests=other, on_epoch=stop_at(2), common={"lr": 0.02})
    caplog.set_level(logging.INFO, "qamoe")
    train(tmp_path)
    assert re.search(rf"qamoe, seed 1: .*\b{changed}$", caplog.text, re.MULTILINE)
    assert files(tmp_path) == files(whole)


@pytest.mark.integration
def test_temporary_files_of_a_killed_training_are_deleted(train: Any, tmp_path: Path) -> None:
    """The folder is an output of the pipeline: DVC stores and shares every file in it."""
    for name in (f".{RESUME}.99999", ".weights.safetensors.99999"):
        (tmp_path / name).write_bytes(b"half")
    train(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "model.json", "weights.safetensors"]


@pytest.mark.integration
def test_the_best_epoch_becomes_the_checkpoint(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.9, 0.5, 0.7])
    weights: list[dict[str, torch.Tensor]] = []

    def recorded(model: Model, *rest: Any) -> SplitPredictions:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return predictions(model, *rest)

    monkeypatch.setattr(trainer, "selection_value", lambda *_: next(values))
    monkeypatch.setattr(trainer, "predictions", recorded)
    train(tmp_path, common={"epochs": 3})
    config, history = config_and_history(tmp_path)
    assert (config["best_epoch"], config["selection"]) == (2, 0.5)
    assert [line["valid"] for line in history] == [0.9, 0.5, 0.7]
    saved = checkpoint.load(tmp_path).model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in weights[1].items())
    assert any(not torch.equal(saved[name], value) for name, value in weights[2].items())


def test_a_checkpoint_of_an_unfinished_training_is_loaded_only_as_one(
    train: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, trainers = iter([0.9, 0.5, 0.7]), []
    whole = trainer.Trainer.__init__

    def recorded(self: trainer.Trainer, *arguments: Any) -> None:
        whole(self, *arguments)
        trainers.append(self)

    def stop(line: dict[str, Any]) -> None:
        assert trainers[0].ended() == (line["epoch"] == 3)
        if line["epoch"] == 3:
            for which in ("best", "last"):
                trainers[0].save_unfinished(tmp_path / which, which)

    monkeypatch.setattr(trainer, "selection_value", lambda *_: next(values))
    monkeypatch.setattr(trainer.Trainer, "__init__", recorded)
    train(tmp_path / "whole", common={"epochs": 3}, on_epoch=stop)
    finished: Any = checkpoint.load(tmp_path / "whole")
    for which, epoch, value in (("best", 2, 0.5), ("last", 3, 0.7)):
        with pytest.raises(UserError, match=rf"{which}/model.json.*epoch {epoch}"):
            checkpoint.load(tmp_path / which)
        loaded: Any = checkpoint.load(tmp_path / which, unfinished=True)
        assert (loaded.config["best_epoch"], loaded.config["selection"]) == (epoch, value)
        batch = setting.valid.batch(0, range(4))
        same = torch.equal(loaded.predict(batch).value, finished.predict(batch).value)
        assert same == (which == "best"), "the best epoch becomes the finished checkpoint"


def test_the_selection_value_is_that_of_the_checkpoint(setting: Any, whole: Path) -> None:
    predicted = predictions(checkpoint.load(whole).model, setting.valid, setting.cells.selection, 8, "cpu")
    config, history = config_and_history(whole)
    assert selection_value(predicted, setting.cells) == pytest.approx(config["selection"], abs=1e-6)
    assert config["selection"] == min(line["valid"] for line in history)


@pytest.mark.integration
@pytest.mark.parametrize("schedule", ["plateau", "cosine", "linear"])
def test_patience_ends_a_training_whose_rate_does_not_fall_by_itself(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    values = [0.9, 0.5, 0.7, 0.6, 0.55, 0.1]
    left = iter(values)
    monkeypatch.setattr(trainer, "selection_value", lambda *_: next(left))
    train(tmp_path, common={"epochs": 6, "patience": 2, "schedule": schedule})
    config, history = config_and_history(tmp_path)
    stops = schedule == "plateau"
    assert [line["valid"] for line in history] == (values[:4] if stops else values)
    assert (config["best_epoch"], config["selection"]) == ((2, 0.5) if stops else (6, 0.1))


@pytest.mark.integration
@pytest.mark.slow
def test_training_learns_from_audio(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "mean", "mean")
    train(tmp_path / "qamoe", common={"epochs": 25, "patience": 25})
    config, history = config_and_history(tmp_path / "qamoe")
    assert history[-1]["losses.task"] < 0.7 * history[0]["losses.task"]
    assert config["selection"] < config_and_history(tmp_path / "mean")[0]["selection"]
    assert set(history[0]) == {"epoch", "loss", "valid"} | {
        f"losses.{name}" for name in ("task", "variance", "probe", "severity", "balance", "router_z")
    }


def test_the_config_has_everything_that_prediction_needs(setting: Any, whole: Path) -> None:
    config = config_and_history(whole)[0]
    assert (config["model"], config["seed"], config["digests"]) == ("qamoe", 1, setting.digests)
    assert config["modalities"] == ["text", "audio", "vision"]
    assert config["stats"] == setting.stats
    sigmas = config["calibration"]["sigmas"]
    assert list(sigmas) == ["0.5", "0.8", "0.9", "0.95"]
    assert sorted(sigmas.values()) == list(sigmas.values())


def test_trust_is_anchored_at_the_median_r_of_clean_and_of_fully_degraded_clips(setting: Any, whole: Path) -> None:
    trained, cells = checkpoint.load(whole), setting.cells
    clean: Any = predictions(trained.model, setting.valid, cells.clean, 8, "cpu").r
    fully_degraded: Any = predictions(trained.model, setting.valid, cells.fully_degraded, 8, "cpu").r
    for column, modality in enumerate(trained.config["modalities"]):
        present = setting.valid.store.lengths(modality) > 0  # some clips of this store lack a modality
        high, low = (float(np.median(r[:, present, column])) for r in (clean, fully_degraded))
        assert abs(high - low) > 1e-4
        anchors = trained.config["trust"][modality]
        assert (anchors["clean"], anchors["fully_degraded"]) == (pytest.approx(high), pytest.approx(low))
        assert anchors["rescaled"] == (low < high)


def test_intervals_have_their_coverage_on_the_selection_cells(setting: Any, whole: Path) -> None:
    trained = checkpoint.load(whole)
    predicted: Any = predictions(trained.model, setting.valid, setting.cells.selection, 8, "cpu")
    scores = np.abs(predicted.value - predicted.target) / np.sqrt(predicted.variance)
    for level, reach in trained.config["calibration"]["sigmas"].items():
        share = (scores <= reach + 1e-5).mean()
        assert float(level) <= share <= float(level) + 0.1


def test_a_diverging_training_is_refused(
    train: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qamoe.errors import UserError

    monkeypatch.setattr(trainer, "selection_value", lambda *_: math.nan)
    with pytest.raises(UserError, match=rf"qamoe, seed 1.*epoch 1\b.*{setting.params.train.common.lr:g}"):
        train(tmp_path, common={"epochs": 2})


def test_the_learning_rate_warms_up_and_falls_to_zero(setting: Any) -> None:
    common = setting.params.train.common.model_copy(update={"lr": 0.1, "warmup_share": 0.1})
    rates = [learning_rate(step, 100, common) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    at_once = common.model_copy(update={"warmup_share": 0.0})
    assert learning_rate(0, 100, at_once) == pytest.approx(0.1)


def test_a_plateau_keeps_the_rate_after_the_warm_up(setting: Any) -> None:
    changes = {"lr": 0.1, "warmup_share": 0.1, "schedule": "plateau"}
    common = setting.params.train.common.model_copy(update=changes)
    rates = [learning_rate(step, 100, common) for step in range(100)]
    assert rates == pytest.approx([0.01 * (i + 1) for i in range(10)] + [0.1] * 90)
    assert learning_rate(50, 100, common, 0.025) == 0.025


def test_an_epoch_gains_if_it_is_lower_by_1e_4_than_the_last_that_did() -> None:
    values = [1.0, 0.99995, 0.99985, 0.9998, 0.9, 0.95, 0.89995, 0.8]
    assert epochs_without_gain(values) == [0, 1, 0, 1, 0, 1, 2, 0]
    assert epochs_without_gain([0.5, 0.6, 0.7, 0.5, 0.4999]) == [0, 1, 2, 3, 4]
    assert epochs_without_gain([]) == []


def test_losses_are_weighted_by_the_parameters(setting: Any) -> None:
    common = setting.params.train.common
    losses = {name: torch.tensor(value) for name, value in {"task": 2.0, "variance": 3.0, "probe": 5.0}.items()}
    expected = 2.0 + 3.0 * common.loss.variance + 5.0 * common.loss.probe
    assert objective(losses, common, {}).item() == pytest.approx(expected)
    own = {"probe": 0.25, "gate_entropy": 4.0}
    losses["gate_entropy"] = torch.tensor(7.0)
    expected = 2.0 + 3.0 * common.loss.variance + 5.0 * 0.25 + 7.0 * 4.0
    assert objective(losses, common, own).item() == pytest.approx(expected), "a model's own weights come first"
