"""Measure how sure speech recognition is of its right and of its wrong words, on speech of the sample generator.

Prints the word error rate and the mean confidence at each ratio of voice to noise, and the quantiles of the confidence
of right and of wrong words, which src/qamoe/degradation/word_confidence.py has. Sentences, voices and noise are drawn
with a fixed seed, so the table can be made again; other processors may change its last digit.
"""

import string
import wave
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qamoe.config import settings
from qamoe.data.synthetic import voice, words
from qamoe.errors import exit_on_user_error
from qamoe.extractors.transcribe import Transcribe
from qamoe.media.decode import ClipError

MODEL = "whisper-tiny.en"
CLIPS, SEED = 350, 11
RATIOS = (None, 20, 15, 10, 5, 0, -5)  # dB; None: no noise
QUANTILES = 33


def speech(clips: int) -> Iterator[tuple[int | None, str, np.ndarray]]:
    """Yield ratio, sentence and audio (N,) at voice.RATE of clips, half of the noise white and half pink."""
    for clip in range(clips):
        random = np.random.default_rng([SEED, clip])
        feeling = random.uniform(-2.5, 2.5)
        text = words.sentence(feeling, None, random)
        spoken = voice.say(text, voice.invent(random), feeling, random.normal(0, 0.5), random)
        spoken = np.pad(spoken, voice.RATE // 2)  # half a second before and after
        ratio = RATIOS[clip % len(RATIOS)]
        yield ratio, text, spoken if ratio is None else spoken + _noise(spoken, ratio, bool(clip % 2), random)


def _noise(spoken: np.ndarray, ratio: float, pink: bool, random: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(random.standard_normal(len(spoken)))
    if pink:  # its power falls by 3 dB an octave
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, len(spoken))
    return noise * np.sqrt((spoken**2).mean() / (noise**2).mean() / 10 ** (ratio / 10))


def _plain(texts: Sequence[str]) -> list[str]:
    return [text.strip(string.punctuation).lower() for text in texts]


def right_words(spoken: str, heard: Sequence[str]) -> np.ndarray:
    """Return for each recognised word (W,) whether it is one of the spoken words, in their order."""
    right = np.zeros(len(heard), bool)
    for block in SequenceMatcher(None, _plain(spoken.split()), _plain(heard), autojunk=False).get_matching_blocks():
        right[block.b : block.b + block.size] = True
    return right


def measure(clips: int) -> dict[int | None, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Recognise clips; return by ratio the number of spoken words, and of each heard word its confidence and truth."""
    recogniser = Transcribe(MODEL)
    measured = defaultdict(list)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        for ratio, text, audio in speech(clips):
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, voice.RATE, len(audio), "NONE", ""))
                file.writeframes((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
            try:
                heard = recogniser.extract(path)
            except ClipError:
                measured[ratio].append((len(text.split()), np.zeros(0), np.zeros(0, bool)))
                continue
            measured[ratio].append((len(text.split()), heard["confidence"], right_words(text, heard["word"].tolist())))
    return measured


def main() -> None:
    """Measure, and print the figures and the table."""
    settings.go_offline()
    measured = measure(CLIPS)
    print("ratio dB | clips | without text | right words of 100 spoken | wrong words of 100 spoken | confidence")
    for ratio in RATIOS:
        clips = measured[ratio]
        spoken = sum(count for count, _, _ in clips)
        confidence, right = (np.concatenate([clip[which] for clip in clips]) for which in (1, 2))
        shares = f"{100 * right.sum() / spoken:.1f} | {100 * (~right).sum() / spoken:.1f}"
        silent = sum(not len(clip[1]) for clip in clips)
        print(f"{'none' if ratio is None else ratio} | {len(clips)} | {silent} | {shares} | {confidence.mean():.3f}")
    everything = [clip for clips in measured.values() for clip in clips]
    confidence, right = (np.concatenate([clip[which] for clip in everything]) for which in (1, 2))
    print(_table("RIGHT", confidence[right]))
    print(_table("WRONG", confidence[~right]))
    better = (confidence[right][:, None] > confidence[~right]).mean()
    print(f"{right.sum()} right and {(~right).sum()} wrong words; a right one is surer than a wrong one: {better:.3f}")


def _table(name: str, confidence: np.ndarray) -> str:
    """Return the line of qamoe.degradation.word_confidence that has these quantiles."""
    quantiles = np.quantile(confidence, np.linspace(0, 1, QUANTILES))
    return f"{name} = ({', '.join(f'{value:.3f}' for value in quantiles)})"


if __name__ == "__main__":
    with exit_on_user_error("word_confidences"):
        main()
