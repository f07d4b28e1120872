"""Clips to be scored: a folder or a manifest, without labels; a bad row affects no other row."""

import os
from pathlib import Path

import pytest

from qamoe.data import inbox
from qamoe.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    for name in ("b.mp4", "inner/a.WAV", "notes.txt"):
        (tmp_path / name).write_bytes(b"content")
    return tmp_path


def test_without_a_manifest_every_media_file_is_a_clip(folder: Path) -> None:
    faults: list[str] = []
    clips = inbox.read(folder, faults)
    assert [clip.clip_id for clip in clips] == ["b.mp4", "inner/a.WAV"]
    assert faults == []
    assert not any(clip.text for clip in clips)


def test_a_manifest_needs_only_paths_and_a_bad_row_affects_no_other(folder: Path) -> None:
    rows = ["path,clip_id,text,start_s,end_s", "b.mp4,,words,,", "b.mp4,second,,0.5,1", "gone.mp4,,,,", "b.mp4,,,2,1"]
    rows += ["../b.mp4,,,,", "b.mp4,second,,,"]
    (folder / "manifest.csv").write_text("\n".join(rows))
    faults: list[str] = []
    clips = inbox.read(folder / "manifest.csv", faults)
    assert [(c.clip_id, c.text, c.start_s, c.end_s) for c in clips] == [
        ("b.mp4", "words", 0.0, None),
        ("second", "", 0.5, 1.0),
    ]
    assert [fault.split(", ")[1][:6] for fault in faults] == ["line 4", "line 5", "line 6", "line 7"]
    for fault, value in zip(faults, ("'gone.mp4'", "end_s 1", "'../b.mp4'", "'second'"), strict=True):
        assert value in fault
    assert "manifest.csv, line 3" in faults[3], "the place of the first clip with this id"


@pytest.mark.parametrize(("content", "named"), [(b"text\nx\n", "column path"), (b"\xff\xfe", "UTF-8")])
def test_an_invalid_manifest_is_rejected(folder: Path, content: bytes, named: str) -> None:
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"manifest\.csv .*{named}"):
        inbox.read(folder, [])
    with pytest.raises(UserError, match="nowhere"):
        inbox.read(folder / "nowhere", [])


def test_a_header_of_a_million_columns_is_refused_at_once(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path," + ",".join(map(str, range(1_000_000))) + "\na.mp4\n")
    with pytest.raises(UserError) as refusal:
        inbox.read(manifest, [])
    assert "1000001" in str(refusal.value)
    assert str(manifest) in str(refusal.value)


def test_a_pipe_is_neither_a_table_nor_a_folder(tmp_path: Path) -> None:
    """It was read as the folder that it lies in."""
    (tmp_path / "a.mp4").touch()
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(UserError, match=r"p\.csv is neither a file nor a folder"):
        inbox.read(tmp_path / "p.csv", [])


def test_a_manifest_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.csv")
    with pytest.raises(UserError, match=r"manifest\.csv"):
        inbox.read(tmp_path, [])
