"""Degrade the raw signals (audio, video frames and transcript) before features are extracted.

These degradations happen outside a laboratory and are not part of protocol 1. A slice of the evaluation uses them to
test whether robustness learnt on degraded features transfers to degraded signals. A severity in [0, 1] stands for a
physical amount, documented at each kind (our decisions). Severity 0 returns the input itself; the input is never
changed. The draws do not depend on the severity, so whatever is lost at one severity is lost at every higher one. To
add a kind, write one function and one line.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, sqrt

import numpy as np
import torch

from qamoe.media.word_confusion import Vocabulary
from qamoe.rng import Draws, clip_key

VERSION = 1
PACKET_S = 0.02  # length of an audio packet in kind dropouts
VOICES = 4  # in kind babble
_TELEPHONE = (8_000.0, 1_500.0)  # Hz, the bandwidth of kind codec at severities 0 and 1
_BITS = (8, 3)  # mu-law resolution of kind codec at severities 0 and 1
_MU = 255

Wave = np.ndarray  # (N,) float32
Frame = np.ndarray  # (H, W, 3) uint8 RGB
AudioDegradation = Callable[[Wave, float, float, Draws, Sequence[Wave]], Wave]
FrameDegradation = Callable[[Iterable[Frame], float, Draws], Iterator[Frame]]


def draws_for(seed: int, clip_id: str, kind: str, number: int = 0) -> Draws:
    """Return the random numbers of one clip and one kind of signal degradation.

    The kind is part of the key and not a separate stream: a new stream would change every draw of protocol 1.
    """
    key = torch.tensor([clip_key(f"signal {kind} {clip_id}")], dtype=torch.int64)
    return Draws(seed, key, MODALITY[kind], "noise", number)


def snr_db(severity: float) -> float:
    """Return the signal-to-noise ratio of kinds noise and babble: 30 dB just above severity 0, 10 at .5, -10 at 1."""
    return 30 - 40 * severity


def _mix(wave: Wave, noise: Wave, severity: float) -> Wave:
    """Return wave + noise, at the severity's ratio of their mean powers over the whole clip. Silence stays silent."""
    power, other = (float((part.astype(np.float64) ** 2).mean()) for part in (wave, noise))
    if not power or not other:
        return wave
    gain = sqrt(power / other / 10 ** (snr_db(severity) / 10))
    return (wave + gain * noise.astype(np.float64)).astype(np.float32)


