"""The stage train: finished seeds are kept, unlisted ones deleted, and a kill at any moment changes no bit."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qamoe.config import params as parameters
from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.errors import UserError
from qamoe.pipeline import train

FILES = ("history.jsonl", "model.json", "weights.safetensors")
RESUMED = re.compile(r"qamoe, seed 1\b.* after epoch \d")


class Training:
    """Runs the stage in this process: training({"seeds.qamoe": [1, 2]}, model="qamoe") returns the folder of models.

    `seeds` are the trained and kept seeds of the last run.
    """

    def __init__(self, params_file: Callable[..., Path], out: Path) -> None:
        self.params_file, self.out = params_file, out
        self.seeds: dict[str, list[str]] = {}

    def __call__(self, changes: dict[str, Any] | None = None, model: str | None = "qamoe") -> Path:
        params = parameters.load(self.params_file({"train.common.epochs": 2} | (changes or {})))
        self.seeds = train.run(params, self.out, model)["seeds"]
        return self.out / "train"


@pytest.fixture
def trained(preprocessed: Path, params_file: Any, environment: Any, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Return the stage with a text encoder that needs no weights."""
    from qamoe.models import text_encoder_frozen

    def encode(ids: torch.Tensor, mask: torch.Tensor, encoder: str) -> torch.Tensor:
        return (
            torch.sin(ids[..., None] * torch.arange(1, text_encoder_frozen.WIDTH + 1) / text_encoder_frozen.WIDTH)
            * mask[..., None]
        )

    monkeypatch.setattr(text_encoder_frozen, "encode", encode)
    return Training(params_file, preprocessed)


