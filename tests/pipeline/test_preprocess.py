"""Preprocess: statistics of the training split only, always four splits, and corpora without a modality."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qamoe.config import params as parameters
from qamoe.data import arrow_store
from qamoe.errors import UserError
from qamoe.pipeline import preprocess
from tests.fixtures.no_copies import write_no_copies

IDS = pa.schema([("clip_id", pa.string()), ("ids", pa.list_(pa.int32())), ("confidence", pa.list_(pa.float32()))])
FRAMES = pa.schema([("clip_id", pa.string()), ("frames", arrow_store.frames_type(2))])
SPLITS = ("train", "train", "train", "valid", "valid", "test")


def clip(i: int, **changes: Any) -> dict[str, Any]:
    draws = np.random.default_rng(i)
    content = {
        "clip_id": f"clip-{i}",
        "source": f"source-{i}",
        "split": SPLITS[i],
        "label": float(i) - 2,
        "ids": np.array([101, 2000 + i, 2000, 102], np.int32),
        "audio": draws.standard_normal((3 + i, 2)).astype(np.float32) * 4 + 9,
        "vision": draws.standard_normal((2, 2)).astype(np.float32),
    }
    return content | changes


@pytest.fixture
def preprocessed(tmp_path: Path, params_file: Any) -> Any:
    """Write the output of extract for some clips, and preprocess it."""

    def run(
        clips: list[dict[str, Any]], modalities: tuple[str, ...] = ("text", "audio", "vision"), **limits: int
    ) -> SimpleNamespace:
        folder = tmp_path / "out/extract"
        metadata = {
            "unk": 100,
            "special": [0, 101, 102],
            "vocabulary": 30522,
            "rate": 20.0,
            "vocabulary_sha256": "v" * 64,
        }
        words = [c | {"confidence": np.linspace(0, 1, len(c["ids"]))} for c in clips]
        arrow_store.write(folder / "text.arrow", IDS, words, metadata)
        for m in ("audio", "vision"):
            rows = [{"clip_id": c["clip_id"], "frames": c[m]} for c in clips] if m in modalities else []
            arrow_store.write(folder / f"{m}.arrow", FRAMES, rows, metadata)
        write_no_copies(folder)
        task = {"kind": "regression", "low": -3.0, "high": 3.0, "classes": []}
        corpus = {"about": {"corpus": "clips"}, "generated": False, "task": task, "modalities": list(modalities)}
        columns = {name: [c[name] for c in clips] for name in ("clip_id", "source", "split", "label")}
        table = pa.table(columns | {"seconds": pa.array([None] * len(clips), pa.float64())})
        pq.write_table(table.replace_schema_metadata({"qamoe": json.dumps(corpus)}), folder / "clips.parquet")
        params = parameters.load(params_file({f"preprocess.max_frames.{m}": n for m, n in limits.items()}))
        preprocess.run(params, tmp_path / "out")
        out = tmp_path / "out/preprocess"
        stores = {split: arrow_store.Store(out / f"{split}.arrow") for split in arrow_store.SPLITS}
        return SimpleNamespace(folder=out, stats=json.loads((out / "stats.json").read_text()), **stores)

    return run


def test_splits_are_standardised_by_the_training_clips(preprocessed: Any) -> None:
    clips = [clip(i) for i in range(6)]
    splits = preprocessed(clips)
    assert splits.train.clip_ids == ["clip-0", "clip-1", "clip-2"]
    assert splits.valid.clip_ids == ["clip-3", "clip-4"]
    assert splits.test.clip_ids == ["clip-5"]
    assert len(splits.gate) == 0, "a corpus without a gate split still has the file"
    assert splits.stats["clips"] == {"train": 3, "valid": 2, "gate": 0, "test": 1}
    training = np.concatenate([c["audio"] for c in clips[:3]]).astype(np.float64)
    expected = (clips[5]["audio"] - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(splits.test.sequence("audio", 0), expected, atol=1e-5)
    assert splits.test.sequence("text", 0).tolist() == [101, 2005, 2000, 102]
    assert (splits.stats["target_mean"], splits.stats["target_std"]) == pytest.approx((-1.0, np.std([-2, -1, 0])))
    assert splits.stats["text"]["frequencies"] == [[2000, 4], [2001, 1], [2002, 1]], (
        "without [CLS], [SEP] and other splits"
    )


def test_only_training_clips_change_statistics_and_training_split(preprocessed: Any) -> None:
    first = preprocessed([clip(i) for i in range(6)])
    before = {name: (first.folder / name).read_bytes() for name in ("train.arrow", "stats.json")}
    strange = {"audio": np.full((4, 2), 1e6, np.float32), "ids": np.array([101, 9999, 102], np.int32), "label": 3.0}
    other = preprocessed([clip(i) if i < 3 else clip(i, **strange) for i in range(6)])
    assert {name: (other.folder / name).read_bytes() for name in before} == before


def test_long_clips_are_cut(preprocessed: Any) -> None:
    splits = preprocessed([clip(i) for i in range(6)], audio=4, text=3)
    assert splits.valid.lengths("audio").tolist() == [4, 4]
    assert splits.valid.sequence("text", 0).tolist() == [101, 2003, 2000]
    assert splits.valid.sequence("confidence", 0) == pytest.approx([0, 1 / 3, 2 / 3])


def test_numbers_that_are_not_finite_are_counted_and_zeroed(preprocessed: Any) -> None:
    damaged = clip(1)
    damaged["audio"][0, 0], damaged["audio"][1, 1] = np.nan, np.inf
    splits = preprocessed([clip(0), damaged, *(clip(i) for i in range(2, 6))])
    assert splits.stats["audio"]["unfit"] == 2
    assert splits.train.sequence("audio", 1)[0, 0] == splits.train.sequence("audio", 1)[1, 1] == 0


def test_a_corpus_without_a_modality_has_an_empty_column(preprocessed: Any) -> None:
    splits = preprocessed([clip(i) for i in range(6)], modalities=("text", "audio"))
    assert splits.stats["modalities"] == ["text", "audio"]
    assert "vision" not in splits.stats
    assert splits.train.lengths("vision").tolist() == [0, 0, 0]


@pytest.mark.parametrize("vision", [np.zeros((0, 2), np.float32), np.ones((3, 2), np.float32)])
def test_a_modality_that_is_empty_or_constant_in_training_is_dropped(preprocessed: Any, vision: np.ndarray) -> None:
    """Clips without video, or a camera image that never changes."""
    splits = preprocessed([clip(i, vision=vision) for i in range(6)])
    assert splits.stats["modalities"] == ["text", "audio"]
    assert splits.train.lengths("vision").tolist() == [0, 0, 0]


def test_the_same_input_gives_the_same_bytes(preprocessed: Any) -> None:
    def content() -> dict[str, bytes]:
        folder = preprocessed([clip(i) for i in range(6)]).folder
        return {str(path): path.read_bytes() for path in folder.rglob("*.*")}

    assert content() == content()


@pytest.mark.parametrize(
    ("clips", "values"),
    [
        ([clip(3), clip(4), clip(5)], "split train"),
        ([clip(0), clip(1, clip_id="clip-0")], "'clip-0'"),
        ([clip(0), clip(3, source="source-0")], "'source-0'"),
        ([clip(0), clip(1, label=float("nan"))], "nan.*'clip-1'"),
    ],
)
def test_inconsistent_clips_are_refused(
    preprocessed: Any, clips: list[dict[str, Any]], values: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"clips\.parquet.*{values}"):
        preprocessed(clips)
    assert not (tmp_path / "out/preprocess").exists()


def test_a_store_of_other_clips_is_refused(preprocessed: Any, tmp_path: Path, params_file: Any) -> None:
    preprocessed([clip(i) for i in range(6)])
    rows = [{"clip_id": f"other-{i}", "frames": np.zeros((1, 2))} for i in range(6)]
    arrow_store.write(tmp_path / "out/extract/audio.arrow", FRAMES, rows, {})
    with pytest.raises(UserError, match=r"audio\.arrow.*clips\.parquet"):
        preprocess.run(parameters.load(params_file()), tmp_path / "out")
