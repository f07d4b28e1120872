"""MIntRec with its pickles in either public place, with its clips, and with text only."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.config.task import Task
from qamoe.data.readers.mintrec import CLASSES, read
from qamoe.errors import UserError
from tests.fixtures.research_data import shared_data

pytestmark = pytest.mark.integration  # a process interprets each pickle
TASK = Task(kind="classification", classes=CLASSES)
ROWS = {
    "train": [
        ("S05", "E16", "329", 'the "slushie" stuff, inside of these.', "Inform"),
        ("S06", "E06", "589", "we are the manager.", "Introduce"),
        ("S05", "E16", "330", "sorry!", "Apologise"),
    ],
    "dev": [("S05", "E16", "12", "can you help me?", "Ask for help")],
    "test": [("S04", "E20", "7", "naïve, that's all", "Taunt"), ("S05", "E16", "8", "hello", "Greet")],
}
IDS = ["S05_E16_329", "S06_E06_589", "S05_E16_330", "S05_E16_12", "S04_E20_7", "S05_E16_8"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        lines = [("season", "episode", "clip", "text", "label"), *rows]
        (tmp_path / f"{name}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def features() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return audio tensors (T, 768), and video lists of (1, 256); a clip without a detected speaker has no video."""
    draws = np.random.default_rng(0)
    audio = {clip: torch.tensor(draws.standard_normal((i + 2, 768)), dtype=torch.float32) for i, clip in enumerate(IDS)}
    video = {clip: list(draws.standard_normal((i + 1, 1, 256)).astype(np.float32)) for i, clip in enumerate(IDS)}
    del video[IDS[2]]
    return audio, video


def store(folder: Path, name: str, content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content))


def test_without_media_the_corpus_has_only_text(folder: Path) -> None:
    corpus = read(folder, TASK)
    rows = [
        (split, *row) for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")) for row in ROWS[name]
    ]
    assert corpus.modalities == ("text",)
    assert [clip.clip_id for clip in corpus.clips] == IDS
    assert [(c.split, c.text, CLASSES[int(c.label)]) for c in corpus.clips] == [(r[0], r[4], r[5]) for r in rows]
    assert [clip.source for clip in corpus.clips] == [f"{r[0]}-{r[1]}_{r[2]}" for r in rows]
    assert all(clip.media is None and not clip.frames for clip in corpus.clips)


@pytest.mark.parametrize("folders", [("audio_data", "video_data"), (".", ".")])
def test_pickles_are_read_exactly(folder: Path, folders: tuple[str, str]) -> None:
    audio, video = features()
    store(folder / folders[0], "audio_feats.pkl", audio)
    store(folder / folders[1], "video_feats.pkl", video)
    corpus = read(folder, TASK)
    assert corpus.modalities == ("text", "audio", "vision")
    for clip in corpus.clips:
        np.testing.assert_array_equal(clip.frames["audio"], audio[clip.clip_id].numpy())
        if clip.clip_id in video:
            np.testing.assert_array_equal(clip.frames["vision"], np.concatenate(video[clip.clip_id]))
        else:
            assert clip.frames["vision"].shape == (0, 256), "a clip without a speaker stays, without frames"
        assert all(frames.dtype == np.float32 for frames in clip.frames.values())


def test_the_clips_themselves_are_media(folder: Path) -> None:
    (folder / "raw_data").mkdir()
    corpus = read(folder, TASK)
    assert corpus.modalities == ("text", "audio", "vision")
    media = corpus.clips[0].media
    assert media is not None
    assert media.path == folder / "raw_data/S05/E16/329.mp4"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("Introduce", "Apologize", r", line 3: label 'Apologize' .*Complain, Praise, Apo"),
        ("season\t", "", r" .*column season; .*season, episode, clip, text, label"),
        ("S06\t", "../..\t", r", line 3: season .*'\.\./\.\.'"),
        ("S06\tE06\t589", "S05\tE16\t329", r", line 3: .*'S05_E16_329'.*line 2"),
    ],
)
def test_an_invalid_table_is_rejected(folder: Path, old: str, new: str, named: str) -> None:
    path = folder / "train.tsv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"train\.tsv{named}"):
        read(folder, TASK)


def test_invalid_files_are_rejected(folder: Path) -> None:
    audio, _ = features()
    for content, named in (
        ([1], r"audio_feats\.pkl .*dict"),
        ({IDS[0]: "text"}, r"audio_feats\.pkl, clip S05_E16_329.*frames"),
        ({IDS[0]: np.zeros((2, 3, 4))}, r"audio_feats\.pkl, clip S05_E16_329: .*\(2, 3, 4\)"),
        ({IDS[0]: np.zeros((2, 3)), IDS[1]: np.zeros((2, 4))}, r"audio_feats\.pkl: .*\[3, 4\]"),
        ({f"x{key}": value for key, value in audio.items()}, rf"{folder}: .*audio pickle"),
    ):
        store(folder, "audio_feats.pkl", content)
        with pytest.raises(UserError, match=named):
            read(folder, TASK)
    (folder / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"/dev\.tsv .*MIntRec"):
        read(folder, TASK)


real = shared_data() / "text" / "mintrec"


@pytest.mark.real_data
@pytest.mark.skipif(not real.is_dir(), reason=f"{real} does not exist")
def test_the_real_text_is_read_completely() -> None:
    corpus = read(real, TASK)
    assert [sum(clip.split == s for clip in corpus.clips) for s in ("train", "valid", "test")] == [1334, 445, 445]
    assert {CLASSES[int(clip.label)] for clip in corpus.clips} == set(CLASSES)
    first = corpus.clips[0]
    assert (first.clip_id, first.source, CLASSES[int(first.label)]) == ("S05_E16_329", "train-S05_E16", "Inform")
    assert first.text == "apparently, teens are drinking the slushie stuff inside of these for the alcohol."
