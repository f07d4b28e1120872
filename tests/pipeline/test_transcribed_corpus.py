"""Clips without a transcript in the stages: their words come from the voice, with confidences, and are made once."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.config import params as parameters
from qamoe.data import validate
from qamoe.data.arrow_store import Store
from qamoe.data.manifest import COLUMNS
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.transcribe import Transcribe
from qamoe.pipeline import extract, preprocess
from tests.fixtures.served import written
from tests.fixtures.speech import SENTENCE, said

MODEL = "whisper-tiny.en"


@pytest.fixture
def load(params_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Write a corpus of a typed clip, a spoken one and hiss, both without a transcript; return its parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_WORKERS", "1")
    (tmp_path / "data").mkdir()
    hiss = np.random.default_rng(0).standard_normal(44_100) * 1e-3
    rows = [("typed", said(), "a lovely film", "train"), ("spoken", said(), "", "train"), ("hiss", hiss, "", "test")]
    with (tmp_path / "data/manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for number, (name, audio, text, split) in enumerate(rows):
            written(tmp_path / f"data/{name}.wav", audio)
            cells = {"clip_id": name, "source": name, "path": f"{name}.wav", "text": text, "split": split}
            writer.writerow(cells | {"label": number})

    def with_changes(**changes: Any) -> Any:
        settings = {"corpus": {"kind": "clips", "path": "data"}, "text.transcribe": MODEL, "max_problem_share": 1.0}
        return parameters.load(params_file({f"extract.{name}": value for name, value in (settings | changes).items()}))

    return with_changes


def test_without_the_recogniser_the_stage_and_the_check_say_so(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path / "none"))
    extractor.cache_clear()  # where the weights are fetched, another test may have loaded them
    with pytest.raises(UserError, match="run: "):
        extract.run(load(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    findings = validate.check(tmp_path / "data", load().extract)
    assert any("run: " in error for error in findings.errors), findings.errors
    assert not any("has no text" in warning for warning in findings.warnings)
    off = validate.check(tmp_path / "data", load(**{"text.transcribe": None}).extract)
    assert [warning for warning in off.warnings if "has no text" in warning] != []


def test_typed_text_has_full_confidence(load: Callable[..., Any], tmp_path: Path) -> None:
    params = load(**{"text.transcribe": None})
    extract.run(params, tmp_path / "out")
    text = Store(tmp_path / "out/extract/text.arrow")
    confidence = [text.sequence("confidence", row).tolist() for row in range(3)]
    assert confidence == [[], [], [1.0] * len(text.sequence("ids", 2))]
    assert not text.lengths("start_s").any()
    preprocess.run(params, tmp_path / "out")
    train = Store(tmp_path / "out/preprocess/train.arrow")
    assert [len(train.sequence("confidence", row)) for row in range(2)] == train.lengths("text").tolist()


@pytest.mark.slow
def test_the_words_of_the_voice_are_stored_with_confidence_and_times(
    load: Callable[..., Any], recogniser: Transcribe, tmp_path: Path
) -> None:
    params, out = load(), tmp_path / "out"
    assert any(f"2 clips without one: to be recognised by {MODEL}" in line
               for line in validate.check(tmp_path / "data", params.extract).summary)  # fmt: skip
    extract.run(params, out)
    text = Store(out / "extract/text.arrow")
    assert text.clip_ids == ["hiss", "spoken", "typed"]
    assert text.lengths("ids").tolist()[0] == 0
    heard = recogniser.extract(tmp_path / "data/spoken.wav")
    words, confidence = text.column("words")[1], text.sequence("confidence", 1)
    assert len(set(words) & set(SENTENCE.split())) >= 5
    assert len(confidence) == len(words) == len(text.sequence("start_s", 1))
    assert confidence[[0, -1]].tolist() == [1.0, 1.0]
    assert set(confidence[1:-1].tolist()) == set(heard["confidence"].tolist())
    assert np.isnan(text.sequence("end_s", 1)[[0, -1]]).all()
    assert np.isfinite(text.sequence("end_s", 1)[1:-1]).all()
    assert text.sequence("confidence", 2).tolist() == [1.0] * len(text.sequence("ids", 2))
    with (out / "extract/problems.csv").open() as file:
        problems = {(row["clip_id"], row["modality"]): row["reason"] for row in csv.DictReader(file)}
    assert problems["hiss", "text"] == "no speech"
    assert ("spoken", "text") not in problems
    preprocess.run(params, out)
    train = Store(out / "preprocess/train.arrow")
    row = train.clip_ids.index("spoken")
    assert train.sequence("confidence", row).tolist() == confidence.tolist()
    assert train.sequence("text", row).tolist() == text.sequence("ids", 1).tolist()


@pytest.mark.slow
def test_a_clip_that_hangs_is_recognised_by_the_next_run_and_the_others_once(
    load: Callable[..., Any], recogniser: Transcribe, tmp_path: Path
) -> None:
    """Loading the model takes longer than the time limit, as a hanging clip would."""
    out = tmp_path / "out"
    extract.run(load(seconds_per_clip=0.01), out)
    parts = out / "extract/parts/text"
    assert "took longer than 0.01 s" in (out / "extract/problems.csv").read_text()
    assert not list(parts.rglob("*.npy"))
    extract.run(load(), out)
    made = {part: part.stat().st_mtime_ns for part in parts.rglob("*.*")}
    assert sorted(part.suffix for part in made) == [".npy", ".problem"]
    stores = (out / "extract/text.arrow").read_bytes()
    extract.run(load(), out)
    assert {part: part.stat().st_mtime_ns for part in parts.rglob("*.*")} == made
    assert (out / "extract/text.arrow").read_bytes() == stores
