"""MMSA pickles in the layouts of its data_loader: aligned without lengths, unaligned with lengths."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.config.task import Task
from qamoe.data.clip import LabelledClip, check_text
from qamoe.data.readers import mmsa
from qamoe.data.readers.mmsa import read
from qamoe.errors import UserError
from qamoe.extractors.minilm import MiniLM
from tests.fixtures.damage import mutated
from tests.fixtures.research_data import shared_data

pytestmark = pytest.mark.integration  # a process interprets each pickle
REGRESSION = Task(kind="regression", low=-3, high=3)
COUNTS = {"train": 4, "valid": 2, "test": 3}
TOKENS, AUDIO, VISION = 8, 12, 10  # the padded lengths of an unaligned file
Content = dict[str, dict[str, Any]]


def split(name: str, count: int, aligned: bool) -> dict[str, Any]:
    """Return the columns of one split, padded at the end like the published files."""
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


def store(path: Path, splits: Any) -> Path:
    path.write_bytes(pickle.dumps(splits, protocol=4))
    return path


def without(splits: Content, *columns: str) -> Content:
    return {name: {k: v for k, v in split.items() if k not in columns} for name, split in splits.items()}


def token_ids(clip: LabelledClip) -> list[int]:
    assert clip.tokens is not None
    return clip.tokens.tolist()


@pytest.mark.parametrize("aligned", [False, True])
def test_clips_are_read_with_their_own_lengths(tmp_path: Path, aligned: bool) -> None:
    splits = content(aligned)
    corpus = read(store(tmp_path / "mosi.pkl", splits), REGRESSION)
    assert corpus.modalities == ("text", "audio", "vision")
    assert [c.split for c in corpus.clips] == [name for name, count in COUNTS.items() for _ in range(count)]
    clips = iter(corpus.clips)
    for name, columns in splits.items():
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
            assert "text" not in clip.frames, "stored text vectors are not used if the text has words"
    assert corpus.about["text"] == "text_bert"
    assert corpus.about["padding"] == {"audio": "end", "vision": "end"}


def test_a_corpus_without_vision_lacks_it(tmp_path: Path) -> None:
    corpus = read(store(tmp_path / "mosi.pkl", without(content(), "vision", "vision_lengths")), REGRESSION)
    assert corpus.modalities == ("text", "audio")
    assert all(set(clip.frames) == {"audio"} for clip in corpus.clips)


def test_without_text_bert_the_raw_text_is_used(tmp_path: Path) -> None:
    splits = without(content(), "text_bert", "text")
    corpus = read(store(tmp_path / "m.pkl", splits), REGRESSION)
    assert all(clip.tokens is None for clip in corpus.clips)
    assert corpus.clips[1].text == "text 1"
    assert len(corpus.clips[1].frames["audio"]) == splits["train"]["audio_lengths"][1]


def test_without_lengths_a_sequence_ends_at_its_last_frame(tmp_path: Path) -> None:
    """Aligned without text_bert, and unaligned without lengths; rows of zeros in between are frames."""
    splits = content(aligned=True)
    splits["test"]["audio"][0, 1] = 0
    splits["test"]["vision"][0] = 0
    for columns, removed in ((splits, ("text_bert",)), (content(), ("audio_lengths", "vision_lengths"))):
        corpus = read(store(tmp_path / "m.pkl", without(columns, *removed)), REGRESSION)
        for clip, (name, i) in zip(corpus.clips, all_clips(), strict=True):
            for modality in ("audio", "vision"):
                x = columns[name][modality][i]
                n = max((t + 1 for t in range(len(x)) if x[t].any()), default=0)
                assert clip.frames[modality].tolist() == x[:n].astype(np.float32).tolist()


def test_a_sequence_padded_at_the_front_keeps_its_end(tmp_path: Path) -> None:
    """For example the arrays of MulT, whose stored lengths count up to the first row of zeros."""
    splits = content()
    padded_at_end = content()
    for columns in splits.values():
        for i, n in enumerate(columns["audio_lengths"]):
            columns["audio"][i] = np.roll(columns["audio"][i], AUDIO - n, axis=0)
        columns["audio_lengths"] = [1] * len(columns["id"])
    corpus = read(store(tmp_path / "m.pkl", splits), REGRESSION)
    assert corpus.about["padding"] == {"audio": "front", "vision": "end"}
    for clip, (name, i) in zip(corpus.clips, all_clips(), strict=True):
        n = padded_at_end[name]["audio_lengths"][i]
        assert clip.frames["audio"].tolist() == padded_at_end[name]["audio"][i, :n].astype(np.float32).tolist()


def test_the_axes_of_text_bert_in_the_first_version_are_recognised(tmp_path: Path) -> None:
    splits = content()
    before = [token_ids(clip) for clip in read(store(tmp_path / "a.pkl", splits), REGRESSION).clips]
    for columns in splits.values():
        columns["text_bert"] = columns["text_bert"].transpose(0, 2, 1).astype(np.float32)
    after = [token_ids(clip) for clip in read(store(tmp_path / "b.pkl", splits), REGRESSION).clips]
    assert after == before


def test_the_output_of_mmsa_fet_is_read(tmp_path: Path) -> None:
    """It has floats of 64 bits, an additional key config, and no classification labels."""
    splits: Any = without(content(), "classification_labels")
    for columns in splits.values():
        for key in ("audio", "vision", "text", "text_bert"):
            columns[key] = columns[key].astype(np.float64)
        columns["audio_lengths"] = np.array(columns["audio_lengths"])
    expected = read(store(tmp_path / "a.pkl", content()), REGRESSION)
    corpus = read(store(tmp_path / "b.pkl", splits | {"config": {"audio": {"tool": "librosa"}}}), REGRESSION)
    for clip, other in zip(corpus.clips, expected.clips, strict=True):
        assert token_ids(clip) == token_ids(other)
        assert all(clip.frames[m].tolist() == other.frames[m].tolist() for m in ("audio", "vision"))


def test_stored_vectors_are_the_last_resort(tmp_path: Path) -> None:
    splits = without(content(), "text_bert", "raw_text")
    corpus = read(store(tmp_path / "m.pkl", splits), REGRESSION)
    assert corpus.about["text"] == "text"
    assert corpus.vocabulary is None
    assert corpus.clips[0].frames["text"].tolist() == splits["train"]["text"][0].tolist()
    check_text(corpus, MiniLM(50), "m.pkl")  # vectors are not checked


def dump_as_python2(content: Any, path: Path) -> None:
    """Write a pickle whose strings and bytes of arrays are as Python 2 wrote them."""

    def save_old(pickler: Any, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        pickler.write(b"T" + len(content).to_bytes(4, "little") + content)
        pickler.memoize(value)

    with path.open("wb") as file:
        pickler: Any = vars(pickle)["_Pickler"](file, 2)  # the one in Python, whose parts can be replaced
        pickler.dispatch = {**pickler.dispatch, str: save_old, bytes: save_old}
        pickler.dump(content)


def mult_split(name: str, count: int, ids: str) -> dict[str, Any]:
    """Return a split of MulT's: GloVe vectors, labels (N, 1, 1), ids as (video, start, end) or as VIDEO[n]."""
    draws = np.random.default_rng(count)
    columns: dict[str, Any] = {"labels": draws.uniform(-3, 3, (count, 1, 1))}
    for modality, size in (("text", 300), ("audio", 74), ("vision", 35)):
        columns[modality] = draws.standard_normal((count, TOKENS, size)).astype(np.float32)
    if ids == "times":
        columns["id"] = np.array([[f"{name}{i // 2}".encode(), b"%d.5" % i, b"%d.5" % (i + 1)] for i in range(count)])
    elif ids == "segments":
        columns["id"] = np.array([[f"{name}{i // 2}[{i}]"] for i in range(count)], object)
    return columns


