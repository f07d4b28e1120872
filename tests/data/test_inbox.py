"""Clips to be scored: a folder or a manifest, without labels; a bad row costs itself."""

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
    found = inbox.read(folder, faults)
    assert [clip.clip_id for clip in found] == ["b.mp4", "inner/a.WAV"]
    assert faults == []
    assert not any(clip.text for clip in found)


def test_a_manifest_needs_paths_alone_and_a_bad_row_costs_itself(folder: Path) -> None:
    rows = ["path,clip_id,text,start_s,end_s", "b.mp4,,words,,", "b.mp4,second,,0.5,1", "gone.mp4,,,,", "b.mp4,,,2,1"]
    rows += ["../b.mp4,,,,", "b.mp4,second,,,"]
    (folder / "manifest.csv").write_text("\n".join(rows))
    faults: list[str] = []
    found = inbox.read(folder / "manifest.csv", faults)
    assert [(c.clip_id, c.text, c.start_s, c.end_s) for c in found] == [
        ("b.mp4", "words", 0.0, None),
        ("second", "", 0.5, 1.0),
    ]
    assert [fault.split(", ")[1][:6] for fault in faults] == ["line 4", "line 5", "line 6", "line 7"]
    assert "outside the corpus folder" in faults[2]


@pytest.mark.parametrize(("content", "sentence"), [(b"text\nx\n", "lacks the column path"), (b"\xff\xfe", "UTF-8")])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes, sentence: str) -> None:
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        inbox.read(folder, [])
    with pytest.raises(UserError, match="nothing at"):
        inbox.read(folder / "nowhere", [])
