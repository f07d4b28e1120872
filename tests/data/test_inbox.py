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
    clips = inbox.read(folder, faults, [])
    assert [clip.clip_id for clip in clips] == ["b.mp4", "inner/a.WAV"]
    assert faults == []
    assert not any(clip.text for clip in clips)


def test_a_manifest_needs_only_paths_and_a_bad_row_affects_no_other(folder: Path) -> None:
    rows = ["path,clip_id,text,start_s,end_s", "b.mp4,,words,,", "b.mp4,second,,0.5,1", "gone.mp4,,,,", "b.mp4,,,2,1"]
    rows += ["../b.mp4,,,,", "b.mp4,second,,,"]
    (folder / "manifest.csv").write_text("\n".join(rows))
    faults: list[str] = []
    clips = inbox.read(folder / "manifest.csv", faults, [])
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
        inbox.read(folder, [], [])
    with pytest.raises(UserError, match="nowhere"):
        inbox.read(folder / "nowhere", [], [])


def test_a_header_of_a_million_columns_is_refused_at_once(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path," + ",".join(map(str, range(1_000_000))) + "\na.mp4\n")
    with pytest.raises(UserError) as refusal:
        inbox.read(manifest, [], [])
    assert "1000001" in str(refusal.value)
    assert str(manifest) in str(refusal.value)


def test_a_pipe_is_neither_a_table_nor_a_folder(tmp_path: Path) -> None:
    """It was read as the folder that it lies in."""
    (tmp_path / "a.mp4").touch()
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(UserError, match=r"p\.csv is neither a file nor a folder"):
        inbox.read(tmp_path / "p.csv", [], [])


def test_a_manifest_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.csv")
    with pytest.raises(UserError, match=r"manifest\.csv"):
        inbox.read(tmp_path, [], [])


@pytest.mark.parametrize(
    "suffix", [".MTS", ".m2ts", ".oga", ".gif", ".caf", ".vob", ".opus", ".MOV", ".3gpp", ".weba", ".aifc"]
)
def test_media_of_cameras_and_messengers_are_clips(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"content")
    left_out: list[str] = []
    assert [clip.clip_id for clip in inbox.read(tmp_path, [], left_out)] == [f"a{suffix}"]
    assert left_out == []


def test_a_folder_says_what_it_leaves_out_and_skips_hidden_files(tmp_path: Path) -> None:
    """macOS adds ._a.mp4, which is no video, beside a.mp4; NAS and version control add folders."""
    names = [
        "a.mp4",
        "a.txt",
        "a.en.srt",
        "a.csv",
        "._a.mp4",
        ".hidden.mp4",
        ".git/b.mp4",
        "__MACOSX/c.mp4",
        "Thumbs.db",
    ]
    names += ["inner/talk.docx", "inner/lost.srt", "inner/d.opus"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    faults: list[str] = []
    left_out: list[str] = []
    assert [clip.clip_id for clip in inbox.read(tmp_path, faults, left_out)] == ["a.mp4", "inner/d.opus"]
    (sentence,) = left_out
    for value in (str(tmp_path), " 3 files", "Thumbs.db", "inner/talk.docx", "inner/lost.srt"):
        assert value in sentence
    assert "a.en.srt" not in sentence
    for number in range(20):
        (tmp_path / f"{number}.pdf").touch()
    left_out = []
    inbox.read(tmp_path, faults, left_out)
    assert " 23 files" in left_out[0]
    assert "18 more" in left_out[0]
    assert faults == []


def test_a_row_may_name_an_audio_track(folder: Path) -> None:
    (folder / "manifest.csv").write_text("path,audio_track\nb.mp4,eng\ninner/a.WAV,\n")
    assert [clip.track for clip in inbox.read(folder, [], [])] == ["eng", ""]