def stamp(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_finished_seeds_are_kept_and_unlisted_ones_are_deleted(trained: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = trained({"seeds.qamoe": [1, 2]}) / "qamoe"
    assert trained.seeds == {"trained": ["qamoe/1", "qamoe/2"], "kept": []}
    before = stamp(folder / "1")
    assert sorted(before) == list(FILES)

    trained({"seeds.qamoe": [1, 2, 3]})
    assert trained.seeds == {"trained": ["qamoe/3"], "kept": ["qamoe/1", "qamoe/2"]}
    assert stamp(folder / "1") == before, "a finished seed is not written again"
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]

    trained({"seeds.qamoe": [3, 1]})
    assert trained.seeds == {"trained": [], "kept": ["qamoe/3", "qamoe/1"]}
    assert stamp(folder / "1") == before
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3"]

    trained({"seeds.qamoe": [1, 3], "train.common.lr": 0.02})
    assert trained.seeds == {"trained": ["qamoe/1", "qamoe/3"], "kept": []}
    assert stamp(folder / "1") != before, "other parameters train the seed again"


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_checkpoint_is_trained_again(trained: Any, damage: str) -> None:
    folder = trained(model="mean") / "mean/1"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.json").write_text(damage)
    trained(model="mean")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_parameters_of_other_models_do_not_train_a_finished_one_again(
    trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qamoe")
    trained()
    caplog.clear()
    trained({"models.concat.hidden": 9, "evaluate.draws": 1, "registry.draws": 2})
    assert trained.seeds == {"trained": [], "kept": ["qamoe/1"]}


def test_other_training_data_train_a_model_again(
    trained: Any, preprocessed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qamoe")
    first = trained() / "qamoe/1/weights.safetensors"
    weights = first.read_bytes()
    caplog.clear()
    path = preprocessed / "preprocess/stats.json"
    stats = json.loads(path.read_text()) | {"target_mean": 0.5}
    path.write_text(json.dumps(stats))
    trained()
    assert trained.seeds == {"trained": ["qamoe/1"], "kept": []}
    assert first.read_bytes() != weights


def test_a_frozen_encoder_folder_is_read_and_part_of_the_digest(
    preprocessed: Path, params_file: Any, environment: Any, tiny_encoder: Any, tmp_path: Path
) -> None:
    from qamoe.models import checkpoint

    encoder = tiny_encoder(tmp_path / "encoder")
    changes = {"train.common.epochs": 1, "seeds.qamoe": [1], "models.encoders.text.encoder": str(encoder)}
    params = parameters.load(params_file(changes))
    train.run(params, preprocessed, "qamoe")
    trained: Any = checkpoint.load(preprocessed / "train/qamoe/1")
    assert trained.frozen_encoder == str(encoder)
    assert trained.model.encode.encoders["text"].project.in_features == 9  # 8 states and the confidence of words
    _, valid, _ = train.open_splits(params, train.read_stats(preprocessed), preprocessed, "qamoe")
    ids, states = (
        DegradedSplit(valid.store, valid.views, valid.modalities, valid.references, s) for s in (None, valid.states)
    )
    rows = range(6)
    from_ids, from_states = (trained.predict(views.batch(1, rows)).value for views in (ids, states))
    assert torch.allclose(from_ids, from_states, atol=1e-5)
    digest = train.training_digests(params, "qamoe", "data")["params"]
    tiny_encoder(encoder, initializer_range=0.5)
    assert train.training_digests(params, "qamoe", "data")["params"] != digest


def test_an_encoder_of_another_vocabulary_is_refused(
    preprocessed: Path, params_file: Any, environment: Any, tiny_encoder: Any, tmp_path: Path
) -> None:
    stats = json.loads((preprocessed / "preprocess/stats.json").read_text())
    stats["text"]["vocabulary_sha256"] = "0" * 64
    (preprocessed / "preprocess/stats.json").write_text(json.dumps(stats))
    for changes in ({}, {"models.encoders.text.encoder": str(tiny_encoder(tmp_path / "encoder"))}):
        with pytest.raises(UserError, match=r"vocabulary.*extract\.text"):
            train.run(parameters.load(params_file(changes)), preprocessed, "qamoe")


def test_the_test_split_is_not_opened(trained: Any, preprocessed: Path) -> None:
    """Training works without a test split, and also with one that cannot be read."""
    assert not (preprocessed / "preprocess/test.arrow").exists()
    (preprocessed / "preprocess/test.arrow").mkdir()
    (preprocessed / "preprocess/gate.arrow").unlink()
    folder = trained(model=None)
    assert sorted(p.parent.parent.name for p in folder.glob("*/*/model.json")) == ["concat", "mean", "qamoe"]


def test_only_the_selected_model_is_trained(trained: Any) -> None:
    folder = trained(model="mean")
    assert sorted(p.name for p in folder.iterdir()) == ["mean"]


def test_specialists_train_on_their_own_views_and_delete_them(
    trained: Any, preprocessed: Path, params_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qamoe.training import trainer

    seen: dict[str, tuple[Any, Any]] = {}

    class RecordingTrainer(trainer.Trainer):
        def __init__(self, job: trainer.TrainingJob, on_epoch: Any) -> None:
            seen[job.model] = job.train.views, [job.cells.views[index] for index in job.cells.selection]
            super().__init__(job, on_epoch)

    monkeypatch.setattr(trainer, "Trainer", RecordingTrainer)
    seeds = {"qamoe": [1], "specialist-missing-03": [1], "specialist-clean": [1]}
    folder = trained({"seeds": seeds}, model=None)
    assert sorted(p.parent.parent.name for p in folder.glob("*/*/model.json")) == sorted(seeds)
    for views in seen["specialist-missing-03"]:
        assert {(view.kinds, view.severities) for view in views} == {(("missing",) * 3, (0.3,) * 3)}
    for views in seen["specialist-clean"]:
        assert {view.severities for view in views} == {(0.0,) * 3}
    assert all(view.kinds is None for view in seen["qamoe"][0])
    states = sorted(p.name for p in (folder.parent / "states/train").iterdir())
    assert len(states) == 4, "two files per split, of the views that most models share"
    assert all(name.startswith(("text-train-", "text-valid-")) for name in states)
    weights = {name: (folder / name / "1/weights.safetensors").read_bytes() for name in seeds}
    assert len(set(weights.values())) == 3


def test_a_variant_with_other_views_trains_on_them_and_leaves_the_text_of_the_others(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qamoe.models import checkpoint
    from qamoe.training import trainer

    jobs: dict[str, trainer.TrainingJob] = {}

    class RecordingTrainer(trainer.Trainer):
        def __init__(self, job: trainer.TrainingJob, on_epoch: Any) -> None:
            jobs[job.model] = job
            super().__init__(job, on_epoch)

    monkeypatch.setattr(trainer, "Trainer", RecordingTrainer)
    folder = trained({"seeds": {"qamoe": [1]}}, model=None)
    shared = stamp(folder.parent / "states/train")
    seeds = {"qamoe--missing": [1], "qamoe--fast": [1], "qamoe": [1]}
    blocks = {
        "models.qamoe--missing": {
            "active": 1,
            "train": {"degrade": {"kinds": ["missing"]}, "selection": {"severities": {"noise": None}}},
        },
        "models.qamoe--fast": {"train": {"batch_size": 6, "lr": 0.02}},
    }
    assert trained({"seeds": seeds, **blocks}, model=None) == folder
    assert trained.seeds == {"trained": ["qamoe--missing/1", "qamoe--fast/1"], "kept": ["qamoe/1"]}
    assert stamp(folder.parent / "states/train") == shared, "not written again, not deleted, and no further folder"
    own = jobs["qamoe--missing"]
    assert {view.drawn for view in own.train.views} == {("missing",)}
    assert {view.kinds for view in own.cells.views[:2]} == {("clean",) * 3, ("missing",) * 3}
    assert len(own.cells.selection) == 2
    fast = jobs["qamoe--fast"]
    assert (fast.common.batch_size, fast.common.lr, jobs["qamoe"].common.batch_size) == (6, 0.02, 4)
    assert fast.train.views == jobs["qamoe"].train.views
    loaded = {name: checkpoint.load(folder / name / "1") for name in seeds}
    assert loaded["qamoe--missing"].config["models"]["qamoe"]["active"] == 1
    assert loaded["qamoe--missing"].config["train"]["degrade"]["kinds"] == ["missing"]
    assert loaded["qamoe--fast"].config["train"]["lr"] == 0.02
    assert loaded["qamoe"].config["models"]["qamoe"]["active"] == 2

    changed = blocks | {"models.qamoe--fast": {"train": {"batch_size": 6, "lr": 0.03}}}
    trained({"seeds": seeds, **changed}, model=None)
    assert trained.seeds["trained"] == ["qamoe--fast/1"]
    trained({"seeds": seeds, **changed, "models.qamoe.hidden": 9}, model="qamoe--fast")
    assert trained.seeds["trained"] == ["qamoe--fast/1"], "the block of the base counts too"


def test_training_on_some_clips_reads_them_as_the_whole_split_has_them(
    trained: Any, preprocessed: Path, params_file: Any
) -> None:
    stats = train.read_stats(preprocessed)

    def opened(changes: dict[str, Any]) -> DegradedSplit:
        split, valid, _ = train.open_splits(
            parameters.load(params_file({"train.common.degrade.swap": False} | changes)), stats, preprocessed, "concat"
        )
        assert len(valid.store) == 6
        return split

    whole, some = opened({}), opened({"train.common.clips": 5})
    assert (len(whole.store), len(some.store), len(some.store.labels)) == (12, 5, 5)
    rows = [whole.store.clip_ids.index(clip) for clip in some.store.clip_ids]
    for view in range(2):
        expected, batch = whole.batch(view, rows), some.batch(view, range(5))
        assert batch.target is not None
        assert expected.target is not None
        assert torch.equal(batch.target, expected.target)
        for modality, x in batch.x.items():
            assert torch.equal(x[batch.mask[modality]], expected.x[modality][expected.mask[modality]]), modality
    assert some.store.lengths("audio").tolist() == whole.store.lengths("audio")[rows].tolist()

    folder = trained({"train.common.clips": 5}, model="concat")
    first = (folder / "concat/1/weights.safetensors").read_bytes()
    trained({"train.common.clips": 12}, model="concat")
    assert trained.seeds["trained"] == ["concat/1"]
    twelve = (folder / "concat/1/weights.safetensors").read_bytes()
    trained(model="concat")
    assert (folder / "concat/1/weights.safetensors").read_bytes() == twelve != first, "12 clips are all"
    with pytest.raises(UserError, match=r"train\.common\.clips is 13\b.*\b12\b"):
        trained({"train.common.clips": 13}, model="concat")
    variant = {"seeds": {"concat--few": [1]}, "models.concat--few": {"train": {"clips": 13}}}
    with pytest.raises(UserError, match=r"models\.concat--few\.train\.clips is 13\b.*\b12\b"):
        trained(variant, model="concat--few")


def test_under_dvc_a_variant_must_repeat_its_base(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@mean--a")
    changes = {"seeds": {"mean--a": [1], "concat--a": [1]}, "models.mean--a": {}, "models.concat--a": {}}
    trained(changes, model="mean--a")
    with pytest.raises(UserError, match=r"models\.concat--a lacks hidden\b.*`concat--a: \{<<: \*concat"):
        trained(changes, model="concat--a")
    trained(changes | {"models.concat--a": {"hidden": 8}}, model="concat--a")


def test_an_empty_validation_split_or_missing_statistics_are_refused(
    trained: Any, preprocessed: Path, params_file: Any
) -> None:
    (preprocessed / "preprocess/valid.arrow").write_bytes((preprocessed / "preprocess/gate.arrow").read_bytes())
    with pytest.raises(UserError, match=r"valid\.arrow"):
        trained()
    (preprocessed / "preprocess/stats.json").unlink()
    with pytest.raises(UserError, match=r"stats\.json .*stage preprocess"):
        trained()
    assert not (preprocessed / "train/qamoe").exists()


def results(folder: Path) -> tuple[bytes, Any, list[Any]]:
    """Return weights, config and history."""
    assert sorted(p.name for p in folder.iterdir()) == list(FILES)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return (folder / "weights.safetensors").read_bytes(), json.loads((folder / "model.json").read_text()), history


@pytest.mark.slow
def test_seeds_give_the_same_bits_alone_and_in_parallel(
    trained: Any, preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained({"seeds.qamoe": [1, 2]}) / "qamoe"
    alone = {seed: results(folder / seed) for seed in ("1", "2")}
    folder.rename(tmp_path / "alone")
    monkeypatch.setenv("QAMOE_WORKERS", "2")
    trained({"seeds.qamoe": [1, 2]})
    assert {seed: results(folder / seed) for seed in ("1", "2")} == alone


@pytest.mark.slow
def test_a_killed_stage_resumes_to_the_same_bits(
    stage: Any, preprocessed: Path, params_file: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("--model", "qamoe", "--params", params_file(), "--out", preprocessed)
    whole = stage("train", *arguments)
    assert whole.returncode == 0, whole.stderr
    folder = preprocessed / "train/qamoe/1"
    expected = results(folder)
    assert len(expected[2]) == 6
    (preprocessed / "train").rename(tmp_path / "whole")

    def killed_when(reached: Callable[[str], bool]) -> list[str]:
        """Start the stage, kill it at the first line for which `reached` is true, and return the lines up to it."""
        command = [sys.executable, "-m", "qamoe", "run", "train", *map(str, arguments)]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        lines: list[str] = []
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if reached(line):
                    process.kill()
                    break
            assert process.wait() == -9, lines
        return lines

    killed_when(lambda line: line.startswith("train: "))  # before or while the text is encoded
    for epoch in (1, 3, 5):  # around the time when the state of this epoch is written; that of the epoch before exists
        lines = killed_when(lambda line, epoch=epoch: f"epoch {epoch} of 6," in line)  # type: ignore[misc]
        assert (folder / "resume.pt").exists() or epoch == 1
        assert epoch < 5 or any(RESUMED.search(line) for line in lines), lines
        assert not (folder / "model.json").exists()
    last = stage("train", *arguments)
    assert last.returncode == 0, last.stderr
    assert RESUMED.search(last.stderr)
    assert results(folder) == expected


def test_classes_are_trained_and_calibrated(trained: Any, preprocessed: Path) -> None:
    """Train the same clips with four classes, from class numbers in the stores to a temperature in model.json."""
    from qamoe.data import arrow_store

    for split in ("train", "valid"):
        path = preprocessed / "preprocess" / f"{split}.arrow"
        store = arrow_store.Store(path)
        rows = [
            {"clip_id": store.clip_ids[i], "source": store.sources[i], "label": float(i % 4)}
            | {m: store.sequence(m, i) for m in ("text", "audio", "vision")}
            for i in range(len(store))
        ]
        arrow_store.write(path, store.schema, rows, {"split": split})
    path = preprocessed / "preprocess/stats.json"
    stats = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("target_")}
    task = {"kind": "classification", "low": -3.0, "high": 3.0, "classes": ["angry", "sad", "neutral", "happy"]}
    path.write_text(json.dumps(stats | {"task": task, "class_shares": [0.25] * 4}))
    folder = trained(model=None)
    configs = {p.parent.parent.name: json.loads(p.read_text()) for p in folder.glob("*/*/model.json")}
    assert sorted(configs) == ["concat", "mean", "qamoe"]
    assert all(list(config["calibration"]) == ["temperature"] for config in configs.values())
    assert 1.3 < configs["mean"]["selection"] < 1.5, "about log 4, the entropy of four classes"
    assert sorted(configs["qamoe"]["trust"]) == ["audio", "text", "vision"]