def noise(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """Add white Gaussian noise at `snr_db(severity)`."""
    return _mix(wave, draws.normal(len(wave))[0].numpy(), severity)


def babble(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """Add the speech of other people, equally loud and repeated as needed, at `snr_db(severity)`."""
    crowd = np.zeros(len(wave))
    for other, start in zip(others, draws.uniform(max(1, len(others)))[0].tolist(), strict=False):
        power = float((other.astype(np.float64) ** 2).mean()) if len(other) else 0.0
        if power:
            samples = int(start * len(other)) + np.arange(len(wave))
            crowd += other.astype(np.float64)[samples % len(other)] / sqrt(power)
    return _mix(wave, crowd, severity)


def codec(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """Imitate a bad telephone: 8 down to 1.5 kHz of bandwidth, and mu-law (ITU-T G.711) with 8 down to 3 bits."""
    highest = _TELEPHONE[0] + severity * (_TELEPHONE[1] - _TELEPHONE[0])
    narrow = _low_pass(wave, rate, highest)
    peak = float(np.abs(narrow).max(initial=0.0))
    if not peak:
        return wave
    steps = 2 ** round(_BITS[0] + severity * (_BITS[1] - _BITS[0])) / 2 - 1
    compressed = np.log1p(_MU * np.abs(narrow) / peak) / np.log1p(_MU)
    level = np.expm1(np.rint(compressed * steps) / steps * np.log1p(_MU)) / _MU
    return _low_pass(np.sign(narrow) * level * peak, rate, highest).astype(np.float32)


def _low_pass(wave: np.ndarray, rate: float, highest: float) -> np.ndarray:
    """Return the part of the signal up to `highest` Hz, float64."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    spectrum[np.fft.rfftfreq(len(wave), 1 / rate) > highest] = 0
    return np.fft.irfft(spectrum, len(wave))


def dropouts(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """Lose packets of 20 ms (set them to zero), each with probability `severity`."""
    size = round(PACKET_S * rate)
    lost = draws.uniform(ceil(len(wave) / size))[0].numpy() < severity
    return np.where(np.repeat(lost, size)[: len(wave)], np.float32(0), wave)


def occlusion(frames: Iterable[Frame], severity: float, draws: Draws) -> Iterator[Frame]:
    """Hide a share `severity` of the area under a grey rectangle, at one position per clip."""
    down, right = draws.uniform(2)[0].tolist()
    side = sqrt(severity)
    for frame in frames:
        height, width = frame.shape[:2]
        rows, columns = round(side * height), round(side * width)
        top, left = round(down * (height - rows)), round(right * (width - columns))
        hidden = frame.copy()
        hidden[top : top + rows, left : left + columns] = 128
        yield hidden


def blur(frames: Iterable[Frame], severity: float, draws: Draws) -> Iterator[Frame]:
    """Blur with a Gaussian whose standard deviation is severity / 20 of the frame's height."""
    import cv2

    for frame in frames:
        yield cv2.GaussianBlur(frame, (0, 0), severity * frame.shape[0] / 20)


def darkness(frames: Iterable[Frame], severity: float, draws: Draws) -> Iterator[Frame]:
    """Scale the light by 1 - severity and add sensor noise (8 grey levels x severity, the same in R, G and B)."""
    for number, frame in enumerate(frames):
        height, width = frame.shape[:2]
        frame_draws = Draws(draws.seed, draws.clips, draws.modality, draws.stream, number)
        grain = frame_draws.normal(height * width)[0].numpy().reshape(height, width, 1)
        yield np.rint((1 - severity) * frame + 8 * severity * grain).clip(0, 255).astype(np.uint8)


def lost_frames(frames: Iterable[Frame], severity: float, draws: Draws) -> Iterator[Frame]:
    """Lose each frame with probability `severity`; the last frame is shown in its place, or black before the first."""
    shown: Frame | None = None
    for number, frame in enumerate(frames):
        lost = float(Draws(draws.seed, draws.clips, draws.modality, draws.stream, number).uniform(1)) < severity
        if not lost:
            shown = frame
        yield np.zeros_like(frame) if shown is None else shown


AUDIO: dict[str, AudioDegradation] = {"noise": noise, "babble": babble, "codec": codec, "dropouts": dropouts}
VISION: dict[str, FrameDegradation] = {
    "occlusion": occlusion,
    "blur": blur,
    "darkness": darkness,
    "lost_frames": lost_frames,
}
TEXT = ("word_errors",)
MODALITY = {**dict.fromkeys(TEXT, "text"), **dict.fromkeys(AUDIO, "audio"), **dict.fromkeys(VISION, "vision")}


def cells(severities: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, float]]:
    """Yield name, kind and severity of each cell of slice `signals`; severities ascend, and 0 is not among them."""
    for kind, levels in severities.items():
        for severity in sorted(levels):
            yield f"signals-{MODALITY[kind]}-{kind}-{severity:g}", kind, severity


def degrade_audio(
    kind: str, wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave] = ()
) -> Wave:
    """Degrade audio (N,) at `rate` Hz by a kind of AUDIO; `others` are voices for kind babble, each (N',) at `rate`."""
    return AUDIO[kind](wave, rate, severity, draws, others) if severity > 0 and len(wave) else wave


def degrade_frames(kind: str, seen: Iterable[Frame], severity: float, draws: Draws) -> Iterator[Frame]:
    """Degrade video frames (H, W, 3) uint8 by a kind of VISION, one after the other."""
    return VISION[kind](seen, severity, draws) if severity > 0 else iter(seen)


def word_errors(text: str, severity: float, draws: Draws, vocabulary: Vocabulary) -> str:
    """Return the transcript of a speech recogniser with a word error rate of about `severity`.

    Each word is wrong with probability `severity`. Of the wrong words, 60 % become one of the three words of the
    vocabulary that sound most alike, 25 % are deleted, and 15 % are followed by an inserted word, drawn by its
    frequency (the shares are our decision). The measured rate, by the best alignment, is lower where nearly every word
    is wrong: .8 at severity 1.
    """
    if severity <= 0:
        return text
    words = text.split()
    numbers = draws.uniform(4 * max(1, len(words)))[0].view(-1, 4).tolist()
    recognised: list[str] = []
    for word, (hit, how, which, extra) in zip(words, numbers, strict=False):
        if hit >= severity or not vocabulary.words:
            recognised.append(word)
        elif how < 0.6:
            recognised.append(vocabulary.confuse(word, which))
        elif how >= 0.85:
            recognised += [word, vocabulary.draw_by_frequency(extra)]
    return " ".join(recognised)
