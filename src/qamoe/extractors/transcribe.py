"""Words from the voice: Whisper through faster-whisper, with the probability and the times of each word.

Silero's voice activity detector, which comes with faster-whisper, passes on only speech: without it, Whisper answers
"You" to silence. Decoding is a beam search without sampling, so the same audio gives the same words. Whisper makes up
words for sounds that pass the detector, so a segment that it takes for no speech, or that repeats itself, is left out.
"""

from collections.abc import Callable
from functools import cached_property, partial
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from qamoe.errors import UserError
from qamoe.extractors.level import audible
from qamoe.media.decode import ClipError, read_audio
from qamoe.weights import store

NAME = "transcribe"
VERSION = "1"
SAMPLE_RATE = 16_000  # Hz
_SHORTEST_SPEECH_MS = 250  # a shorter sound is a click or a cough
_NO_SPEECH, _LOG_PROBABILITY = 0.6, -0.8  # a segment above the one and below the other is no speech
_LEVEL, _PEAK = 0.05, 0.95  # root mean square and highest sample of what is recognised, shares of full scale
_PADDING = 700  # hops of 10 ms behind the sound
_REPETITION = 2.4  # how many times smaller zlib makes a text that repeats itself: Whisper's own threshold


def missing(model: str) -> str:
    """Return why speech recognition with these weights cannot run, with the command that helps, or ""."""
    if find_spec("faster_whisper") is None:
        return "speech recognition is not installed; run: pip install -e '.[speech]'"
    if store.place(model) is None:
        return f"the weights of speech recognition are missing; run: qamoe weights fetch {model}"
    return ""


class Transcribe:
    """Recognise the words of a clip: a structured array (W,) of word, confidence in [0, 1], start_s and end_s.

    Times are seconds from the beginning of the span. A word has its punctuation. Raises UserError if the package
    faster-whisper or the weights are missing.
    """

    name = NAME
    version = VERSION
    columns = ("word", "confidence", "start_s", "end_s")
    rate = float(SAMPLE_RATE)

    def __init__(self, model: str) -> None:
        if reason := missing(model):
            raise UserError(f"{reason[0].upper()}{reason[1:]}.")
        self._name = model
        self.made_with = f"{model} faster-whisper {installed_version('faster-whisper')}"

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        self._speech(np.zeros(SAMPLE_RATE, np.float32))
        _ = self._model

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Recognise a span of a file. Raises ClipError if nobody speaks, NoStream without an audio stream."""
        return self.recognise(read_audio(path, SAMPLE_RATE, start_s, end_s))

    def recognise(self, wave: np.ndarray) -> np.ndarray:
        """Recognise audio (N,) at 16 kHz. Raises ClipError for silence and for sound without speech."""
        wave = _levelled(audible(wave))
        if not self._speech(wave):
            raise ClipError("no speech")
        segments, _ = self._model.transcribe(
            wave,
            language="en",
            temperature=0.0,
            condition_on_previous_text=False,
            no_speech_threshold=_NO_SPEECH,
            log_prob_threshold=_LOG_PROBABILITY,
            word_timestamps=True,
            vad_filter=True,
            vad_parameters=self._detector,
        )
        words = _joined([word for part in segments if part.compression_ratio <= _REPETITION for word in part.words])
        if not words:
            raise ClipError("no speech that can be recognised")
        longest = max(len(word) for word, *_ in words)
        types = [("word", f"U{longest}"), *((column, "f4") for column in self.columns[1:])]
        return np.array(words, types)

    def _speech(self, wave: np.ndarray) -> list[dict[str, int]]:
        from faster_whisper.vad import get_speech_timestamps

        spans: list[dict[str, int]] = get_speech_timestamps(wave, self._detector)
        return spans

    @cached_property
    def _detector(self) -> Any:
        from faster_whisper.vad import VadOptions

        return VadOptions(min_speech_duration_ms=_SHORTEST_SPEECH_MS)

    @cached_property
    def _model(self) -> Any:
        from faster_whisper.transcribe import WhisperModel, tqdm

        tqdm.set_lock(RLock())  # its own is a semaphore of the system, which a killed worker would leave behind
        # One thread: workers already recognise one clip per core, and sums then come in a fixed order. A folder, so
        # nothing asks the network.
        folder = str(store.folder(self._name))
        model = WhisperModel(folder, device="cpu", compute_type="float32", cpu_threads=1, num_workers=1)
        model.encode = partial(_encode, model.encode)
        return model


def _encode(encode: Callable[[np.ndarray], Any], features: np.ndarray) -> Any:
    """Encode features (80, T) with some of the zeros that fill them up to 30 s and take most of the time.

    Whisper learnt on windows of 30 s: with hardly any zeros it makes more errors.
    """
    sound = np.flatnonzero(features.any(axis=0))
    length = (len(sound) and sound[-1]) + _PADDING
    return encode(np.ascontiguousarray(features[:, : length + length % 2]))


def _levelled(wave: np.ndarray) -> np.ndarray:
    """Return audio at one level, so that the detector hears a quiet recording as it hears a loud one."""
    root_mean_square = np.sqrt(np.square(wave, dtype=np.float64).mean())
    gain = min(_LEVEL / root_mean_square, _PEAK / np.abs(wave).max())
    return (wave * gain).astype(np.float32)


def word_records(words: np.ndarray) -> list[dict[str, Any]]:
    """Return recognised words as JSON values: word, confidence, start_s and end_s of each."""
    rows = zip(*(words[column].tolist() for column in Transcribe.columns), strict=True)
    return [
        dict(zip(Transcribe.columns, (word, *(round(x, 4) for x in numbers)), strict=True)) for word, *numbers in rows
    ]


def _joined(words: list[Any]) -> list[tuple[str, float, float, float]]:
    """Return text, probability, start and end of each word; what has no space in front belongs to the word before."""
    joined: list[tuple[str, float, float, float]] = []
    for word in words:
        if joined and not word.word.startswith(" "):
            text, probability, start_s, _ = joined[-1]
            joined[-1] = (text + word.word, min(probability, word.probability), start_s, word.end)
        elif word.word.strip():
            joined.append((word.word.strip(), word.probability, word.start, word.end))
    return joined
