"""Words from the voice: what is recognised, what is no speech, and how words become tokens with confidences."""

import socket
import wave
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from qamoe.config.extractor_settings import MiniLMSettings, TranscribeSettings, extractor_settings
from qamoe.errors import UserError
from qamoe.extractors.minilm import MiniLM
from qamoe.extractors.registry import extractor, recogniser_of
from qamoe.extractors.transcribe import SAMPLE_RATE, Transcribe, _joined, missing, word_records
from qamoe.inference.predict import clip_row
from qamoe.media.decode import ClipError
from tests.fixtures.served import written
from tests.fixtures.speech import SENTENCE, said

HEARD = np.array(
    [("A", 0.9, 0.0, 0.1), ("masterpiece,", 0.25, 0.1, 0.6), ("really.", 0.5, 0.7, 1.0)],
    [("word", "U12"), ("confidence", "f4"), ("start_s", "f4"), ("end_s", "f4")],
)
MINILM = {"extractor": "minilm", "max_tokens": 50}


def test_without_package_or_weights_a_sentence_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path))
    here = find_spec("faster_whisper") is not None
    command = "qamoe weights fetch whisper-base" if here else "pip install -e '.[speech]'"
    assert command in missing("whisper-base")
    with pytest.raises(UserError, match="run: "):
        extractor(TranscribeSettings(model="whisper-base"))
    config = {"extract": {"text": MINILM}, "stats": {"text": {"vocabulary": 1}}, "modalities": ["text"]}
    assert recogniser_of(config) == missing("whisper-tiny.en")


def test_a_model_that_reads_no_english_words_has_no_recogniser() -> None:
    words, vectors = {"vocabulary": 30_522}, {"kept": [0]}
    folder = {"extractor": "huggingface", "model": "chinese", "max_tokens": 50}
    for text, stats in ((MINILM, vectors), (folder, words), (MINILM, {})):
        assert recogniser_of({"extract": {"text": text}, "stats": {"text": stats}, "modalities": ["text"]}) == ""
    assert recogniser_of({"extract": {"text": folder | {"transcribe": "whisper-base"}}, "stats": {"text": words}}) != ""


def test_a_recogniser_that_is_off_leaves_no_trace_in_settings() -> None:
    off = MiniLMSettings.model_validate(MINILM)
    assert (off.model_dump(), off.weights) == (MINILM, ("minilm",))
    on = MiniLMSettings.model_validate(MINILM | {"transcribe": "whisper-base"})
    assert (on.model_dump()["transcribe"], on.weights) == ("whisper-base", ("minilm", "whisper-base"))
    with pytest.raises(ValidationError, match=r"whisper-tiny\.en"):
        extractor_settings("text", MINILM | {"transcribe": "whisper-huge"})


def test_parts_of_a_word_are_joined_with_the_lower_probability() -> None:
    parts = [(" 5", 0.9), (",000", 0.4), (" times", 0.8), (" ", 0.1), ("!", 0.7)]
    heard = [SimpleNamespace(word=word, probability=p, start=i, end=i + 1) for i, (word, p) in enumerate(parts)]
    assert _joined(heard) == [("5,000", 0.4, 0, 2), ("times!", 0.7, 2, 5)]
    assert _joined([]) == []


def test_each_token_has_the_confidence_of_its_recognised_word() -> None:
    tokens = MiniLM(50)
    ids, words, word_of_id = tokens.extract_spoken(HEARD["word"])
    assert ids.tolist() == tokens.extract("A masterpiece, really.")[0].tolist()
    assert list(zip(words, word_of_id.tolist(), strict=True)) == [
        ("", -1), ("A", 0), ("masterpiece", 1), (",", 1), ("really", 2), (".", 2), ("", -1)
    ]  # fmt: skip
    ids, _, word_of_id = MiniLM(5).extract_spoken(HEARD["word"])
    assert word_of_id.tolist() == [-1, 0, 1, 1, -1], "a long text keeps its first words"
    assert len(tokens.extract_spoken(HEARD["word"][:0])[0]) == 0