@pytest.mark.parametrize("python2", [False, True])
@pytest.mark.parametrize("ids", ["times", "segments", "none"])
def test_pickles_of_mult_and_multibench_are_read(tmp_path: Path, ids: str, python2: bool) -> None:
    splits = {name: mult_split(name, count, ids) for name, count in COUNTS.items()}
    path = tmp_path / "mosi_data.pkl"
    if python2:
        dump_as_python2(splits, path)
    else:
        store(path, splits)
    corpus = read(path, REGRESSION)
    assert corpus.vocabulary is None
    assert corpus.modalities == ("text", "audio", "vision")
    clips = {clip.clip_id: clip for clip in corpus.clips}
    name, source = {
        "times": ("train1$_$3.5_4.5", "train1"),
        "segments": ("train1$_$3", "train1"),
        "none": ("train-3", "train-3"),
    }[ids]
    assert clips[name].source == source
    assert clips[name].label == splits["train"]["labels"][3, 0, 0]
    np.testing.assert_array_equal(clips[name].frames["text"], splits["train"]["text"][3])
    assert clips[name].frames["audio"].shape == (TOKENS, 74)


@pytest.mark.parametrize("shape", [(4, 1, 5), (4, 2)])
def test_labels_of_mult_with_another_shape_are_rejected(tmp_path: Path, shape: tuple[int, ...]) -> None:
    splits = {name: mult_split(name, count, "none") for name, count in COUNTS.items()}
    splits["train"]["labels"] = np.zeros(shape)
    with pytest.raises(UserError, match=rf"train: labels has shape {re.escape(str(shape))}"):
        read(store(tmp_path / "m.pkl", splits), REGRESSION)


