"""`qamoe check`: faults are reported with file and line, the exit code gives the severity, nothing is written."""

import csv
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from qamoe.cli.app import app
from qamoe.config.params import Params
from qamoe.data import manifest
from qamoe.data.clip import LabelledClip, Utterance
from qamoe.data.manifest import COLUMNS
from qamoe.data.validate import Findings, check, kind_of
from qamoe.errors import UserError
from qamoe.extractors.minilm import MiniLM
from tests.fixtures.copies import Audio, write
from tests.fixtures.research_data import shared_data
from tests.media.test_containers import RATE, film, tracks
from tests.media.test_decode import write_media

ROOT = Path(__file__).parents[2]
EXTRACT = Params.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())).extract
Corpus = Callable[..., Path]


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A video of 2 s, a truncated one, an audio file and an empty file."""
    folder = tmp_path_factory.mktemp("media")
    whole = write_media(folder / "whole.mp4", options={"movflags": "+faststart"}).read_bytes()
    long = write_media(folder / "long.mp4", seconds=4, size=(320, 240), options={"movflags": "+faststart"}).read_bytes()
    voice = write_media(folder / "voice.wav", streams="a").read_bytes()
    return {"whole.mp4": whole, "half.mp4": long[: len(long) // 2], "voice.wav": voice, "empty.mp4": b""}


@pytest.fixture
def corpus(tmp_path: Path, media: dict[str, bytes]) -> Corpus:
    """Write a clean corpus, followed by the rows of the arguments: corpus({"path": "half.mp4"}, ...)."""

    def make(*changes: dict[str, str]) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        for name, content in media.items():
            (folder / name).write_bytes(content)
        good = {"path": "whole.mp4", "text": "a lovely film", "label": "1", "start_s": "", "end_s": ""}
        rows = [good | {"clip_id": s, "source": s, "split": s, "label": str(i)} for i, s in enumerate(SPLITS)]
        rows.insert(1, good | {"clip_id": "second", "source": "train", "split": "train", "label": "-3"})
        extra = [{"clip_id": f"new-{i}", "source": f"new-{i}", "split": "train"} for i in range(len(changes))]
        rows += [good | new | change for new, change in zip(extra, changes, strict=True)]
        with (folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return make


SPLITS = ("train", "valid", "gate", "test")
FIRST = 7  # the line of the first additional row


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


def check_and_compare(folder: Path) -> Findings:
    """Check a corpus and assert that nothing was written."""
    before = snapshot(folder.parent)
    findings = check(folder, EXTRACT)
    assert snapshot(folder.parent) == before
    return findings


def test_a_clean_corpus_is_summarised_without_faults(corpus: Corpus) -> None:
    findings = check_and_compare(corpus())
    assert (findings.errors, findings.warnings, findings.exit_code) == ([], [], 0)
    summary = "\n".join(findings.summary)
    assert "kind clips" in summary
    assert "clips        5, of 4 sources" in summary
    assert "duration     2.0 to 2.0 s, median 2.0 s, 0.2 min in all" in summary
    for line in ("train        2        1   -1.50 1.50  -3 to 0", "test         1        1   +3.00 0.00  3 to 3"):
        assert line in summary
    for modality in ("text", "audio", "vision"):
        assert f"{modality:12} 5 clips" in summary


def assert_faults(faults: list[str], folder: Path, expected: list[tuple[int, list[str]]]) -> None:
    """Assert the line of the manifest, and the values, that each fault names."""
    assert len(faults) == len(expected)
    for fault, (line, values) in zip(faults, expected, strict=True):
        assert fault.startswith(f"{folder}/manifest.csv, line {line}: ")
        assert [value for value in values if value not in fault] == [], fault


def test_an_unusable_clip_is_a_warning_with_its_line(corpus: Corpus) -> None:
    folder = corpus(
        {"path": "half.mp4"},
        {"path": "empty.mp4"},
        {"path": "voice.wav"},
        {"start_s": "5", "end_s": "6"},
        {"start_s": "1", "end_s": "2.2"},
        {"start_s": "1", "end_s": "9"},
        {"text": ""},
        *[{}] * 60,
    )
    findings = check_and_compare(folder)
    expected = [
        (13, ["new-6"]),
        (FIRST, ["half.mp4: cannot be decoded"]),
        (8, ["empty.mp4"]),
        (10, ["start_s 5 ", "whole.mp4", "2.00 s"]),
        (12, ["end_s 9 ", "whole.mp4", "2.00 s"]),
    ]
    assert_faults(findings.warnings, folder, expected)
    assert (findings.errors, findings.exit_code) == ([], 1)
    assert "vision       69 clips" in "\n".join(findings.summary), "all except the two damaged files and the audio file"


ODD = ["...", "\u200f", "\x00", "\x01\u200e", "so \u200f good", "😀", "我很高兴", "word " * 2000, "x" * 200, "a\x00b"]


def test_the_check_counts_the_texts_that_extraction_reads(corpus: Corpus) -> None:
    folder = corpus(*({"text": text} for text in ODD))
    findings = check_and_compare(folder)
    clips = manifest.read(folder, EXTRACT.task).clips
    read = sum(len(MiniLM(50).extract(clip.text)[0]) > 0 for clip in clips)
    assert read == 5 + 4
    assert f"text         {read} clips" in "\n".join(findings.summary)
    assert findings.errors == []
    (unread,) = (line for line in findings.warnings if "counts as missing" in line)
    for value in ("3 of 15 clips (20%)", "Chinese 1", "new-5", "line 12"):
        assert value in unread
    (cut,) = (line for line in findings.warnings if "max_tokens" in line)
    for value in ("1 of 15 clips", "new-7", "48 of 2000 words"):
        assert value in cut
    assert [line for line in findings.warnings if "has no text" in line] == [
        f"{folder}/manifest.csv, line {line}: clip new-{line - FIRST} has no text." for line in (8, 9, 10)
    ]


def test_a_text_of_a_corpus_can_be_stored() -> None:
    def text(given: str) -> str:
        return LabelledClip(span=Utterance(clip_id="a", text=given), source="a", split="train", label=0.0).text

    assert text("so \ud83d good").encode() == b"so ? good"
    assert [text(blank) for blank in (" \t", "\u200f\u200e", "\x00\x07")] == ["", "", ""]
    assert text("a\x00 😀") == "a\x00 😀"


def test_a_span_outside_one_stream_is_a_warning(corpus: Corpus, tmp_path: Path) -> None:
    """The sound ends after 1 s, the picture after 4 s."""
    folder = corpus(
        {"path": "short.mp4", "start_s": "2", "end_s": "3"},
        {"path": "short.mp4", "start_s": "0.5", "end_s": "3"},
        {"path": "short.mp4", "start_s": "0.2", "end_s": "0.9"},
        {"path": "short.mp4"},
        *[{}] * 60,
    )
    sound = Audio(np.zeros((1, RATE)), RATE, "aac")
    write(folder / "short.mp4", film(40), sound)
    findings = check(folder, EXTRACT)
    assert_faults(
        findings.warnings, folder, [(FIRST, ["2 s to 3 s", "audio", "short.mp4"]), (8, ["0.5 s to 3 s", "audio"])]
    )
    assert findings.errors == []


def test_a_column_names_the_audio_track_of_a_row(corpus: Corpus) -> None:
    folder = corpus()
    tracks(folder / "films.mkv", (True, False))
    lines = (folder / "manifest.csv").read_text().splitlines()
    rows = [f"{line}," for line in lines[1:]]
    rows += [f"new-{n},new-{n},films.mkv,,,words,1,train,{track}" for n, track in enumerate(("eng", "9"))]
    (folder / "manifest.csv").write_text("\n".join([f"{lines[0]},audio_track", *rows]))
    clips = {clip.clip_id: clip.media for clip in manifest.read(folder, EXTRACT.task).clips}
    assert [media.track for name in ("new-0", "new-1", "test") if (media := clips[name])] == ["eng", "9", ""]
    assert_faults(check(folder, EXTRACT).warnings, folder, [(8, ["films.mkv", "'9'", "1 (jpn", "2 (eng"])])


def test_faults_that_a_stage_would_reject_are_errors(corpus: Corpus) -> None:
    folder = corpus({"label": "7"}, {"path": "gone.mp4"}, {"clip_id": "train"}, {"source": "test"}, {"split": "dev"})
    findings = check_and_compare(folder)
    expected = [
        (7, ["label 7 ", "[-3, 3]"]),
        (8, ["'gone.mp4'"]),
        (11, ["'dev'", "train, valid, gate, test"]),
        (9, ["'train'", "line 2"]),
        (10, ["source 'test'", "split test (clip test)", "split train (clip new-3)"]),
    ]
    assert_faults(findings.errors, folder, expected)
    assert findings.exit_code == 2


def test_too_many_problems_and_empty_splits_are_errors(corpus: Corpus) -> None:
    folder = corpus({"path": "empty.mp4"})
    (error,) = check_and_compare(folder).errors
    assert "1 of 6 clips" in error
    assert "extract.max_problem_share (0.05)" in error
    rows = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join(rows[:3]) + "\n")
    for error, (split, stage) in zip(
        check_and_compare(folder).errors, (("valid", "train"), ("test", "evaluate")), strict=True
    ):
        assert f"{split} split" in error
        assert f"stage {stage}" in error


def test_labels_that_are_words_are_classes(corpus: Corpus) -> None:
    folder = corpus()
    text = (folder / "manifest.csv").read_text()
    for number, word in (("0", "joy"), ("1", "joy"), ("2", "anger"), ("3", "fear"), ("-3", "anger")):
        text = text.replace(f",{number},", f",{word},")
    (folder / "manifest.csv").write_text(text)
    findings = check_and_compare(folder)
    assert "write extract.task: {kind: classification, classes: [anger, fear, joy]}" in findings.summary[0]
    assert "anger                 1      0      1      0" in findings.summary
    (warning,) = findings.warnings
    assert "train" in warning
    assert warning.endswith("class fear.")


def test_a_folder_without_a_manifest_lists_its_media_and_the_header_to_write(corpus: Corpus) -> None:
    folder = corpus()
    (folder / "manifest.csv").unlink()
    (folder / "deep").mkdir()
    (folder / "voice.wav").rename(folder / "deep/voice.WAV")
    (folder / "notes.txt").write_text("not a media file")
    findings = check_and_compare(folder)
    assert [line.split() for line in findings.summary[:2]] == [
        ["2.0", "s", "audio", "deep/voice.WAV"],
        ["2.0", "s", "audio", "and", "video", "whole.mp4"],
    ]
    assert findings.summary[2] == "4 media files"
    assert findings.summary[-1] == "clip_id,source,path,start_s,end_s,text,label,split"
    assert [w.split(":")[0] for w in findings.warnings] == ["empty.mp4", "half.mp4"]
    assert findings.exit_code == 2


@pytest.mark.integration
def test_ready_features_are_summarised_and_infinities_are_warnings(tmp_path: Path) -> None:
    x = np.ones((2, 4, 3))
    split = {"id": ["v$_$1", "v$_$2"], "raw_text": ["a", "b"], "regression_labels": [1.0, 2.0], "audio": x}
    splits: dict[str, Any] = {
        name: split | {"id": [f"{name}$_$1", f"{name}$_$2"]} for name in ("train", "valid", "test")
    }
    splits["valid"]["audio"] = x.copy()
    splits["valid"]["audio"][1, 2] = [np.nan, -np.inf, 1]
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(splits))
    findings = check_and_compare(path)
    assert "audio        6 clips, ready features: 3 columns, 4 to 4 frames" in findings.summary
    assert "vision       0 clips (the corpus lacks it)" in findings.summary
    (warning,) = findings.warnings
    assert warning.startswith(f"{path}, valid, clip valid$_$2: audio holds 2 ")


def test_the_kind_is_recognised_by_the_files(tmp_path: Path) -> None:
    for name, kind in (
        ("train.tsv", "mintrec"),
        ("train_sent_emo.csv", "meld"),
        ("IEMOCAP_features_raw_6way.pkl", "iemocap"),
        ("manifest.csv", "clips"),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        assert kind_of(folder) is None
        (folder / name).touch()
        assert kind_of(folder) == kind
    (folder / "corpus.json").touch()
    assert kind_of(folder) == "sample"
    assert kind_of(folder / "corpus.json") == "mmsa"


def test_a_missing_path_and_an_unknown_kind_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        check(tmp_path / "nowhere", EXTRACT)
    with pytest.raises(UserError, match=r"--kind .*'mosi'.*sample, clips, mmsa, mintrec"):
        check(tmp_path, EXTRACT, "mosi")


def test_the_command_prints_faults_and_exits_by_severity(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = corpus({"clip_id": "\x1b[31mred", "label": "9"}, {"text": "", "clip_id": "\x1b]0;title\x07"})
    done = CliRunner().invoke(app, ["check", str(folder)])
    assert done.exit_code == 2
    assert done.stdout.endswith("1 warning, 1 error\n")
    assert f"error: {folder}/manifest.csv, line 7: label 9 " in done.stdout
    assert "\x1b" not in done.stdout, "a corpus cannot send control characters to the terminal"
    assert CliRunner().invoke(app, ["check", str(folder), "--kind", "sample"]).exit_code == 2


real = shared_data()


@pytest.mark.real_data
@pytest.mark.skipif(not real.is_dir(), reason=f"{real} does not exist")
def test_real_corpora_are_clean() -> None:
    for path, clips in (
        ("mosi/mosi_official.pkl", 2199),
        ("mosi/mosi_speaker_split.pkl", 2199),
        ("text/mintrec", 2224),
    ):
        findings = check(real / path, EXTRACT)
        assert (findings.errors, findings.warnings) == ([], [])
        assert any(line.startswith(f"clips        {clips}, of ") for line in findings.summary)
    findings = check(real / "clips", EXTRACT)
    assert findings.warnings == []
    assert sum("audio and video" in line for line in findings.summary) == 6
    assert "12 media files" in findings.summary
