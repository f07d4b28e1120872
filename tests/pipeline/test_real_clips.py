"""Real and broken clips in check, extract and predict: every loss is reported."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qamoe.cli import predict
from qamoe.data.arrow_store import Store
from qamoe.data.manifest import COLUMNS
from qamoe.data.validate import check
from qamoe.pipeline import extract
from tests.fixtures.research_data import shared_data

real = shared_data() / "clips" / "cremad"
LABELS = {"ANG": -2.0, "DIS": -1.5, "FEA": -2.0, "HAP": 2.5, "NEU": 0.0, "SAD": -2.0}
BROKEN = {
    "empty.flv": "zero bytes",
    "stub.flv": "neither an audio nor a video stream",
    "words.mp4": "cannot be decoded: Invalid data found when processing input",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write six videos of one actor in train, six audio files of another in valid, and broken files in test."""
    clips = tmp_path / "clips"
    shutil.copytree(real, clips)
    (clips / "empty.flv").write_bytes(b"")
    (clips / "stub.flv").write_bytes((clips / "1001_DFA_SAD_XX.flv").read_bytes()[:2000])
    (clips / "words.mp4").write_text("not a video")
    with (clips / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for path in sorted(clips.glob("*.*")):
            split = {"1001": "train", "1002": "valid"}.get(path.name[:4], "test")
            if path.suffix != ".csv":
                writer.writerow([path.name, split, path.name, "", "", "", LABELS.get(path.name[9:12], 0.0), split])
    return clips


@pytest.mark.real_data
@pytest.mark.skipif(not real.is_dir(), reason=f"{real} does not exist")
def test_real_clips_are_read_and_every_broken_one_is_named_with_its_reason(
    folder: Path,
    tmp_path: Path,
    tiny_params: Any,
    tiny_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QAMOE_WORKERS", "1")
    content = tiny_params.model_dump(mode="json")
    content["extract"] |= {"corpus": {"kind": "clips", "path": str(folder)}, "max_problem_share": 0.25}
    params = type(tiny_params).model_validate(content)

    warnings = check(folder, params.extract).warnings
    for name, reason in BROKEN.items():
        assert sum(warning.endswith(f": {name}: {reason}") for warning in warnings) == 1
    assert len(warnings) == len(BROKEN) + 1, "and the warning that no clip has a text"

    extract.run(params, tmp_path / "out")
    with (tmp_path / "out/extract/problems.csv").open(newline="") as file:
        problems = [tuple(row.values()) for row in csv.DictReader(file)]
    assert problems == [(name, m, reason) for name, reason in BROKEN.items() for m in ("audio", "vision")]
    audio, vision = (Store(tmp_path / f"out/extract/{m}.arrow") for m in ("audio", "vision"))
    videos = {path.name for path in real.glob("*.flv")}
    lengths = zip(audio.clip_ids, audio.lengths("frames"), vision.lengths("frames"), strict=True)
    for name, audio_frames, vision_frames in lengths:
        assert (audio_frames > 30, vision_frames > 8) == (name not in BROKEN, name in videos)

    served = tiny_checkpoint(tmp_path / "qamoe" / "1")
    assert not predict.predict([folder], None, None, "", served, as_json=True)
    answers = {line["clip"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(answers) == {path.name for path in real.iterdir()} | set(BROKEN)
    for name, line in answers.items():
        if name in BROKEN:
            assert (line["score"], line["reasons"]) == (None, {"clip": BROKEN[name]})
        else:
            assert (line["trust"]["audio"] > 0, line["trust"]["vision"] > 0) == (True, name in videos)
            assert set(line["reasons"]) == {"text"} | (set() if name in videos else {"vision"})
