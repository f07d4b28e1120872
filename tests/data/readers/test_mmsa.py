"""MMSA pickles in the layouts that its data_loader reads: aligned without lengths, unaligned with them."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.config.task import Task
from qamoe.data.clip import check_text
from qamoe.data.readers import mmsa
from qamoe.data.readers.mmsa import read
from qamoe.errors import UserError
from qamoe.extractors.minilm import MiniLM
from tests.fixtures.damage import mutated
from tests.fixtures.research_data import shared_data

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
            assert "text" not in clip.frames, "stored text vectors are not used where there are words"
    assert corpus.about["text"] == "text_bert"
    assert corpus.about["padding"] == {"audio": "end", "vision": "end"}


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


def test_without_lengths_a_sequence_ends_at_its_last_frame(tmp_path: Path) -> None:
    """An aligned file without text_bert, and an unaligned one without lengths: rows of zeros within are frames."""
    made = content(aligned=True)
    made["test"]["audio"][0, 1] = 0
    made["test"]["vision"][0] = 0
    for columns, gone in ((made, ("text_bert",)), (content(), ("audio_lengths", "vision_lengths"))):
        corpus = read(stored(tmp_path / "m.pkl", dropped(columns, *gone)), REGRESSION)
        for clip, (name, i) in zip(corpus.clips, every_clip(), strict=True):
            for modality in ("audio", "vision"):
                x = columns[name][modality][i]
                n = max((t + 1 for t in range(len(x)) if x[t].any()), default=0)
                assert clip.frames[modality].tolist() == x[:n].astype(np.float32).tolist()


def test_a_sequence_padded_in_front_keeps_its_end(tmp_path: Path) -> None:
    """As in the arrays of MulT, whose stored lengths then count up to the first row of zeros."""
    made = content()
    behind = content()
    for columns in made.values():
        for i, n in enumerate(columns["audio_lengths"]):
            columns["audio"][i] = np.roll(columns["audio"][i], AUDIO - n, axis=0)
        columns["audio_lengths"] = [1] * len(columns["id"])
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert corpus.about["padding"] == {"audio": "front", "vision": "end"}
    for clip, (name, i) in zip(corpus.clips, every_clip(), strict=True):
        n = behind[name]["audio_lengths"][i]
        assert clip.frames["audio"].tolist() == behind[name]["audio"][i, :n].astype(np.float32).tolist()


def test_the_first_versions_axes_of_text_bert_are_told_apart(tmp_path: Path) -> None:
    made = content()
    before = [clip.tokens.tolist() for clip in read(stored(tmp_path / "a.pkl", made), REGRESSION).clips]
    for columns in made.values():
        columns["text_bert"] = columns["text_bert"].transpose(0, 2, 1).astype(np.float32)
    after = [clip.tokens.tolist() for clip in read(stored(tmp_path / "b.pkl", made), REGRESSION).clips]
    assert after == before


def test_what_mmsa_fet_writes_is_read(tmp_path: Path) -> None:
    """Floats of 64 bits, a further key config, no classification labels."""
    made: Any = dropped(content(), "classification_labels")
    for columns in made.values():
        for key in ("audio", "vision", "text", "text_bert"):
            columns[key] = columns[key].astype(np.float64)
        columns["audio_lengths"] = np.array(columns["audio_lengths"])
    expected = read(stored(tmp_path / "a.pkl", content()), REGRESSION)
    found = read(stored(tmp_path / "b.pkl", made | {"config": {"audio": {"tool": "librosa"}}}), REGRESSION)
    for clip, other in zip(found.clips, expected.clips, strict=True):
        assert clip.tokens.tolist() == other.tokens.tolist()
        assert all(clip.frames[m].tolist() == other.frames[m].tolist() for m in ("audio", "vision"))


def test_stored_vectors_are_the_last_resort(tmp_path: Path) -> None:
    made = dropped(content(), "text_bert", "raw_text")
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert corpus.about["text"] == "text"
    assert corpus.vocabulary is None
    assert corpus.clips[0].frames["text"].tolist() == made["train"]["text"][0].tolist()
    check_text(corpus, MiniLM(50), "m.pkl")  # taken as they are: refuses nothing


@pytest.mark.parametrize("gone", ["text", "text_bert"])
def test_chinese_text_is_read_and_the_english_encoder_refuses_it(tmp_path: Path, gone: str) -> None:
    """CH-SIMS: 33 and 709 columns, labels in [-1, 1], lists where others have arrays, labels for each modality."""
    made = content()
    for columns in made.values():
        count = len(columns["id"])
        columns["raw_text"] = ["我不想嫁给李茶", "OK", "你说什么呢", "真好"][:count]
        columns["regression_labels"] = (np.arange(count) / 5 - 0.4).tolist()
        columns |= {f"regression_labels_{m}": np.zeros(count) for m in "TAV"}
        columns["vision"] = np.tile(columns["vision"], (1, 1, 36))[:, :, :709]
    corpus = read(stored(tmp_path / "m.pkl", dropped(made, gone)), Task(kind="regression", low=-1, high=1))
    assert corpus.vocabulary == "bert-base-chinese"
    assert corpus.clips[1].label == pytest.approx(-0.2)
    assert corpus.clips[0].frames["vision"].shape == (made["train"]["vision_lengths"][0], 709)
    with pytest.raises(UserError, match=r"its text needs an encoder with the vocabulary of bert-base-chinese"):
        check_text(corpus, MiniLM(50), "m.pkl")


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    made = content()
    made["valid"]["text_bert"][1, 0, 1] = 30522
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION)
    with pytest.raises(UserError, match=r"valid, clip videovalid0\$_\$1: token id 30522 is none of the 30522"):
        check_text(corpus, MiniLM(50), "m.pkl")


def test_a_file_says_which_published_one_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path / "m.pkl", content())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    unknown = read(path, REGRESSION).about
    named = {"corpus": "mmsa", "file": "m.pkl", "sha256": sha, "published_as": None}
    assert {key: unknown[key] for key in named} == named
    monkeypatch.setitem(mmsa.PUBLISHED, sha, "MOSI/Processed/unaligned_50.pkl")
    assert read(path, REGRESSION).about["published_as"] == "MOSI/Processed/unaligned_50.pkl"


def every_clip() -> list[tuple[str, int]]:
    return [(name, i) for name, count in COUNTS.items() for i in range(count)]


def changed(column: str, value: Any) -> Content:
    made = content()
    made["train"][column] = value
    return made


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ([1, 2, 3], "is no MMSA pickle: its top level must be a dict of train, valid and test"),
        ({k: v for k, v in content().items() if k != "valid"}, "is no MMSA pickle"),
        (
            dropped(content(), "raw_text", "text_bert", "text"),
            "no text is in every split; needed is text_bert, raw_text",
        ),
        (dropped(content(), "id"), "train lacks the column id"),
        (changed("id", ["a", "b"]), "train: regression_labels has 4 rows and id has 2"),
        (changed("id", "abcd"), "train: id is no list"),
        (changed("audio", np.zeros((3, AUDIO, 5))), "train: audio has 3 rows and id has 4"),
        (
            changed("audio", np.zeros((4, AUDIO, 6))),
            "audio must have one number of columns in all splits.*train 6, valid 5",
        ),
        (changed("audio", np.zeros((4, AUDIO, 0))), "audio must have one number of columns in all splits, at least 1"),
        (changed("audio", np.zeros((4, 5))), r"audio is no array of numbers with 3 axes \(shape \(4, 5\), float64\)"),
        (changed("vision", [[1.0], [1.0, 2.0]]), "vision is no array of numbers"),
        (changed("vision", np.full((4, VISION, 20), "x")), "vision is no array of numbers"),
        (changed("audio_lengths", [1, 2]), "train: audio_lengths has 2 rows and id has 4"),
        (changed("audio_lengths", ["a"] * 4), "audio_lengths is no array of numbers"),
        (changed("text_bert", np.zeros((4, 5, 6))), r"text_bert has shape \(4, 5, 6\); allowed is \(N, 3, L\)"),
        (
            changed("text_bert", np.full((4, 3, TOKENS), 0.5)),
            r"clip videotrain0\$_\$0: text_bert holds what is no token",
        ),
        (changed("id", ["a$_$1"] * 4), "clip id 'a\\$_\\$1' stands twice"),
        (
            changed("id", ["videotest0$_$9", "b", "c", "d"]),
            r"source 'videotest0' is in split train \(clip v.*9\) and in split test",
        ),
        (changed("regression_labels", np.array([0, 1, 2, 9.0])), r"clip videotrain1\$_\$3: label 9 lies outside"),
        (changed("regression_labels", np.array([0, 1, 2, np.nan])), "label nan lies outside"),
        (changed("regression_labels", ["0", "1", "2", "good"]), "good"),
        ({name: {k: v[:0] for k, v in columns.items()} for name, columns in content().items()}, "holds no clips"),
        ({name: [1] for name in COUNTS}, "train: a split must be a dict of columns"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, made: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert "\n" not in str(refusal.value)


def test_a_clip_without_a_single_frame_has_none(tmp_path: Path) -> None:
    """A length of 0 is a modality that the clip lacks, not one frame of zeros."""
    made = content()
    made["train"]["audio_lengths"] = [0, *made["train"]["audio_lengths"][1:]]
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION)
    assert corpus.clips[0].frames["audio"].shape == (0, 5)


def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    made = content()
    for columns in made.values():  # small, so that the damages hit the structure
        del columns["text"]
        columns["audio"], columns["vision"] = columns["audio"][:, :, :1], columns["vision"][:, :, :1]
    path = stored(tmp_path / "m.pkl", made)
    whole = path.read_bytes()
    refused = []
    for seed in range(200):
        path.write_bytes(mutated(whole, seed))
        try:
            read(path, REGRESSION)
        except UserError as refusal:
            refused.append(str(refusal))
    assert 50 < len(refused) < 200
    assert not any("\n" in sentence for sentence in refused)


def test_a_list_for_faults_gets_all_of_them_and_the_good_clips_are_read(tmp_path: Path) -> None:
    made = content()
    made["train"]["regression_labels"][1] = 5
    made["test"]["regression_labels"] = ["good", "0", "1"]
    faults: list[str] = []
    corpus = read(stored(tmp_path / "m.pkl", made), REGRESSION, faults)
    assert len(corpus.clips) == 7
    assert [fault.split(": ", 1)[1] for fault in faults] == [
        "label 5 lies outside [-3, 3].",
        "label 'good' is no number, and the task is regression.",
    ]


mosi = shared_data() / "mosi"


@pytest.mark.real_data
@pytest.mark.skipif(not mosi.is_dir(), reason=f"there is no folder {mosi}")
@pytest.mark.parametrize(
    ("name", "counts", "modalities"),
    [
        ("mosi_official.pkl", (1284, 229, 686), ("text", "audio")),
        ("mosi_speaker_split.pkl", (1206, 241, 752), ("text", "audio", "vision")),
    ],
)
def test_the_real_files_come_back_number_by_number(name: str, counts: Any, modalities: Any) -> None:
    corpus = read(mosi / name, REGRESSION)
    with (mosi / name).open("rb") as file:
        given = pickle.load(file)
    assert corpus.modalities == modalities
    assert tuple(sum(c.split == s for c in corpus.clips) for s in ("train", "valid", "test")) == counts
    check_text(corpus, MiniLM(50), name)
    clips = iter(corpus.clips)
    for columns in (given[split] for split in ("train", "valid", "test")):
        for i in range(len(columns["id"])):
            clip = next(clips)
            assert (clip.clip_id, clip.text) == (columns["id"][i], columns["raw_text"][i])
            assert clip.label == pytest.approx(float(columns["regression_labels"][i]), abs=1e-6)
            bert = columns["text_bert"][i]
            assert clip.tokens.tolist() == bert[0][bert[1] > 0].tolist()
            for modality in modalities[1:]:
                n = columns[f"{modality}_lengths"][i] if f"{modality}_lengths" in columns else 1
                np.testing.assert_array_equal(clip.frames[modality], columns[modality][i][:n])
