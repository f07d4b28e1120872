"""Degradations of the signals themselves, before features are made of them: sound, pictures and words.

They are what happens outside a laboratory, and not of protocol 1: a slice of the evaluation asks with them whether
what a model learnt from degraded features carries over. A severity in [0, 1] stands for a physical amount, written at
each kind (our decisions); severity 0 gives the input back as it is, and the input is never changed. The draws do not
depend on the severity, so what is lost at one is lost at every higher one. A new kind is one function and one line.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, sqrt

import numpy as np
import torch

from qamoe.media.word_confusion import Vocabulary
from qamoe.rng import Draws, clip_key

VERSION = 1
PACKET_S = 0.02  # of sound, in kind dropouts
VOICES = 4  # in babble
_TELEPHONE = (8_000.0, 1_500.0)  # Hz, the bandwidth of kind codec at severities 0 and 1
_BITS = (8, 3)  # of mu-law, likewise
_MU = 255

Wave = np.ndarray  # (N,) float32
Picture = np.ndarray  # (H, W, 3) uint8 RGB
Sounding = Callable[[Wave, float, float, Draws, Sequence[Wave]], Wave]
Seeing = Callable[[Iterable[Picture], float, Draws], Iterator[Picture]]


def drawn(seed: int, clip_id: str, kind: str, number: int = 0) -> Draws:
    """The random numbers of one clip and kind of signal degradation.

    The kind is a part of the key and not a stream of its own: a further stream would change every draw of protocol 1.
    """
    key = torch.tensor([clip_key(f"signal {kind} {clip_id}")], dtype=torch.int64)
    return Draws(seed, key, MODALITY[kind], "noise", number)


def snr_db(severity: float) -> float:
    """Signal-to-noise ratio of kinds noise and babble: 30 dB just above severity 0, 10 at .5, -10 at 1."""
    return 30 - 40 * severity


def _mixed(wave: Wave, noise: Wave, severity: float) -> Wave:
    """wave + noise at the severity's ratio of their mean powers over the whole clip. Silence stays silent."""
    power, other = (float((part.astype(np.float64) ** 2).mean()) for part in (wave, noise))
    if not power or not other:
        return wave
    gain = sqrt(power / other / 10 ** (snr_db(severity) / 10))
    return (wave + gain * noise.astype(np.float64)).astype(np.float32)