@pytest.mark.parametrize("removed", ["text", "text_bert"])
def test_chinese_text_is_read_and_the_english_encoder_rejects_it(tmp_path: Path, removed: str) -> None:
    """Like CH-SIMS: 709 columns of vision, labels in [-1, 1], lists instead of arrays, labels for each modality."""
    splits = content()
    for columns in splits.values():
        count = len(columns["id"])
        columns["raw_text"] = ["我不想嫁给李茶", "OK", "你说什么呢", "真好"][:count]
        columns["regression_labels"] = (np.arange(count) / 5 - 0.4).tolist()
        columns |= {f"regression_labels_{m}": np.zeros(count) for m in "TAV"}
        columns["vision"] = np.tile(columns["vision"], (1, 1, 36))[:, :, :709]
    corpus = read(store(tmp_path / "m.pkl", without(splits, removed)), Task(kind="regression", low=-1, high=1))
    assert corpus.vocabulary == "bert-base-chinese"
    assert corpus.clips[1].label == pytest.approx(-0.2)
    assert corpus.clips[0].frames["vision"].shape == (splits["train"]["vision_lengths"][0], 709)
    with pytest.raises(UserError, match=r"m\.pkl: .*bert-base-chinese.*minilm .*bert-base-uncased"):
        check_text(corpus, MiniLM(50), "m.pkl")


def test_a_token_outside_the_vocabulary_is_rejected(tmp_path: Path) -> None:
    splits = content()
    splits["valid"]["text_bert"][1, 0, 1] = 30522
    corpus = read(store(tmp_path / "m.pkl", splits), REGRESSION)
    with pytest.raises(UserError, match=r"valid, clip videovalid0\$_\$1: token id 30522 .*\b30522\b"):
        check_text(corpus, MiniLM(50), "m.pkl")


def test_a_published_file_is_recognised_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path / "m.pkl", content())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    unknown = read(path, REGRESSION).about
    named = {"corpus": "mmsa", "file": "m.pkl", "sha256": sha, "published_as": None}
    assert {key: unknown[key] for key in named} == named
    monkeypatch.setitem(mmsa.PUBLISHED, sha, "MOSI/Processed/unaligned_50.pkl")
    assert read(path, REGRESSION).about["published_as"] == "MOSI/Processed/unaligned_50.pkl"


def all_clips() -> list[tuple[str, int]]:
    return [(name, i) for name, count in COUNTS.items() for i in range(count)]


