"""The sample corpus: the same bytes every time, no person in two splits, and information in every modality."""

import csv
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from qamoe.config.task import Task
from qamoe.data.readers import READERS
from qamoe.data.synthetic import corpus as sample
from qamoe.data.synthetic import video, words
from qamoe.data.synthetic.corpus import CLASSES, feel, generate, main, plan
from qamoe.errors import UserError
from qamoe.media.decode import read_audio, read_frames

CLIPS, SEED = 6, 7
REGRESSION = Task(kind="regression", low=-3, high=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    generate(out, CLIPS, SEED, "regression", 1)
    return out


def rows(corpus: Path) -> list[dict[str, str]]:
    with (corpus / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def content(corpus: Path) -> dict[str, bytes]:
    return {str(p.relative_to(corpus)): p.read_bytes() for p in sorted(corpus.rglob("*")) if p.is_file()}


def test_the_same_arguments_give_the_same_bytes_whatever_the_processes(corpus: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", CLIPS, SEED, "regression", 2)
    assert content(tmp_path / "again") == content(corpus)
    assert len(content(corpus)) == CLIPS + 2


def test_another_seed_gives_other_clips(corpus: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", 4, SEED + 1, "regression", 1)
    assert not {r["text"] for r in rows(tmp_path / "other")} & {r["text"] for r in rows(corpus)}


def test_it_is_read_as_a_corpus(corpus: Path) -> None:
    read = READERS["sample"](corpus, REGRESSION)
    assert len(read.clips) == CLIPS
    assert read.generated
    assert {clip.split for clip in read.clips} == {"train", "valid", "gate", "test"}
    assert all(-3 <= clip.label <= 3 for clip in read.clips)
    about = json.loads((corpus / "corpus.json").read_text())
    assert about == {
        "generator": "qamoe-sample",
        "version": 1,
        "seed": SEED,
        "clips": CLIPS,
        "task": {"kind": "regression", "low": -3, "high": 3},
    }


def test_words_voice_and_picture_last_equally_long(corpus: Path) -> None:
    for row in rows(corpus):
        path, end = corpus / row["path"], float(row["end_s"])
        assert 0.8 < end < 6
        assert len(list(read_frames(path, video.PICTURE_RATE))) == round(end * video.PICTURE_RATE)
        assert len(read_audio(path, 22_050, 0, end)) == round(end * 22_050)
        # The codec's last block may reach beyond the end, by less than its 1024 samples.
        assert 0 <= len(read_audio(path, 22_050)) - round(end * 22_050) < 1024
        assert np.abs(read_audio(path, 22_050, end - 0.4, end)).max() > 0.005
        assert 1 < len(row["text"].split()) / end < 7


def test_four_classes(tmp_path: Path) -> None:
    generate(tmp_path / "data", 5, SEED, "four-classes", 1)
    about = json.loads((tmp_path / "data" / "corpus.json").read_text())
    assert about["task"] == {"kind": "classification", "classes": list(CLASSES)}
    read = READERS["sample"](tmp_path / "data", Task(kind="classification", classes=CLASSES))
    assert {clip.label for clip in read.clips} <= {0, 1, 2, 3}


@pytest.mark.parametrize(("clips", "sources"), [(240, 24), (2000, 100), (5000, 250)])
def test_people_are_many_and_stay_in_one_split(clips: int, sources: int) -> None:
    splits = defaultdict(set)
    for made in plan(clips, SEED):
        splits[made.split].add(made.source_id)
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) >= sources
    counted = Counter(made.split for made in plan(clips, SEED))
    assert sum(counted.values()) == clips
    assert len(splits["test"]) >= 8
    assert counted["test"] >= 60
    assert min(len(splits["valid"]), len(splits["gate"])) >= 3
    assert counted["train"] >= 0.5 * clips
    assert len({made.clip_id for made in plan(clips, SEED)}) == clips


def test_the_smallest_corpus_has_every_split() -> None:
    for clips in range(sample.FEWEST, 30):
        made = plan(clips, SEED)
        assert len(made) == clips
        assert {m.split for m in made} == {"train", "valid", "gate", "test"}


def test_every_modality_shows_the_label_and_words_show_it_best() -> None:
    drawn = [feel("regression", np.random.default_rng([SEED, i])) for i in range(4000)]
    label = np.array([float(f.label) for f in drawn])
    assert np.abs(label).max() <= 3
    assert 1.3 < label.std() < 1.55
    shown = {name: np.array([getattr(f, name) for f in drawn]) for name in ("words", "voice", "face")}
    of = {name: float(np.corrcoef(values, label)[0, 1]) for name, values in shown.items()}
    assert 0.9 > of["words"] > of["voice"] > of["face"] > 0.5
    opposite = (shown["words"] * label < 0) & (np.abs(label) > 1.5)
    assert 0.08 < opposite.sum() / (np.abs(label) > 1.5).sum() < 0.16
    assert (shown["voice"] * label > 0)[opposite].mean() > 0.8
    assert (shown["face"] * label > 0)[opposite].mean() > 0.8


def test_every_modality_shows_the_class() -> None:
    drawn = [feel("four-classes", np.random.default_rng([SEED, i])) for i in range(2000)]
    counted = Counter(f.label for f in drawn)
    assert set(counted) == set(CLASSES)
    assert min(counted.values()) > 400

    def mean(name: str, label: str) -> float:
        return float(np.mean([getattr(f, name) for f in drawn if f.label == label]))

    for name in ("words", "voice", "face"):
        assert mean(name, "happy") > mean(name, "neutral") + 1 > mean(name, "sad") + 1.5
    for name in ("words_arousal", "voice_arousal", "face_arousal"):
        assert mean(name, "angry") > mean(name, "sad") + 1.5


def test_sentences_are_short_and_many() -> None:
    random = np.random.default_rng(SEED)
    said = [words.sentence(random.uniform(-3, 3), None, random) for _ in range(2000)]
    lengths = [len(text.split()) for text in said]
    assert 6 <= np.mean(lengths) <= 10
    assert max(lengths) <= 18
    assert len({word for text in said for word in text.replace(",", "").split()}) > 300
    assert len(set(said)) > 1800


def test_the_voice_opens_the_mouth() -> None:
    samples = video.SAMPLES_PER_PICTURE
    wave = np.repeat(np.array([0.0, 0.1, 0.4, 0.2], np.float32), samples)
    np.testing.assert_allclose(video.openings(wave), [0, 0.125, 0.5, 0.25], rtol=1e-5)
    moves = video.expressions(np.tile(wave, 10), 0.0, 0.0, np.random.default_rng(1))
    assert len(moves) == 40
    assert np.corrcoef([m.opening for m in moves], np.tile([0, 0.125, 0.5, 0.25], 10))[0, 1] > 0.9


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    assert main(["--out", str(tmp_path / "data"), "--clips", "4"]) == 2
    error = capsys.readouterr().err
    assert "is not an empty folder" in error
    assert error.count("\n") == 1
    assert content(tmp_path) == {"data/mine.txt": b"mine"}


STOPPED = """
import os, signal, sys
from qamoe.data.synthetic import corpus
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
def made(*arguments, made=corpus._made):
    for row in made(*arguments):
        os.killpg(0, signal.SIGINT)
        yield row
corpus._made = made
sys.exit(corpus.main(["--out", sys.argv[1], "--clips", "40", "--processes", "2"]))
"""


def test_ctrl_c_says_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.stderr == "stopped; nothing was written.\n"
    assert done.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"clips": 3}, "clips is 3"), ({"task": "five"}, "task is 'five'"), ({"processes": 0}, "processes is 0")],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    arguments = {"clips": 4, "seed": SEED, "task": "regression", "processes": 1} | changed
    with pytest.raises(UserError, match=named):
        generate(tmp_path / "data", **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_its_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r'pip install "qamoe\[sample\]"'):
        generate(tmp_path / "data", 4, SEED, "regression", 1)
    assert not list(tmp_path.iterdir())


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(video, "write", fail)
    with pytest.raises(OSError, match="full"):
        generate(tmp_path / "data", 4, SEED, "regression", 1)
    assert not list(tmp_path.iterdir())