def noise(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """White Gaussian noise at `snr_db(severity)`."""
    return _mixed(wave, draws.normal(len(wave))[0].numpy(), severity)


def babble(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """Other people's speech, each voice equally loud and repeated as often as needed, at `snr_db(severity)`."""
    crowd = np.zeros(len(wave))
    for other, start in zip(others, draws.uniform(max(1, len(others)))[0].tolist(), strict=False):
        power = float((other.astype(np.float64) ** 2).mean()) if len(other) else 0.0
        if power:
            samples = int(start * len(other)) + np.arange(len(wave))
            crowd += other.astype(np.float64)[samples % len(other)] / sqrt(power)
    return _mixed(wave, crowd, severity)


def codec(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """A bad telephone: bandwidth from 8 down to 1.5 kHz, in it mu-law (ITU-T G.711) with 8 down to 3 bits."""
    highest = _TELEPHONE[0] + severity * (_TELEPHONE[1] - _TELEPHONE[0])
    narrow = _low(wave, rate, highest)
    peak = float(np.abs(narrow).max(initial=0.0))
    if not peak:
        return wave
    steps = 2 ** round(_BITS[0] + severity * (_BITS[1] - _BITS[0])) / 2 - 1
    bent = np.log1p(_MU * np.abs(narrow) / peak) / np.log1p(_MU)
    level = np.expm1(np.rint(bent * steps) / steps * np.log1p(_MU)) / _MU
    return _low(np.sign(narrow) * level * peak, rate, highest).astype(np.float32)


def _low(wave: np.ndarray, rate: float, highest: float) -> np.ndarray:
    """What lies below `highest` Hz, float64."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    spectrum[np.fft.rfftfreq(len(wave), 1 / rate) > highest] = 0
    return np.fft.irfft(spectrum, len(wave))


def dropouts(wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave]) -> Wave:
    """Packets of 20 ms are lost (zero), each with probability severity."""
    size = round(PACKET_S * rate)
    gone = draws.uniform(ceil(len(wave) / size))[0].numpy() < severity
    return np.where(np.repeat(gone, size)[: len(wave)], np.float32(0), wave)


def occlusion(pictures: Iterable[Picture], severity: float, draws: Draws) -> Iterator[Picture]:
    """A grey rectangle of the picture's shape hides a share severity of its area, at one place of the clip's own."""
    down, right = draws.uniform(2)[0].tolist()
    side = sqrt(severity)
    for picture in pictures:
        height, width = picture.shape[:2]
        rows, columns = round(side * height), round(side * width)
        top, left = round(down * (height - rows)), round(right * (width - columns))
        hidden = picture.copy()
        hidden[top : top + rows, left : left + columns] = 128
        yield hidden


def blur(pictures: Iterable[Picture], severity: float, draws: Draws) -> Iterator[Picture]:
    """A Gaussian of a standard deviation of severity / 20 of the picture's height."""
    import cv2

    for picture in pictures:
        yield cv2.GaussianBlur(picture, (0, 0), severity * picture.shape[0] / 20)


def darkness(pictures: Iterable[Picture], severity: float, draws: Draws) -> Iterator[Picture]:
    """Light falls to 1 - severity, and the sensor's noise (8 grey levels x severity, the same in R, G and B) stays."""
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        frame_draws = Draws(draws.seed, draws.clips, draws.modality, draws.stream, number)
        grain = frame_draws.normal(height * width)[0].numpy().reshape(height, width, 1)
        yield np.rint((1 - severity) * picture + 8 * severity * grain).clip(0, 255).astype(np.uint8)


def lost_frames(pictures: Iterable[Picture], severity: float, draws: Draws) -> Iterator[Picture]:
    """Each picture is lost with probability severity; the one before stands still, and before the first it is black."""
    shown: Picture | None = None
    for number, picture in enumerate(pictures):
        lost = float(Draws(draws.seed, draws.clips, draws.modality, draws.stream, number).uniform(1)) < severity
        if not lost:
            shown = picture
        yield np.zeros_like(picture) if shown is None else shown


SOUND: dict[str, Sounding] = {"noise": noise, "babble": babble, "codec": codec, "dropouts": dropouts}
PICTURES: dict[str, Seeing] = {
    "occlusion": occlusion,
    "blur": blur,
    "darkness": darkness,
    "lost_frames": lost_frames,
}
WORDS = ("word_errors",)
MODALITY = {**dict.fromkeys(WORDS, "text"), **dict.fromkeys(SOUND, "audio"), **dict.fromkeys(PICTURES, "vision")}


def cells(severities: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, float]]:
    """Name, kind and severity of the cells of slice `signals`, each kind's severities ascending and without 0."""
    for kind, levels in severities.items():
        for severity in sorted(levels):
            yield f"signals-{MODALITY[kind]}-{kind}-{severity:g}", kind, severity


def sound(kind: str, wave: Wave, rate: float, severity: float, draws: Draws, others: Sequence[Wave] = ()) -> Wave:
    """Sound (N,) at `rate` Hz under a kind of SOUND; `others` are voices (kind babble), each (N',) at the same rate."""
    return SOUND[kind](wave, rate, severity, draws, others) if severity > 0 and len(wave) else wave


def pictures(kind: str, seen: Iterable[Picture], severity: float, draws: Draws) -> Iterator[Picture]:
    """Pictures (H, W, 3) uint8 under a kind of PICTURES, one after the other."""
    return PICTURES[kind](seen, severity, draws) if severity > 0 else iter(seen)


def word_errors(text: str, severity: float, draws: Draws, vocabulary: Vocabulary) -> str:
    """What a recogniser with a word error rate of about `severity` might have heard.

    Each word is hit with probability severity: of those six in ten become the word of the vocabulary that sounds
    nearest (or next nearest, drawn among three), a quarter is not heard, and the rest is followed by a word that was
    not said, drawn by its frequency (the shares are our decision). Measured by the best alignment, the rate comes out
    lower where nearly every word is hit: .8 at severity 1.
    """
    if severity <= 0:
        return text
    words = text.split()
    numbers = draws.uniform(4 * max(1, len(words)))[0].view(-1, 4).tolist()
    heard: list[str] = []
    for word, (hit, how, which, extra) in zip(words, numbers, strict=False):
        if hit >= severity or not vocabulary.words:
            heard.append(word)
        elif how < 0.6:
            heard.append(vocabulary.mistaken(word, which))
        elif how >= 0.85:
            heard += [word, vocabulary.frequent(extra)]
    return " ".join(heard)
