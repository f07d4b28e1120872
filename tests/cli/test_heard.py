"""`qamoe predict` without a text: it says what it heard, or which command brings speech recognition."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.cli import predict
from qamoe.extractors.transcribe import Transcribe
from tests.fixtures.served import written
from tests.fixtures.speech import SENTENCE, said

Predict = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines(checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    def predict_lines(*paths: Path, text: str | None = None, transcribe: bool = True) -> list[dict[str, Any]]:
        predict.predict(list(paths), text, None, "", checkpoint_folder, True, transcribe)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return predict_lines


def test_the_reason_names_the_command_that_brings_recognition(
    lines: Predict, voice: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path / "none"))
    clip = written(tmp_path / "clip.wav", voice)
    (answer,) = lines(clip)
    assert answer["reasons"]["text"].startswith("no transcript; ")
    assert "run: " in answer["reasons"]["text"]
    assert (answer["text"], answer["words"]) == (None, None)
    (off,) = lines(clip, transcribe=False)
    assert off["reasons"]["text"] == "no transcript"
    (typed,) = lines(clip, text="a lovely film")
    assert (typed["text"], typed["words"]) == ("a lovely film", None)
    assert "text" not in typed["reasons"]


@pytest.mark.slow
def test_a_clip_without_a_transcript_is_predicted_from_what_is_heard(
    lines: Predict, recogniser: Transcribe, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spoken = written(tmp_path / "spoken.wav", said())
    hiss = written(tmp_path / "hiss.wav", np.random.default_rng(0).standard_normal(44_100) * 1e-3)
    heard, silent = lines(spoken, hiss)
    words = heard["text"].lower().replace(".", "").replace(",", "").split()
    assert len(set(words) & set(SENTENCE.split())) >= 5
    assert heard["trust"]["text"] > 0
    assert "text" not in heard["reasons"]
    assert [word["word"] for word in heard["words"]] == heard["text"].split()
    assert all(0 < word["confidence"] <= 1 and word["start_s"] <= word["end_s"] for word in heard["words"])
    assert silent["reasons"]["text"] == "no speech"
    assert (silent["text"], silent["words"], silent["trust"]["text"]) == (None, None, 0)
    spoken.with_suffix(".txt").write_text("typed words")
    (typed,) = lines(spoken)
    assert (typed["text"], typed["words"]) == ("typed words", None), "a transcript file wins over the voice"
    spoken.with_suffix(".txt").unlink()
    predict.predict([spoken], None, None, "", checkpoint_folder, False)
    assert f"heard  {heard['text']}" in capsys.readouterr().out
