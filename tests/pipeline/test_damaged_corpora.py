"""Damaged files through extract: each is read or reported, and no other clip's features change by a bit."""

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
from tests.fixtures.damage import mutated, ruined
from tests.media.test_decode import write_media

STREAMS = ("audio", "vision")
FEW_AND_MANY = [20, pytest.param(200, marks=pytest.mark.slow)]
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A film with a face, and films and sounds in other formats, by their names."""
    folder = tmp_path_factory.mktemp("whole")
    portrait = Portrait(face.invent(np.random.default_rng(1)))
    faces = [portrait.draw(Expression(s, 0, 0, 0, 0.2)) for s in np.linspace(-1, 1, 6)]
    time = np.arange(len(faces) * video.SAMPLES_PER_FRAME) / 22_050
    video.write(folder / "face.mp4", np.sin(2 * np.pi * 220 * time).astype(np.float32) / 4, faces)
    for name in ("clip.mkv", "clip.avi", "clip.ts", "clip.mov", "clip.wav", "clip.mp3"):
        write_media(folder / name, seconds=0.5, streams="a" if name.endswith(("wav", "mp3")) else "av")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def run(params_file: Any, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Extract a corpus in this process into a folder of its own, two workers at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_WORKERS", "2")

    def of(kind: str, path: Path, out: str) -> Path:
        changes = {
            "extract.corpus": {"kind": kind, "path": str(path)},
            "extract.audio": {"extractor": "logmel", "rate": 20, "bands": 12},
            "extract.max_problem_share": 1.0,
        }
        extract.run(parameters.load(params_file(changes)), tmp_path / out)
        return tmp_path / out / "extract"

    return of


def stored(out: Path) -> dict[str, dict[str, bytes]]:
    """All that a run says of each clip, by its id: frames and token ids as bytes, and the row of clips.parquet."""
    found: dict[str, dict[str, bytes]] = {}
    for row in pq.read_table(out / "clips.parquet").to_pylist():
        found[row["clip_id"]] = {"row": repr(row).encode()}
    for name, column in (("text", "ids"), ("audio", "frames"), ("vision", "frames")):
        store = Store(out / f"{name}.arrow")
        for place, clip_id in enumerate(store.clip_ids):
            found[clip_id][name] = store.sequence(column, place).tobytes()
    return found


def reasons(out: Path) -> dict[tuple[str, str], str]:
    with (out / "problems.csv").open(newline="") as file:
        return {(row["clip_id"], row["modality"]): row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("mutants", FEW_AND_MANY)
def test_a_damaged_film_is_read_or_reported_and_no_other_clip_changes(
    whole: dict[str, bytes], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutants: int
) -> None:
    """A worker makes whole clips after damaged ones; expected of them is what each gives alone."""
    data = tmp_path / "data"
    data.mkdir()
    for name, content_ in whole.items():
        (data / name).write_bytes(content_)
    names, films = list(whole), list(whole.values())
    damaged = []
    for seed in range(mutants):
        at = seed // 10 % len(films)
        ending = Path(names[at if seed % 7 else at - 1]).suffix  # now and then that of another format
        damaged.append(f"mutant-{seed:03d}{ending}")
        mutant = ruined(films[at], films[at - 1], seed // 2) if seed % 2 else mutated(films[at], seed)
        (data / damaged[-1]).write_bytes(mutant)
    # The whole ones stand among the others, since clips are taken in the order of their ids.
    rows = [(f"{5 * i:03d}-{n}" if n in whole else n[7:], n) for i, n in enumerate([*whole, *damaged])]
    with (data / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *([i, i, n, "", "", "hello", 0, "train"] for i, n in rows)])
    if mutants < 100:
        monkeypatch.setenv("QAMOE_WORKERS", "1")
    out = run("clips", data, "out")

    found, told = stored(out), reasons(out)
    for clip_id, name in rows[: len(whole)]:
        for modality, alone in (("audio", LogMel(20, 12)), ("vision", Landmarks(5))):
            try:
                expected, reason = alone.extract(data / name).tobytes(), None
            except ClipError as problem:
                expected, reason = b"", str(problem) if not isinstance(problem, NoStream) else None
            assert found[clip_id][modality] == expected, f"{name}, {modality}"
            assert told.get((clip_id, modality)) == reason
    assert found["000-clip.avi"]["audio"]
    assert any(found[clip_id]["vision"] for clip_id, name in rows if name == "face.mp4")
    failures = ("the extractor ", "took longer")
    assert [line for line in told.items() if line[1].startswith(failures) or "\n" in line[1]] == []
    for clip_id, _ in rows[len(whole) :]:
        absent = [m for m in STREAMS if not found[clip_id][m] and (clip_id, m) not in told]
        assert absent != list(STREAMS), f"{clip_id} has no features and is in no list"
    assert len({clip_id for clip_id, _ in told}) > mutants / 3


@pytest.mark.parametrize("mutants", FEW_AND_MANY)
def test_a_damaged_pickle_is_refused_or_stored_and_takes_no_store_with_it(
    run: Run, tmp_path: Path, mutants: int
) -> None:
    """Half of the damages hit the numbers of one clip: then every other clip stays what it was, bit for bit."""
    made = content()
    for columns in made.values():  # small, so that the damages hit the structure
        del columns["text"]
        columns["audio"], columns["vision"] = columns["audio"][:, :, :1], columns["vision"][:, :, :1]
    path = tmp_path / "mosi.pkl"
    intact = pickle.dumps(made, protocol=4)
    path.write_bytes(intact)
    first = stored(run("mmsa", path, "first"))
    numbers = made["train"]["audio"].tobytes()
    begin, size = intact.index(numbers), len(numbers) // len(made["train"]["id"])
    refused = 0
    for seed in range(mutants):
        place = seed % len(made["train"]["id"])
        inside = bytearray(intact)
        if seed % 2:
            at = begin + place * size
            inside[at : at + size] = ruined(intact[at : at + size], b"", 10 * seed + 1)  # bits flipped
        path.write_bytes(inside if seed % 2 else mutated(intact, seed))
        shutil.copytree(tmp_path / "first", tmp_path / "out", dirs_exist_ok=True)
        sentence = ""
        try:
            run("mmsa", path, "out")
        except UserError as refusal:
            sentence = str(refusal)
        now = stored(tmp_path / "out/extract")
        if sentence:
            refused += 1
            assert now == first, "what was there before stays"
            assert "\n" not in sentence
        if seed % 2:
            hit = made["train"]["id"][place]
            assert {name: of for name, of in now.items() if name != hit} == {
                name: of for name, of in first.items() if name != hit
            }
    assert mutants / 8 < refused <= mutants / 2
