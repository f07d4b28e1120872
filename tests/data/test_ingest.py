"""New clips are added to data/ completely or not at all, only once, and never to the git-tracked remote."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qamoe.config.task import Task
from qamoe.data import manifest
from qamoe.data.clip import drawn_split
from qamoe.data.ingest import Ingested, ingest
from qamoe.errors import UserError

TASK = Task(kind="regression", low=-3, high=3)


def write(folder: Path, *rows: tuple[str, ...], **media: bytes) -> Path:
    """Write a folder with a manifest of rows, and media named by keyword."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in media.items():
        (folder / f"{name}.mp4").write_bytes(content)
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([manifest.COLUMNS, *rows])
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(
        tmp_path / "data",
        ("a", "one", "a.mp4", "0", "1.5", "a film, and more", "1.5", "test"),
        ("b", "two", "a.mp4", "", "", "a dull film", "-1", "train"),
        a=b"first",
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_clips_follow_the_old_ones_and_media_are_named_by_content(data: Path, tmp_path: Path) -> None:
    new = write(
        tmp_path / "new",
        ("c", "one", "x.mp4", "", "", 'so "good"', "2", ""),
        ("d", "three", "x.mp4", "0.5", "1", "", "0", ""),
        ("e", "four", "y.mp4", "", "", "bad", "-3", "valid"),
        x=b"second",
        y=b"third",
    )
    before = (data / "manifest.csv").read_text()
    assert ingest(new, data, TASK) == Ingested(3, 0, False)
    assert (data / "manifest.csv").read_text().startswith(before)
    read = {clip.clip_id: clip for clip in manifest.read(data, TASK).clips}
    assert list(read) == ["a", "b", "c", "d", "e"]
    assert read["c"].split == "test", "the split of its source"
    assert read["d"].split == drawn_split("three")
    assert read["e"].split == "valid"
    whole, part = read["c"].media, read["d"].media
    assert whole is not None
    assert part is not None
    assert (whole.text, part.start_s, part.end_s) == ('so "good"', 0.5, 1.0)
    assert whole.path == part.path
    assert whole.path.read_bytes() == b"second"

    after_first = tree(data)
    again = ingest(new, data, TASK)
    assert (again.new, again.known) == (0, 3)
    assert tree(data) == after_first


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (("a", "nine", "x.mp4", "", "", "other", "1", "test"), "line 3: .*'a'"),
        (("c", "one", "x.mp4", "", "", "", "1", "train"), "line 3: .*'one' .*test .*train"),
        (("c", "nine", "x.mp4", "", "", "", "9", ""), r"line 3: label 9 .*\[-3, 3\]"),
        (("c", "nine", "../x.mp4", "", "", "", "1", ""), r"line 3: .*'\.\./x\.mp4'"),
        (("c", "nine", "gone.mp4", "", "", "", "1", ""), r"line 3: .*'gone\.mp4'"),
    ],
)
def test_an_invalid_row_changes_nothing(data: Path, tmp_path: Path, row: tuple[str, ...], named: str) -> None:
    good = ("g", "seven", "x.mp4", "", "", "good", "1", "")
    new = write(tmp_path / "new", good, row, x=b"second")
    (tmp_path / "data.dvc").write_text("outs:\n- md5: x.dir\n  path: data\n  remote: sample\n")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=rf"manifest\.csv, {named}"):
        ingest(new, data, TASK)
    assert tree(tmp_path) == before


def test_the_audio_track_of_a_clip_is_kept_and_part_of_its_identity(data: Path, tmp_path: Path) -> None:
    row = ("c", "three", "x.mp4", "", "", "words", "1", "train")
    new = write(tmp_path / "new", row, x=b"second")
    table = new / "manifest.csv"

    def name_track(track: str) -> None:
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([(*manifest.COLUMNS, manifest.TRACK), (*row, track)])

    name_track("eng")
    before = tree(data)
    with pytest.raises(UserError, match=r"'eng'.*audio_track; add it there"):
        ingest(new, data, TASK)
    assert tree(data) == before
    header, *lines = (data / "manifest.csv").read_text().splitlines()
    (data / "manifest.csv").write_text("\n".join([f"{header},audio_track", *(f"{line}," for line in lines)]) + "\n")
    assert ingest(new, data, TASK).new == 1
    tracks = {clip.clip_id: clip.media and clip.media.track for clip in manifest.read(data, TASK).clips}
    assert tracks == {"a": "", "b": "", "c": "eng"}
    assert (ingest(new, data, TASK).new, ingest(new, data, TASK).known) == (0, 1)
    name_track("jpn")
    with pytest.raises(UserError, match="line 2: clip id 'c' belongs to another clip"):
        ingest(new, data, TASK)


def test_a_link_into_dvcs_cache_is_replaced_and_not_written_through(data: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    (data / "manifest.csv").rename(cached)
    (data / "manifest.csv").hardlink_to(cached)
    before = cached.read_bytes()
    ingest(write(tmp_path / "new", ("c", "nine", "x.mp4", "", "", "", "1", ""), x=b"second"), data, TASK)
    assert cached.read_bytes() == before
    assert len(manifest.read(data, TASK).clips) == 3


@pytest.mark.slow
def test_a_push_after_an_ingest_leaves_the_sample_remote_as_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((Path(manifest.__file__).parents[3] / "params.yaml").read_text())

    def run(*arguments: str, check: bool = True) -> Any:
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    run("dvc", "init", "--quiet", "--no-scm")
    run("dvc", "remote", "add", "sample", ".dvcstore")
    run("dvc", "add", "data", "--quiet")
    with (tmp_path / "data.dvc").open("a") as file:
        file.write("  remote: sample\n")
    run("dvc", "push", "data.dvc")
    store = tree(tmp_path / ".dvcstore")
    assert store

    new = write(tmp_path / "new", ("c", "nine", "x.mp4", "", "", "", "1", ""), x=b"of a real person")
    output = run("qamoe", "ingest", str(new)).stdout
    assert "remote: sample" in output
    assert "1 new clips, 0 " in output
    assert "dvc add data" in output
    run("dvc", "add", "data", "--quiet")
    assert "sample" not in (tmp_path / "data.dvc").read_text()
    assert run("dvc", "push", check=False).returncode != 0, "no remote is left for it"
    assert tree(tmp_path / ".dvcstore") == store


INGEST = """
import sys
from pathlib import Path
from qamoe.config.task import Task
from qamoe.data.ingest import ingest
print("ready", flush=True)
sys.stdin.readline()
done = ingest(Path(sys.argv[1]), Path(sys.argv[2]), Task(kind="regression", low=-3, high=3))
print(done.new, done.known)
"""


@pytest.mark.integration
def test_two_ingests_at_once_add_every_clip_once(data: Path, tmp_path: Path) -> None:
    rows = [(f"n{i}", f"s{i}", f"m{i}.mp4", "", "", "words", "1", "train") for i in range(40)]
    new = write(tmp_path / "new", *rows, **{f"m{i}": str(i).encode() * 5000 for i in range(40)})
    (data / "media").mkdir()
    (data / "media" / ".ab12.mp4.999999999").write_bytes(b"left by a kill")
    command = [sys.executable, "-c", INGEST, str(new), str(data)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate()[0] for process in both) == ["0 40\n", "40 0\n"]
    assert [clip.clip_id for clip in manifest.read(data, TASK).clips] == ["a", "b", *(f"n{i}" for i in range(40))]
    assert not list((data / "media").glob(".*"))