def _features(corpus: Path, folder: Path) -> dict[str, np.ndarray]:
    """What a simple regressor sees of each clip: means and deviations over frames, and the mean token state."""
    from qamoe.config.extractor_settings import extractor_settings
    from qamoe.extractors.minilm import MiniLM
    from qamoe.extractors.worker_pool import Job, make_parts, read_part
    from qamoe.models.text_encoder_frozen import encode_all

    clips = rows(corpus)
    jobs = [
        (
            Job(clip["clip_id"], modality, corpus / clip["path"], 0.0, float(clip["end_s"])),
            folder / f"{modality}-{clip['clip_id']}",
        )
        for modality in ("audio", "vision")
        for clip in clips
    ]
    extractors = {
        "audio": extractor_settings("audio", {"extractor": "egemaps", "rate": 20}),
        "vision": extractor_settings("vision", {"extractor": "landmarks", "rate": 5}),
    }
    assert not make_parts(jobs, extractors, 2, 60, lambda: None)
    frames = defaultdict(list)
    for job, part in jobs:
        made = read_part(part)
        assert isinstance(made, np.ndarray), f"{job.clip_id}, {job.modality}: {made}"
        frames[job.modality].append(made)
    assert np.concatenate(frames["vision"])[:, -1].mean() > 0.995  # a face in practically every picture
    pooled = {m: np.stack([np.concatenate([f.mean(0), f.std(0)]) for f in frames[m]]) for m in frames}
    tokens = [MiniLM(50).extract(clip["text"])[0] for clip in clips]
    return {"text": np.stack([state[1:-1].mean(0) for state in encode_all(tokens, "cpu")]), **pooled}


def _error(blocks: list[np.ndarray], label: np.ndarray, sources: list[str]) -> float:
    """Mean absolute error of ridge regression on people whom it has not seen; blocks weigh alike."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    predicted = np.zeros(len(label))
    for train, test in GroupKFold(8).split(label, label, sources):
        standard = []
        for block in blocks:
            mean, deviation = block[train].mean(0), block[train].std(0)
            kept = deviation > 1e-6 * np.maximum(1, np.abs(mean))
            standard.append(np.clip((block - mean) / np.where(kept, deviation, 1), -4, 4)[:, kept] / kept.sum() ** 0.5)
        seen = np.concatenate(standard, 1)
        predicted[test] = RidgeCV(np.logspace(-4, 3, 29)).fit(seen[train], label[train]).predict(seen[test])
    return float(np.abs(predicted - label).mean())


@pytest.mark.slow
def test_each_modality_tells_something_none_enough_and_words_most(tmp_path: Path) -> None:
    generate(tmp_path / "data", 240, SEED, "regression", 2)
    clips = rows(tmp_path / "data")
    label = np.array([float(clip["label"]) for clip in clips])
    sources = [clip["source"] for clip in clips]
    features = _features(tmp_path / "data", tmp_path / "parts")
    alone = {m: _error([features[m]], label, sources) for m in ("text", "audio", "vision")}
    together = _error(list(features.values()), label, sources)
    constant = float(np.abs(label - label.mean()).mean())
    assert max(alone.values()) < 0.95 * constant
    assert alone["text"] < min(alone["audio"], alone["vision"])
    assert together < 0.93 * min(alone.values())
