"""What a server answers to a clip without a text: the words of its voice, or how it could recognise them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.extractors.transcribe import Transcribe
from qamoe.serving.model_loader import open_model
from tests.fixtures.served import running, written
from tests.fixtures.speech import SENTENCE, said

MEDIA = {"Content-Type": "application/octet-stream"}


def test_an_upload_names_the_command_that_brings_recognition(
    checkpoint_folder: Path, voice: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path / "none"))
    with running(lambda: open_model("", checkpoint_folder)) as server:
        status, clip = server.ask("POST", "/clips", written(tmp_path / "clip.wav", voice).read_bytes(), **MEDIA)
        assert (status, clip["words"]) == (201, None)
        assert "run: " in clip["problems"]["text"]
        assert str(tmp_path) not in clip["problems"]["text"]
        status, answer = server.ask("POST", f"/clips/{clip['id']}/predict", {"text": "a lovely film"})
        assert (status, answer["text"]) == (200, "a lovely film")


@pytest.mark.slow
def test_an_upload_without_text_is_predicted_from_its_voice(
    checkpoint_folder: Path, recogniser: Transcribe, tmp_path: Path
) -> None:
    with running(lambda: open_model("", checkpoint_folder)) as server:
        status, clip = server.ask("POST", "/clips", written(tmp_path / "clip.wav", said()).read_bytes(), **MEDIA)
        assert status == 201
        text = " ".join(word["word"] for word in clip["words"])
        assert len(set(text.lower().strip(".").split()) & set(SENTENCE.split())) >= 5

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            status, content = server.ask("POST", f"/clips/{clip['id']}/predict", request)
            assert status == 200
            assert isinstance(content, dict)
            return content

        heard, typed, silent = answer({}), answer({"text": text}), answer({"text": ""})
        assert (heard["text"], typed["text"], silent["text"]) == (text, text, None)
        assert heard["trust"]["text"] > 0 == silent["trust"]["text"]
