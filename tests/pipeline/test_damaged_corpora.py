"""Damaged files in the stage extract: each is read or reported, and no bit of another clip's features changes."""

import csv
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store
from qamoe.data.manifest import COLUMNS
from qamoe.data.synthetic import face, video
from qamoe.data.synthetic.face import Expression, Portrait
from qamoe.errors import UserError
from qamoe.extractors.landmarks import Landmarks
from qamoe.extractors.logmel import LogMel
from qamoe.media.decode import ClipError, NoStream
from qamoe.pipeline import extract
from tests.data.readers.test_mmsa import content
from tests.extractors.test_level import spoken
from tests.fixtures.damage import mutated, ruined
from tests.media.test_decode import write_media

STREAMS = ("audio", "vision")
FEW_AND_MANY = [20, pytest.param(200, marks=pytest.mark.slow)]
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a video of a face, and videos and audio files in other formats, by file name."""
    folder = tmp_path_factory.mktemp("whole")
    portrait = Portrait(face.invent(np.random.default_rng(1)))
    faces = [portrait.draw(Expression(s, 0, 0, 0, 0.2)) for s in np.linspace(-1, 1, 6)]
    voice = spoken(len(faces) * video.SAMPLES_PER_FRAME / 22_050, 22_050)
    video.write(folder / "face.mp4", voice, faces)
    for name in ("clip.mkv", "clip.avi", "clip.ts", "clip.mov", "clip.wav", "clip.mp3"):
        write_media(folder / name, seconds=0.5, streams="a" if name.endswith(("wav", "mp3")) else "av")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def run(params_file: Any, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Extract a corpus in this process into a folder of its own, two workers at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_WORKERS", "2")

    def extract_corpus(kind: str, path: Path, out: str) -> Path:
        changes = {
            "extract.corpus": {"kind": kind, "path": str(path)},
            "extract.audio": {"extractor": "logmel", "rate": 20, "bands": 12},
            "extract.max_problem_share": 1.0,
        }
        extract.run(parameters.load(params_file(changes)), tmp_path / out)
        return tmp_path / out / "extract"

    return extract_corpus


def stored(out: Path) -> dict[str, dict[str, bytes]]:
    """Return frames and token ids as bytes and the row of clips.parquet, by clip id."""
    clips: dict[str, dict[str, bytes]] = {}
    for row in pq.read_table(out / "clips.parquet").to_pylist():
        clips[row["clip_id"]] = {"row": repr(row).encode()}
    for name, column in (("text", "ids"), ("audio", "frames"), ("vision", "frames")):
        store = Store(out / f"{name}.arrow")
        for row_number, clip_id in enumerate(store.clip_ids):
            clips[clip_id][name] = store.sequence(column, row_number).tobytes()
    return clips


def reasons(out: Path) -> dict[tuple[str, str], str]:
    with (out / "problems.csv").open(newline="") as file:
        return {(row["clip_id"], row["modality"]): row["reason"] for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize("mutants", [200])
def test_a_damaged_video_is_read_or_reported_and_no_other_clip_changes(
    whole: dict[str, bytes], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutants: int
) -> None:
    """A worker extracts intact clips after damaged ones; an intact clip must give the same features as alone."""
    data = tmp_path / "data"
    data.mkdir()
    for name, media in whole.items():
        (data / name).write_bytes(media)
    names, files = list(whole), list(whole.values())
    damaged = []
    for seed in range(mutants):
        at = seed // 10 % len(files)
        ending = Path(names[at if seed % 7 else at - 1]).suffix  # every seventh has the suffix of another format
        damaged.append(f"mutant-{seed:03d}{ending}")
        mutant = ruined(files[at], files[at - 1], seed // 2) if seed % 2 else mutated(files[at], seed)
        (data / damaged[-1]).write_bytes(mutant)
    # Clips are extracted in the order of their ids; these ids put the intact clips between the damaged ones.
    rows = [(f"{5 * i:03d}-{n}" if n in whole else n[7:], n) for i, n in enumerate([*whole, *damaged])]
    with (data / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *([i, i, n, "", "", "hello", 0, "train"] for i, n in rows)])
    if mutants < 100:
        monkeypatch.setenv("QAMOE_WORKERS", "1")
    out = run("clips", data, "out")

    clips, problems = stored(out), reasons(out)
    for clip_id, name in rows[: len(whole)]:
        for modality, alone in (("audio", LogMel(20, 12)), ("vision", Landmarks(5))):
            try:
                expected, reason = alone.extract(data / name).tobytes(), None
            except ClipError as problem:
                expected, reason = b"", str(problem) if not isinstance(problem, NoStream) else None
            assert clips[clip_id][modality] == expected, f"{name}, {modality}"
            assert problems.get((clip_id, modality)) == reason
    assert clips["000-clip.avi"]["audio"]
    assert any(clips[clip_id]["vision"] for clip_id, name in rows if name == "face.mp4")
    failures = ("the extractor ", "took longer")
    assert [line for line in problems.items() if line[1].startswith(failures) or "\n" in line[1]] == []
    for clip_id, _ in rows[len(whole) :]:
        unexplained = [m for m in STREAMS if not clips[clip_id][m] and (clip_id, m) not in problems]
        assert unexplained != list(STREAMS), f"{clip_id} has no features and no problem is reported"
    assert len({clip_id for clip_id, _ in problems}) > mutants / 3


@pytest.mark.parametrize("mutants", FEW_AND_MANY)
def test_a_damaged_pickle_is_refused_or_stored_and_leaves_the_stores_intact(
    run: Run, tmp_path: Path, mutants: int
) -> None:
    """Half of the damages hit only the numbers of one clip; then no bit of the other clips may change."""
    splits = content()
    for columns in splits.values():  # small arrays, to make damage to the structure likely
        del columns["text"]
        columns["audio"], columns["vision"] = columns["audio"][:, :, :1], columns["vision"][:, :, :1]
    path = tmp_path / "mosi.pkl"
    intact = pickle.dumps(splits, protocol=4)
    path.write_bytes(intact)
    first = stored(run("mmsa", path, "first"))
    numbers = splits["train"]["audio"].tobytes()
    begin, size = intact.index(numbers), len(numbers) // len(splits["train"]["id"])
    refused = 0
    for seed in range(mutants):
        clip_number = seed % len(splits["train"]["id"])
        flipped = bytearray(intact)
        if seed % 2:
            at = begin + clip_number * size
            flipped[at : at + size] = ruined(intact[at : at + size], b"", 10 * seed + 1)  # flips bits
        path.write_bytes(flipped if seed % 2 else mutated(intact, seed))
        shutil.copytree(tmp_path / "first", tmp_path / "out", dirs_exist_ok=True)
        message = ""
        try:
            run("mmsa", path, "out")
        except UserError as refusal:
            message = str(refusal)
        now = stored(tmp_path / "out/extract")
        if message:
            refused += 1
            assert now == first, "the earlier stores must stay"
            assert "\n" not in message
        if seed % 2:
            damaged = splits["train"]["id"][clip_number]
            assert {name: clip for name, clip in now.items() if name != damaged} == {
                name: clip for name, clip in first.items() if name != damaged
            }
    assert mutants / 8 < refused <= mutants / 2