def changed(column: str, value: Any) -> Content:
    splits = content()
    splits["train"][column] = value
    return splits


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ([1, 2, 3], " .*train, valid and test"),
        ({k: v for k, v in content().items() if k != "valid"}, " .*train, valid and test"),
        (without(content(), "raw_text", "text_bert", "text"), ": .*text_bert, raw_text or text"),
        (without(content(), "id"), ", train .*column id"),
        (changed("id", ["a", "b"]), r", train: regression_labels .*\b4 rows.*\bid has 2\b"),
        (changed("id", "abcd"), ", train: id .*list"),
        (changed("audio", np.zeros((3, AUDIO, 5))), r", train: audio .*\b3 rows.*\bid has 4\b"),
        (changed("audio", np.zeros((4, AUDIO, 6))), ": audio .*columns.*train 6, valid 5"),
        (changed("audio", np.zeros((4, AUDIO, 0))), ": audio .*columns.*at least 1.*train 0, valid 5"),
        (changed("audio", np.zeros((4, 5))), r", train: audio .*\(4, 5\).*float64.*\b3\b"),
        (changed("vision", [[1.0], [1.0, 2.0]]), ", train: vision .*object"),
        (changed("vision", np.full((4, VISION, 20), "x")), ", train: vision .*<U1"),
        (changed("audio_lengths", [1, 2]), r", train: audio_lengths .*\b2 rows.*\bid has 4\b"),
        (changed("audio_lengths", ["a"] * 4), ", train: audio_lengths .*object"),
        (changed("audio", [["a"] * 4, [np.full(2, "x" * 900)]]), ", train: audio .*object"),
        (changed("raw_text", [b"a", b"\xff", b"c", b"d"]), r", train, clip videotrain0\$_\$1: raw_text .*xff.*UTF-8"),
        (changed("raw_text", ["a", None, "c", "d"]), r", train, clip videotrain0\$_\$1: raw_text .*NoneType"),
        (changed("id", [b"a", b"b", b"\xff", b"d"]), r", train, clip 2: id .*xff.*UTF-8"),
        (changed("text_bert", np.zeros((4, 5, 6))), r", train: text_bert .*\(4, 5, 6\).*\(N, 3, L\)"),
        (changed("text_bert", np.full((4, 3, TOKENS), 0.5)), r", train, clip videotrain0\$_\$0: text_bert .*token id"),
        (changed("id", ["a$_$1"] * 4), r", train, clip a\$_\$1: .*'a\$_\$1'"),
        (
            changed("id", ["videotest0$_$9", "b", "c", "d"]),
            r"source 'videotest0' .*split train \(clip v.*9\) .*split test",
        ),
        (changed("regression_labels", np.array([0, 1, 2, 9.0])), r", train, clip videotrain1\$_\$3: label 9 .*-3, 3"),
        (changed("regression_labels", np.array([0, 1, 2, np.nan])), "label nan .*-3, 3"),
        (changed("regression_labels", ["0", "1", "2", "good"]), "label 'good'"),
        ({name: {k: v[:0] for k, v in columns.items()} for name, columns in content().items()}, " .*no clips"),
        ({name: [1] for name in COUNTS}, ", train: .*dict"),
    ],
)
def test_another_layout_is_rejected(tmp_path: Path, splits: Any, named: str) -> None:
    with pytest.raises(UserError, match=rf"m\.pkl.*{named}") as raised:
        read(store(tmp_path / "m.pkl", splits), REGRESSION)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [list, np.array, lambda texts: np.array(texts, object)])
def test_bytes_are_decoded(tmp_path: Path, kind: Any) -> None:
    """Text and ids of Python 2 come as bytes; their form in Python, b'it was good', was taken for the text."""
    splits = content()
    columns = splits["train"]
    texts = [f"it was góód {i}" for i in range(COUNTS["train"])]
    columns["raw_text"] = kind([text.encode() for text in texts])
    columns["id"] = kind([name.encode() for name in columns["id"]])
    expected = split("train", COUNTS["train"], aligned=False)["id"]
    clips = [clip for clip in read(store(tmp_path / "m.pkl", splits), REGRESSION).clips if clip.split == "train"]
    assert [clip.text for clip in clips] == texts
    assert [clip.clip_id for clip in clips] == expected


def test_a_clip_without_a_single_frame_has_none(tmp_path: Path) -> None:
    """With a length of 0 the clip lacks the modality; it does not have one frame of zeros."""
    splits = content()
    splits["train"]["audio_lengths"] = [0, *splits["train"]["audio_lengths"][1:]]
    corpus = read(store(tmp_path / "m.pkl", splits), REGRESSION)
    assert corpus.clips[0].frames["audio"].shape == (0, 5)


@pytest.mark.slow
def test_a_damaged_pickle_is_either_read_or_rejected(tmp_path: Path) -> None:
    splits = content()
    for columns in splits.values():  # small, so that damage hits the structure
        del columns["text"]
        columns["audio"], columns["vision"] = columns["audio"][:, :, :1], columns["vision"][:, :, :1]
    path = store(tmp_path / "m.pkl", splits)
    whole = path.read_bytes()
    rejected = []
    for seed in range(200):
        path.write_bytes(mutated(whole, seed))
        try:
            read(path, REGRESSION)
        except UserError as error:
            rejected.append(str(error))
    assert 50 < len(rejected) < 200
    assert not any("\n" in sentence for sentence in rejected)


