"""Arrow stores: rows are read back unchanged as views of the mapped file, and writing is deterministic."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qamoe.data.arrow_store import BATCH_ROWS, Store, frames_type, write
from qamoe.errors import UserError

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("label", pa.float64()),
        ("text", pa.list_(pa.int32())),
        ("words", pa.list_(pa.string())),
        ("audio", frames_type(3)),
    ]
)
ABOUT = {"split": "train", "rate": 20.0, "modalities": ["text", "audio"]}


def row(i: int) -> dict[str, Any]:
    draws = np.random.default_rng(i)
    return {
        "clip_id": f"clip-{i:05d}",
        "source": f"source-{i % 7}",
        "label": float(draws.normal()),
        "text": draws.integers(0, 30_000, i % 4).astype(np.int32),
        "words": ["wörd"] * (i % 4),
        "audio": draws.standard_normal((i % 5, 3)).astype(np.float32),
    }


def rows(count: int) -> Iterator[dict[str, Any]]:
    return (row(i) for i in range(count))


@pytest.mark.parametrize("count", [1, 10, BATCH_ROWS, 2 * BATCH_ROWS + 1])
def test_rows_are_read_back_unchanged(tmp_path: Path, count: int) -> None:
    path = tmp_path / "deeper" / "s.arrow"
    assert write(path, SCHEMA, rows(count), ABOUT) == count
    store = Store(path)
    assert len(store) == count
    assert store.metadata == ABOUT
    expected = [row(i) for i in range(count)]
    assert store.clip_ids == [e["clip_id"] for e in expected]
    assert store.sources == [e["source"] for e in expected]
    assert store.labels == [e["label"] for e in expected]
    assert [store.value("clip_id", i) for i in reversed(range(count))] == store.clip_ids[::-1]
    assert store.column("words") == [e["words"] for e in expected]
    assert store.lengths("audio").tolist() == [len(e["audio"]) for e in expected]
    assert store.lengths("text").tolist() == [len(e["text"]) for e in expected]
    for i in reversed(range(count)):
        audio, text = store.sequence("audio", i), store.sequence("text", i)
        assert (audio.dtype, audio.shape) == (np.float32, expected[i]["audio"].shape)
        assert audio.tobytes() == expected[i]["audio"].tobytes()
        assert text.tolist() == expected[i]["text"].tolist()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", SCHEMA, rows(BATCH_ROWS + 3), ABOUT)
    write(tmp_path / "b.arrow", SCHEMA, list(rows(BATCH_ROWS + 3)), dict(reversed(ABOUT.items())))
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    write(tmp_path / "c.arrow", SCHEMA, rows(BATCH_ROWS + 2), ABOUT)
    assert (tmp_path / "a.arrow").read_bytes() != (tmp_path / "c.arrow").read_bytes()


def test_sequences_are_read_only_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    write(path, SCHEMA, rows(BATCH_ROWS + 9), ABOUT)
    before = pa.total_allocated_bytes()
    store = Store(path)
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in line.split("-")) for line in maps]
    for i in (3, BATCH_ROWS + 7):
        for name in ("audio", "text"):
            sequence = store.sequence(name, i)
            address = sequence.__array_interface__["data"][0]
            assert len(sequence)
            assert any(low <= address < high for low, high in ranges), "copied out of the map"
            with pytest.raises(ValueError, match="read-only"):
                sequence[0] = 1
    assert pa.total_allocated_bytes() == before


def test_a_store_can_be_empty(tmp_path: Path) -> None:
    assert write(tmp_path / "s.arrow", SCHEMA, (), ABOUT) == 0
    store = Store(tmp_path / "s.arrow")
    assert (len(store), store.clip_ids, store.labels) == (0, [], [])
    assert store.lengths("audio").shape == (0,)
    assert store.metadata == ABOUT
    assert store.schema.field("audio").type == frames_type(3)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    write(path, SCHEMA, rows(3), ABOUT)
    before = path.read_bytes()

    def broken() -> Iterator[dict[str, Any]]:
        yield from rows(BATCH_ROWS + 1)
        raise OSError("the disk is gone")

    with pytest.raises(UserError, match=rf"{path}.*the disk is gone"):
        write(path, SCHEMA, broken(), ABOUT)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_frames_of_another_dimension_are_rejected(tmp_path: Path) -> None:
    """Otherwise four frames of three columns would silently be read back as six frames of two."""
    schema = pa.schema([("frames", frames_type(2))])
    with pytest.raises(ValueError, match=r"\(4, 3\).*\b2\b"):
        write(tmp_path / "s.arrow", schema, [{"frames": np.ones((4, 3), np.float32)}], {})
    assert not (tmp_path / "s.arrow").exists()
