"""The sample corpus: deterministic bytes, no person in two splits, and every modality informative."""

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
from qamoe.data.synthetic.corpus import CLASSES, draw_sentiment, generate, main, plan
from qamoe.errors import UserError
from qamoe.media.decode import read_audio, read_frames

pytestmark = pytest.mark.integration  # writes media

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


def test_the_same_arguments_give_the_same_bytes_with_any_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", CLIPS, SEED, "regression", 2)
    assert content(tmp_path / "again") == content(corpus)
    assert len(content(corpus)) == CLIPS + 2


def test_another_seed_gives_other_clips(corpus: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", 4, SEED + 1, "regression", 1)
    assert not {r["text"] for r in rows(tmp_path / "other")} & {r["text"] for r in rows(corpus)}


def test_the_reader_reads_it_as_a_corpus(corpus: Path) -> None:
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


def test_audio_and_video_have_the_same_length(corpus: Path) -> None:
    for row in rows(corpus):
        path, end = corpus / row["path"], float(row["end_s"])
        assert 0.8 < end < 6
        assert len(list(read_frames(path, video.FRAME_RATE))) == round(end * video.FRAME_RATE)
        assert len(read_audio(path, 22_050, 0, end)) == round(end * 22_050)
        # The codec's last block may extend beyond the end by less than its 1024 samples.
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
def test_there_are_many_people_and_each_is_in_one_split(clips: int, sources: int) -> None:
    splits = defaultdict(set)
    for planned in plan(clips, SEED):
        splits[planned.split].add(planned.source_id)
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) >= sources
    counted = Counter(planned.split for planned in plan(clips, SEED))
    assert sum(counted.values()) == clips
    assert len(splits["test"]) >= 8
    assert counted["test"] >= 60
    assert min(len(splits["valid"]), len(splits["gate"])) >= 3
    assert counted["train"] >= 0.5 * clips
    assert len({planned.clip_id for planned in plan(clips, SEED)}) == clips


def test_the_smallest_corpus_has_every_split() -> None:
    for clips in range(sample.FEWEST, 30):
        planned = plan(clips, SEED)
        assert len(planned) == clips
        assert {p.split for p in planned} == {"train", "valid", "gate", "test"}


def test_every_modality_correlates_with_the_label_and_words_do_most() -> None:
    drawn = [draw_sentiment("regression", np.random.default_rng([SEED, i])) for i in range(4000)]
    label = np.array([float(f.label) for f in drawn])
    assert np.abs(label).max() <= 3
    assert 1.3 < label.std() < 1.55
    shown = {name: np.array([getattr(f, name) for f in drawn]) for name in ("words", "voice", "face")}
    correlation = {name: float(np.corrcoef(values, label)[0, 1]) for name, values in shown.items()}
    assert 0.9 > correlation["words"] > correlation["voice"] > correlation["face"] > 0.5
    opposite = (shown["words"] * label < 0) & (np.abs(label) > 1.5)
    assert 0.08 < opposite.sum() / (np.abs(label) > 1.5).sum() < 0.16
    assert (shown["voice"] * label > 0)[opposite].mean() > 0.8
    assert (shown["face"] * label > 0)[opposite].mean() > 0.8


def test_every_modality_depends_on_the_class() -> None:
    drawn = [draw_sentiment("four-classes", np.random.default_rng([SEED, i])) for i in range(2000)]
    counted = Counter(f.label for f in drawn)
    assert set(counted) == set(CLASSES)
    assert min(counted.values()) > 400

    def mean(name: str, label: str) -> float:
        return float(np.mean([getattr(f, name) for f in drawn if f.label == label]))

    for name in ("words", "voice", "face"):
        assert mean(name, "happy") > mean(name, "neutral") + 1 > mean(name, "sad") + 1.5
    for name in ("words_arousal", "voice_arousal", "face_arousal"):
        assert mean(name, "angry") > mean(name, "sad") + 1.5


def test_sentences_are_short_and_varied() -> None:
    random = np.random.default_rng(SEED)
    sentences = [words.sentence(random.uniform(-3, 3), None, random) for _ in range(2000)]
    lengths = [len(text.split()) for text in sentences]
    assert 6 <= np.mean(lengths) <= 10
    assert max(lengths) <= 18
    assert len({word for text in sentences for word in text.replace(",", "").split()}) > 300
    assert len(set(sentences)) > 1800


def test_the_voice_opens_the_mouth() -> None:
    samples = video.SAMPLES_PER_FRAME
    wave = np.repeat(np.array([0.0, 0.1, 0.4, 0.2], np.float32), samples)
    np.testing.assert_allclose(video.openings(wave), [0, 0.125, 0.5, 0.25], rtol=1e-5)
    expressions = video.expressions(np.tile(wave, 10), 0.0, 0.0, np.random.default_rng(1))
    assert len(expressions) == 40
    assert np.corrcoef([e.opening for e in expressions], np.tile([0, 0.125, 0.5, 0.25], 10))[0, 1] > 0.9


def test_a_folder_in_use_is_rejected_and_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    assert main(["--out", str(tmp_path / "data"), "--clips", "4"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "data") in error
    assert error.count("\n") == 1
    assert content(tmp_path) == {"data/mine.txt": b"mine"}


STOPPED = """
import os, signal, sys
from qamoe.data.synthetic import corpus
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
def interrupted(*arguments, make_all=corpus._make_all):
    for row in make_all(*arguments):
        os.killpg(0, signal.SIGINT)
        yield row
corpus._make_all = interrupted
sys.exit(corpus.main(["--out", sys.argv[1], "--clips", "40", "--processes", "2"]))
"""


@pytest.mark.slow
def test_ctrl_c_prints_one_sentence_and_leaves_no_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clips": 3}, r"clips is 3\b.*\b4\b"),
        ({"task": "five"}, "task is 'five'.*regression.*four-classes"),
        ({"processes": 0}, r"processes is 0\b.*\b1\b"),
    ],
)
def test_arguments_out_of_range_are_rejected(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    arguments = {"clips": 4, "seed": SEED, "task": "regression", "processes": 1} | changed
    with pytest.raises(UserError, match=named):
        generate(tmp_path / "data", **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_its_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"espeakng_loader.*'\.\[sample\]'"):
        generate(tmp_path / "data", 4, SEED, "regression", 1)
    assert not list(tmp_path.iterdir())


def test_a_failure_while_generating_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(video, "write", fail)
    with pytest.raises(OSError, match="full"):
        generate(tmp_path / "data", 4, SEED, "regression", 1)
    assert not list(tmp_path.iterdir())


def _features(corpus: Path, folder: Path) -> dict[str, np.ndarray]:
    """Return inputs of a simple regressor per clip: means and deviations over frames, and the mean token state."""
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
        content = read_part(part)
        assert isinstance(content, np.ndarray), f"{job.clip_id}, {job.modality}: {content}"
        frames[job.modality].append(content)
    assert np.concatenate(frames["vision"])[:, -1].mean() > 0.995  # a face in practically every frame
    pooled = {m: np.stack([np.concatenate([f.mean(0), f.std(0)]) for f in frames[m]]) for m in frames}
    tokens = [MiniLM(50).extract(clip["text"])[0] for clip in clips]
    return {"text": np.stack([state[1:-1].mean(0) for state in encode_all(tokens, "cpu")]), **pooled}


def _error(blocks: list[np.ndarray], label: np.ndarray, sources: list[str]) -> float:
    """Return the mean absolute error of ridge regression on unseen people; all blocks have the same weight."""
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
def test_each_modality_is_informative_none_is_sufficient_and_text_is_best(tmp_path: Path) -> None:
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