def test_all_faults_are_collected_and_the_valid_clips_are_read(tmp_path: Path) -> None:
    splits = content()
    splits["train"]["regression_labels"][1] = 5
    splits["test"]["regression_labels"] = ["good", "0", "1"]
    faults: list[str] = []
    corpus = read(store(tmp_path / "m.pkl", splits), REGRESSION, faults)
    assert len(corpus.clips) == 7
    first, second = faults
    assert "train, clip videotrain0$_$1: label 5 " in first
    assert "test, clip videotest0$_$0: label 'good' " in second


mosi = shared_data() / "mosi"


@pytest.mark.real_data
@pytest.mark.skipif(not mosi.is_dir(), reason=f"{mosi} does not exist")
@pytest.mark.parametrize(
    ("name", "counts", "modalities"),
    [
        ("mosi_official.pkl", (1284, 229, 686), ("text", "audio")),
        ("mosi_speaker_split.pkl", (1206, 241, 752), ("text", "audio", "vision")),
    ],
)
def test_the_real_files_are_read_exactly(name: str, counts: Any, modalities: Any) -> None:
    corpus = read(mosi / name, REGRESSION)
    with (mosi / name).open("rb") as file:
        expected = pickle.load(file)
    assert corpus.modalities == modalities
    assert tuple(sum(c.split == s for c in corpus.clips) for s in ("train", "valid", "test")) == counts
    check_text(corpus, MiniLM(50), name)
    clips = iter(corpus.clips)
    for columns in (expected[split] for split in ("train", "valid", "test")):
        for i in range(len(columns["id"])):
            clip = next(clips)
            assert (clip.clip_id, clip.text) == (columns["id"][i], columns["raw_text"][i])
            assert clip.label == pytest.approx(float(columns["regression_labels"][i]), abs=1e-6)
            bert = columns["text_bert"][i]
            assert token_ids(clip) == bert[0][bert[1] > 0].tolist()
            for modality in modalities[1:]:
                n = columns[f"{modality}_lengths"][i] if f"{modality}_lengths" in columns else 1
                np.testing.assert_array_equal(clip.frames[modality], columns[modality][i][:n])


EMOTIONS = Task(kind="multilabel", classes=("sad", "happy", "anger", "surprise", "disgust", "fear"))


@pytest.mark.parametrize("shape", ["all", "alone", "column"])
def test_the_emotions_of_mosei_are_labels_above_0(tmp_path: Path, shape: str) -> None:
    """Files have happy first; the task may name them in another order."""
    splits = content()
    for name, count in COUNTS.items():
        emotions = np.zeros((count, 6))
        emotions[0] = [1 / 3, 0, 0, 0, 0, 3]  # happy and fear
        emotions[1, 1] = 2  # sad
        if shape == "column":
            splits[name]["emotion_labels"] = emotions
            continue
        sentiment = splits[name].pop("regression_labels")[:, None]
        both = emotions if shape == "alone" else np.concatenate([sentiment, emotions], 1)
        splits[name]["labels"] = both[:, None]
    path = store(tmp_path / "mosei.pkl", splits)
    numbers = [clip.label for clip in read(path, EMOTIONS).clips if clip.split == "train"]
    assert numbers == [2 + 32, 1, 0, 0]
    if shape == "all":
        assert read(path, REGRESSION).clips[0].label == pytest.approx(content()["train"]["regression_labels"][0])
    if shape == "alone":
        with pytest.raises(UserError, match=r"train: labels has shape \(4, 1, 6\), must have one number"):
            read(path, REGRESSION)


@pytest.mark.parametrize(
    ("emotions", "classes", "named"),
    [
        (np.full((4, 6), 4.0), EMOTIONS.classes, r"outside \[0, 3\]"),
        (np.full((4, 6), np.nan), EMOTIONS.classes, r"outside \[0, 3\]"),
        (np.zeros((4, 5)), EMOTIONS.classes, "has 5 columns, must have 6"),
        (np.zeros((4, 6)), ("happy", "sad"), "classes happy, sad"),
    ],
)
def test_other_emotions_are_rejected(tmp_path: Path, emotions: Any, classes: Any, named: str) -> None:
    splits = content()
    for name, count in COUNTS.items():
        splits[name]["emotion_labels"] = emotions if name == "train" else np.zeros((count, 6))
    with pytest.raises(UserError, match=rf"m\.pkl, train: emotion_labels .*{named}"):
        read(store(tmp_path / "m.pkl", splits), Task(kind="multilabel", classes=classes))
