"""Degraded media in extract and preprocess: one modality of the test split, normalised by the clean statistics."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store
from qamoe.data.manifest import COLUMNS
from qamoe.data.normalise import Columns, clean
from qamoe.errors import UserError
from qamoe.extractors.logmel import LogMel
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.openface import COLUMNS as MEASURED
from qamoe.media import decode, degradations, degraded_copy
from qamoe.media.degraded_copy import Signal
from qamoe.media.word_confusion import Vocabulary
from qamoe.pipeline import extract, preprocess
from qamoe.pipeline.shared import read_stats
from qamoe.signal_rng import SignalDraws
from tests.media.test_decode import write_media

TEXTS = {"a": "a great film", "b": "a dull night", "c": "the knight was weak", "d": "a great knight", "e": "weak film"}
SPLITS = {"a": "train", "b": "train", "c": "valid", "d": "test", "e": "test"}
CHANGES: dict[str, Any] = {
    "extract.corpus": {"kind": "clips", "path": "data"},
    "extract.audio": {"extractor": "logmel", "rate": 20, "bands": 12},
    "extract.vision": {"extractor": "openface", "rate": 5},
    "extract.signals": {"seed": 3, "severities": {"word_errors": [1.0], "noise": [0.5], "babble": [0.25]}},
    "evaluate.slices": ["clean", "signals"],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write five audio clips, each with the csv file of OpenFace."""
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (name, text) in enumerate(TEXTS.items()):
            writer.writerow((name, name, f"{name}.wav", "", "", text, number - 2, SPLITS[name]))
            write_media(folder / f"{name}.wav", seconds=0.6 + number / 10, streams="a")
            rows = [["timestamp", "success", *MEASURED[:-1]]]
            rows += [[f"{k / 5}", "1", *(f"{number + k + c}" for c in range(len(MEASURED) - 1))] for k in range(4)]
            (folder / f"{name}.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    return folder


@pytest.fixture
def run(
    params_file: Any, tmp_path: Path, data: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.chdir(tmp_path)

    def extract_and_preprocess(changes: dict[str, Any] | None = None) -> SimpleNamespace:
        params = parameters.load(params_file(CHANGES | (changes or {})))
        extract.run(params, tmp_path / "out")
        preprocess.run(params, tmp_path / "out")
        return SimpleNamespace(extract=tmp_path / "out/extract", preprocess=tmp_path / "out/preprocess")

    return extract_and_preprocess


def expected_frames(
    kind: str, clip: str, data: Path, folder: Path, others: tuple[degraded_copy.Voice, ...] = ()
) -> np.ndarray:
    severity = CHANGES["extract.signals"]["severities"][kind][0]
    copy = degraded_copy.write(Signal(kind, severity, 3, clip, others), data / f"{clip}.wav", 0.0, None, 20, folder)
    return LogMel(20, 12).extract(copy)


@pytest.mark.slow
def test_the_degraded_test_split_is_extracted_and_normalised(run: Any, data: Path, tmp_path: Path) -> None:
    out = run()
    noisy = Store(out.extract / "signals/signals-audio-noise-0.5.arrow")
    assert noisy.clip_ids == ["d", "e"]
    for row, clip in enumerate(noisy.clip_ids):
        np.testing.assert_array_equal(noisy.sequence("frames", row), expected_frames("noise", clip, data, tmp_path))
    crowded = Store(out.extract / "signals/signals-audio-babble-0.25.arrow")
    voice = degraded_copy.Voice(data / "e.wav", 0.0, None, "")
    expected = expected_frames("babble", "d", data, tmp_path, (voice,) * 4)
    np.testing.assert_array_equal(crowded.sequence("frames", 0), expected)
    misheard = Store(out.extract / "signals/signals-text-word_errors-1.arrow")
    vocabulary = Vocabulary.from_texts([TEXTS["a"], TEXTS["b"]])
    transcript = degradations.degrade_text(
        "word_errors", TEXTS["d"], 1.0, SignalDraws(3, "d", "word_errors"), vocabulary
    )
    assert transcript != TEXTS["d"]
    assert misheard.sequence("ids", 0).tolist() == MiniLM(50).extract(transcript)[0].tolist()

    stats, test = read_stats(tmp_path / "out"), Store(out.preprocess / "test.arrow")
    for name in ("signals-audio-noise-0.5", "signals-text-word_errors-1"):
        degraded = Store(out.preprocess / f"signals/{name}.arrow")
        assert (degraded.clip_ids, degraded.sources, degraded.labels) == (test.clip_ids, test.sources, test.labels)
        for modality in ("text", "audio", "vision"):
            same = np.array_equal(degraded.sequence(modality, 0), test.sequence(modality, 0))
            assert same == (modality not in name)
    normalised = Store(out.preprocess / "signals/signals-audio-noise-0.5.arrow").sequence("audio", 1)
    np.testing.assert_array_equal(normalised, clean(noisy.sequence("frames", 1), Columns.from_json(stats["audio"])))


@pytest.mark.slow
def test_recorded_noise_comes_from_the_corpus_and_a_harmless_kind_is_a_cell_of_its_own(
    run: Any, data: Path, tmp_path: Path
) -> None:
    (data / "rain").mkdir()
    rain = write_media(data / "rain/rain.wav", seconds=0.5, streams="a")
    severities = {"recorded_noise": [0.5], "gain": [1.0]}
    signals = {"seed": 3, "severities": severities, "recordings": ["rain/*.wav"]}
    out = run({"extract.signals": signals, "evaluate.slices": ["clean", "signals", "harmless"]})
    noisy = Store(out.extract / "signals/signals-audio-recorded_noise-0.5.arrow")
    signal = Signal("recorded_noise", 0.5, 3, "d", (degraded_copy.Voice(rain, 0.0, None, ""),))
    copy = degraded_copy.write(signal, data / "d.wav", 0.0, None, 20, tmp_path)
    np.testing.assert_array_equal(noisy.sequence("frames", 0), LogMel(20, 12).extract(copy))
    louder = Store(out.preprocess / "signals/harmless-audio-gain-1.arrow").sequence("audio", 0)
    np.testing.assert_allclose(louder, Store(out.preprocess / "test.arrow").sequence("audio", 0), atol=0.05)
    with pytest.raises(UserError, match=r"recordings.*snow/\*\.wav.*data"):
        run({"extract.signals": signals | {"recordings": ["snow/*.wav"]}})


@pytest.mark.slow
def test_a_second_run_reuses_features_and_removes_temporary_and_stale_files(run: Any) -> None:
    out = run()
    times = {path: path.stat().st_mtime_ns for path in (out.extract / "parts").rglob("*.npy")}
    stores = {path.name: path.read_bytes() for path in (out.extract / "signals").glob("*.arrow")}
    abandoned = next(iter(times)).parent / ".copy-of-a-worker-that-was-killed"
    abandoned.mkdir()
    run()
    assert {path: path.stat().st_mtime_ns for path in (out.extract / "parts").rglob("*.npy")} == times
    assert {path.name: path.read_bytes() for path in (out.extract / "signals").glob("*.arrow")} == stores
    assert not list((out.extract / "parts").rglob(".copy-*"))
    run({"extract.signals": None, "evaluate.slices": ["clean"]})
    assert not (out.extract / "signals").exists()
    assert not (out.preprocess / "signals").exists()


@pytest.mark.slow
def test_a_clip_that_cannot_be_degraded_is_a_problem_only_in_its_cells(run: Any, data: Path) -> None:
    shutil.copy(data / "manifest.csv", data / "kept")
    (data / "e.wav").write_bytes(b"")
    out = run({"extract.max_problem_share": 1.0})
    with (out.extract / "signals/problems.csv").open(newline="") as file:
        problems = list(csv.reader(file))[1:]
    assert ["signals-audio-noise-0.5", "e", "zero bytes"] in problems
    assert {row[1] for row in problems if "noise" in row[0]} == {"e"}
    assert Store(out.extract / "signals/signals-audio-noise-0.5.arrow").lengths("frames").tolist()[1] == 0


def test_vision_features_that_are_not_read_from_media_cannot_be_degraded(
    run: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_make_parts", lambda params, waiting: {})
    changes = {"extract.signals": {"seed": 3, "severities": {"blur": [0.5]}}, "extract.max_problem_share": 1.0}
    with pytest.raises(UserError, match=r"extract\.signals .*vision.*openface"):
        run(changes)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"extract.signals": {"seed": 3, "severities": {"fog": [0.5]}}}, ("'fog'", "word_errors")),
        ({"extract.signals": {"seed": 3, "severities": {"noise": [0.0]}}}, ("noise", "0.0", "greater than 0")),
        ({"extract.signals": {"seed": 3, "severities": {"noise": [0.5, 0.5]}}}, ("extract.signals", "noise")),
        ({"extract.signals": None}, ("evaluate.slices", "extract.signals")),
        ({"evaluate.slices": ["clean", "harmless"]}, ("evaluate.slices", "harmless")),
        (
            {"extract.signals": {"seed": 3, "severities": {"noise": [0.5]}, "recordings": ["../rain.flac"]}},
            ("extract.signals.recordings", "'../rain.flac'"),
        ),
    ],
)
def test_a_mistake_in_the_parameters_is_named(
    params_file: Any, changes: dict[str, Any], values: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        parameters.load(params_file(CHANGES | changes))
    assert [value for value in values if value not in str(refused.value)] == []


@pytest.mark.parametrize("rate", [5.0, 12.5, 30.0])
def test_a_copy_at_severity_zero_gives_the_same_audio_and_frames(tmp_path: Path, rate: float) -> None:
    path = write_media(tmp_path / "clip.mp4")
    copy = degraded_copy.write(Signal("blur", 0.0, 1, "clip"), path, 0.3, 1.7, rate, tmp_path)
    original, copied = list(decode.read_frames(path, rate, 0.3, 1.7)), list(decode.read_frames(copy, rate))
    assert len(original) == len(copied) > 5
    assert all((one == other).all() for one, other in zip(original, copied, strict=True))
    copy = degraded_copy.write(Signal("noise", 0.0, 1, "clip"), path, 0.3, 1.7, rate, tmp_path)
    np.testing.assert_array_equal(decode.read_audio(path, 44_100, 0.3, 1.7), decode.read_audio(copy, 44_100))


def test_a_missing_stream_or_a_span_without_frames_is_reported(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.wav", streams="a")
    with pytest.raises(decode.NoStream):
        degraded_copy.write(Signal("blur", 0.5, 1, "clip"), path, 0.0, None, 5, tmp_path)
    path = write_media(tmp_path / "clip.mp4")
    with pytest.raises(decode.ClipError, match="5 s"):
        degraded_copy.write(Signal("blur", 0.5, 1, "clip"), path, 5.0, None, 5, tmp_path)
