"""MMSA pickles in the layouts that its data_loader reads: aligned without lengths, unaligned with them."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.corpora import mmsa
from qamoe.corpora.mmsa import read
from qamoe.errors import Refused
from qamoe.params import Task

REGRESSION = Task(kind="regression", low=-3, high=3)
COUNTS = {"train": 4, "valid": 2, "test": 3}
TOKENS, AUDIO, VISION = 8, 12, 10  # the padded lengths of an unaligned file
Content = dict[str, dict[str, Any]]


def split(name: str, count: int, aligned: bool) -> dict[str, Any]:
    """One split's columns, padded behind as the published files are."""
    draws = np.random.default_rng(count)
    words = draws.integers(1, TOKENS - 1, count)  # tokens without CLS and SEP
    bert = np.zeros((count, 3, TOKENS), np.int64)
    for i, n in enumerate(words):
        bert[i, 0, : n + 2] = [101, *draws.integers(1000, 9000, n), 102]
        bert[i, 1, : n + 2] = 1
    lengths = {"audio": draws.integers(1, AUDIO, count), "vision": draws.integers(1, VISION, count)}
    if aligned:
        lengths = dict.fromkeys(lengths, words + 2)
    columns: dict[str, Any] = {
        "id": [f"video{name}{i // 2}$_${i}" for i in range(count)],
        "raw_text": np.array([f"text {i}" for i in range(count)], object),
        "text": draws.standard_normal((count, TOKENS, 768)).astype(np.float32),
        "text_bert": bert,
        "regression_labels": draws.uniform(-3, 3, count).astype(np.float32),
        "classification_labels": np.zeros(count),
        "annotations": ["Positive"] * count,
    }
    for modality, longest, size in (("audio", AUDIO, 5), ("vision", VISION, 20)):
        x = draws.standard_normal((count, TOKENS if aligned else longest, size))
        for i, n in enumerate(lengths[modality]):
            x[i, n:] = 0
        columns[modality] = x
        if not aligned:
            columns[f"{modality}_lengths"] = lengths[modality].tolist()
    return columns


def content(aligned: bool = False) -> Content:
    return {name: split(name, count, aligned) for name, count in COUNTS.items()}


def stored(path: Path, made: Any) -> Path:
    path.write_bytes(pickle.dumps(made, protocol=4))
    return path


def dropped(made: Content, *columns: str) -> Content:
    return {name: {k: v for k, v in split.items() if k not in columns} for name, split in made.items()}


@pytest.mark.parametrize("aligned", [False, True])
def test_clips_come_back_with_their_own_lengths(tmp_path: Path, aligned: bool) -> None:
    made = content(aligned)
    corpus = read(stored(tmp_path / "mosi.pkl", made), REGRESSION)
    assert corpus.modalities == ("text", "audio", "vision")
    assert [c.split for c in corpus.clips] == [name for name, count in COUNTS.items() for _ in range(count)]
    clips = iter(corpus.clips)
    for name, columns in made.items():
        for i in range(COUNTS[name]):
            clip = next(clips)
            n_tokens = int(columns["text_bert"][i, 1].sum())
            assert clip.clip_id == columns["id"][i]
            assert clip.source == f"video{name}{i // 2}"
            assert clip.text == f"text {i}"
            assert clip.label == pytest.approx(float(columns["regression_labels"][i]), abs=1e-6)
            assert clip.tokens is not None
            assert clip.tokens.tolist() == columns["text_bert"][i, 0, :n_tokens].tolist()
            for modality in ("audio", "vision"):
                n = n_tokens if aligned else columns[f"{modality}_lengths"][i]
                frames = clip.frames[modality]
                assert frames.dtype == np.float32
                assert frames.tolist() == columns[modality][i, :n].astype(np.float32).tolist()
            assert "text" not in clip.frames, "stored text vectors are never used"


def test_a_corpus_without_vision_lacks_it(tmp_path: Path) -> None:
    corpus = read(stored(tmp_path / "mosi.pkl", dropped(content(), "vision", "vision_lengths")), REGRESSION)
    assert corpus.modalities == ("text", "audio")
    assert all(set(clip.frames) == {"audio"} for clip in corpus.clips)


def test_without_text_bert_the_raw_text_is_what_there_is(tmp_path: Path) -> None:
    made = dropped(content(), "text_bert", "text")
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert all(clip.tokens is None for clip in corpus.clips)
    assert corpus.clips[1].text == "text 1"
    assert len(corpus.clips[1].frames["audio"]) == made["train"]["audio_lengths"][1]


def test_an_aligned_file_without_text_bert_keeps_all_its_frames(tmp_path: Path) -> None:
    corpus = read(stored(tmp_path / "m.pkl", dropped(content(aligned=True), "text_bert")), REGRESSION)
    assert all(len(clip.frames["audio"]) == TOKENS for clip in corpus.clips)


def test_a_file_says_which_published_one_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path / "m.pkl", content())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    unknown = read(path, REGRESSION).about
    assert unknown == {"corpus": "mmsa", "file": "m.pkl", "sha256": sha, "published_as": None}
    monkeypatch.setitem(mmsa.PUBLISHED, sha, "MOSI/Processed/unaligned_50.pkl")
    assert read(path, REGRESSION).about["published_as"] == "MOSI/Processed/unaligned_50.pkl"


def changed(column: str, value: Any) -> Content:
    made = content()
    made["train"][column] = value
    return made


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ([1, 2, 3], "is no MMSA pickle: its top level must be a dict of train, valid and test"),
        ({k: v for k, v in content().items() if k != "valid"}, "is no MMSA pickle"),
        (dropped(content(), "raw_text"), "split train lacks the column raw_text"),
        (dropped(content(), "id"), "split train lacks the column id"),
        (changed("id", ["a", "b"]), "train: id, raw_text and regression_labels differ in length"),
        (changed("id", ["a$_$1"] * 4), "clip id 'a\\$_\\$1' stands twice"),
        (changed("id", ["videotest0$_$9", "b", "c", "d"]), "source 'videotest0' is in split train and in split test"),
        (changed("regression_labels", np.array([0, 1, 2, 9.0])), r"clip videotrain1\$_\$3: label 9 lies outside"),
        (changed("regression_labels", np.array([0, 1, 2, np.nan])), "label nan lies outside"),
        (changed("regression_labels", ["0", "1", "2", "good"]), "good"),
        ({name: {k: v[:0] for k, v in columns.items()} for name, columns in content().items()}, "holds no clips"),
        ({name: [1] for name in COUNTS}, "lacks the column id"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, made: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refusal:
        read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert "\n" not in str(refusal.value)


def test_a_clip_without_a_single_frame_has_none(tmp_path: Path) -> None:
    """A length of 0 is a modality that the clip lacks, not one frame of zeros."""
    made = content()
    made["train"]["audio_lengths"] = [0, *made["train"]["audio_lengths"][1:]]
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert corpus.clips[0].frames["audio"].shape == (0, 5)