def test_a_text_that_is_given_wins_over_the_voice() -> None:
    config = {
        "extract": {"text": MINILM},
        "modalities": ["text", "audio"],
        "stats": {"text": {"vocabulary": 30_522}},
        "max_frames": {"text": 50},
    }
    frames = np.zeros((2, 3), np.float32)
    heard, _ = clip_row(config, None, {"audio": frames, "text": HEARD})  # type: ignore[arg-type]
    assert (heard["text"], heard["audio"] is frames) == (None, True)
    assert heard["confidence"] == pytest.approx([1, 0.9, 0.25, 0.25, 0.5, 0.5, 1])
    assert len(heard["tokens"]) == 7
    for text in ("typed", ""):
        assert clip_row(config, text, {"text": HEARD})[0]["text"] == text  # type: ignore[arg-type]


def test_recognised_words_are_json_values() -> None:
    assert word_records(HEARD)[1] == {"word": "masterpiece,", "confidence": 0.25, "start_s": 0.1, "end_s": 0.6}


@pytest.mark.slow
def test_words_are_recognised_with_probability_and_times(recogniser: Transcribe, tmp_path: Path) -> None:
    path = written(tmp_path / "said.wav", said())
    heard = recogniser.extract(path)
    text = [word.strip(".,").lower() for word in heard["word"].tolist()]
    assert len(set(text) & set(SENTENCE.split())) >= 5, text
    assert ((heard["confidence"] > 0) & (heard["confidence"] <= 1)).all()
    assert (np.diff(heard["start_s"]) >= 0).all()
    assert (heard["end_s"] >= heard["start_s"]).all()
    with wave.open(str(path)) as file:
        assert 0 <= heard["start_s"][0] < 1.5 < heard["end_s"][-1] < file.getnframes() / 22_050
    part = recogniser.extract(path, 0.3)
    assert part["start_s"][-1] == pytest.approx(heard["start_s"][-1] - 0.3, abs=0.2), "times begin with the span"
    assert recogniser.extract(path).tobytes() == heard.tobytes(), "the same audio gives the same words"


@pytest.mark.slow
def test_level_does_not_matter(recogniser: Transcribe, tmp_path: Path) -> None:
    loud = recogniser.extract(written(tmp_path / "loud.wav", said()))
    quiet = recogniser.extract(written(tmp_path / "quiet.wav", said() * 10 ** (-24 / 20)))
    assert quiet["word"].tolist() == loud["word"].tolist()
    assert quiet["confidence"] == pytest.approx(loud["confidence"], abs=0.05)


def _tone(hz: float, time_s: np.ndarray) -> np.ndarray:
    """Return a tone with five overtones."""
    number = np.arange(1, 7)[:, None]
    return np.asarray(0.2 * (np.sin(2 * np.pi * hz * number * time_s) / number).sum(0))


@pytest.mark.slow
def test_sound_without_speech_has_no_text_and_a_reason(recogniser: Transcribe) -> None:
    """Silence, hisses, hums and music: at least 19 of 20, and the reason says so."""
    random, time_s = np.random.default_rng(5), np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    sounds = [np.zeros(len(time_s)), *(random.standard_normal(len(time_s)) * 10 ** (db / 20) for db in (-60, -40, -20))]
    sounds += [_tone(hz, time_s) for hz in (50, 60, 100, 440)]
    for _ in range(12):  # twelve notes of 0.25 s with fading overtones
        notes = random.choice([261.6, 293.7, 329.6, 392.0, 440.0, 523.3], 12)
        each = time_s[: SAMPLE_RATE // 4]
        sounds.append(np.concatenate([_tone(hz, each) * np.exp(-6 * each) for hz in notes]))
    reasons = []
    for sound in sounds:
        try:
            recogniser.recognise(sound.astype(np.float32))
        except ClipError as reason:
            reasons.append(str(reason))
    assert len(sounds) == 20
    assert len(reasons) >= 19
    assert set(reasons) <= {"silence", "no speech", "no speech that can be recognised"}
    assert reasons[0] == "silence"


@pytest.mark.slow
def test_recognition_opens_no_socket(recogniser: Transcribe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(Transcribe("whisper-tiny.en").extract(written(tmp_path / "said.wav", said())))
