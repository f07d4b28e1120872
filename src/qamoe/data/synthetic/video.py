"""Films of the sample corpus: a spoken sentence and the drawn face that says it, as one mp4 of the same length."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from qamoe.data.synthetic import face, voice

PICTURE_RATE = 10  # Hz
SAMPLES_PER_PICTURE = voice.RATE // PICTURE_RATE
_SOUND_BITS = 40_000  # a second
_QUALITY = "27"  # x264's constant rate factor


def fitted(wave: np.ndarray) -> np.ndarray:
    """The sound with zeros behind it up to a whole number of pictures, so that both streams end together."""
    return np.pad(wave, (0, -len(wave) % SAMPLES_PER_PICTURE))


def openings(wave: np.ndarray) -> np.ndarray:
    """Sound fitted to pictures -> (pictures,) how far the mouth opens: half of the voice's relative energy."""
    energy = np.sqrt((wave.reshape(-1, SAMPLES_PER_PICTURE) ** 2).mean(1))
    return 0.5 * energy / max(float(energy.max()), 1e-9)


def expressions(wave: np.ndarray, feeling: float, arousal: float, random: np.random.Generator) -> list[face.Expression]:
    """What the face does while the sentence is said, one expression a picture.

    `feeling` (about -3 to 3) moves mouth corners, brows and eyes; `arousal` (about -1.5 to 1.5) draws the brows down
    (or, below 0, lifts their inner ends) and widens the eyes.
    """
    opening = openings(wave)
    count = len(opening)
    x = feeling / 3
    smile = 0.75 * x + random.normal(0, 0.06)
    brow = 0.45 * x + 0.10 * arousal + random.normal(0, 0.10)
    frown = -0.45 * x + 0.50 * arousal + random.normal(0, 0.08)
    squint = 0.45 * max(x, 0) - 0.25 * arousal + random.normal(0, 0.08)
    # The expression comes up over the first half second and then sways a little, as the head does.
    strength = np.minimum(1, 0.55 + 0.09 * np.arange(count))
    sway = _sways(count, 6, random)
    blinks = np.zeros(count)
    blinks[random.random(count) < 0.04] = 1
    mouth = np.clip(opening + random.normal(0, 0.05, count), 0, 1)
    return [
        face.Expression(
            smile=smile * strength[i] + 0.05 * sway[0, i],
            brow=brow * strength[i] + 0.08 * sway[1, i],
            frown=frown * strength[i],
            squint=squint * strength[i],
            opening=mouth[i],
            blink=blinks[i],
            turn=3.0 * sway[2, i],
            right=4.0 * sway[3, i],
            down=3.0 * sway[4, i],
            gaze=sway[5, i],
        )
        for i in range(count)
    ]


def _sways(count: int, kinds: int, random: np.random.Generator) -> np.ndarray:
    """(kinds, count) slow movements within about -1 to 1."""
    time = np.arange(count) / PICTURE_RATE
    rate = random.uniform(0.15, 0.6, (kinds, 1))
    phase = random.uniform(0, 2 * np.pi, (kinds, 1))
    return random.uniform(0.3, 1.0, (kinds, 1)) * np.sin(2 * np.pi * rate * time + phase)


def write(path: Path, wave: np.ndarray, pictures: Iterable[np.ndarray]) -> None:
    """Write sound (N,) float32 at 22.05 kHz and pictures (H, W, 3) RGB at 10 Hz as H.264 and AAC in mp4.

    x264 runs on one thread without its assembler: with it, the same pictures give other bytes in some runs.
    """
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        film = container.add_stream("libx264", rate=PICTURE_RATE)
        film.width = film.height = face.SIZE
        film.pix_fmt = "yuv420p"
        film.codec_context.thread_count = 1
        film.options = {"crf": _QUALITY, "preset": "veryfast", "x264-params": "asm=0:threads=1"}
        sound = container.add_stream("aac", rate=voice.RATE, layout="mono")
        sound.bit_rate = _SOUND_BITS
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, PICTURE_RATE)
            container.mux(film.encode(frame))
        container.mux(film.encode(None))
        spoken = av.AudioFrame.from_ndarray(wave.astype(np.float32).reshape(1, -1), format="fltp", layout="mono")
        spoken.sample_rate, spoken.pts = voice.RATE, 0
        spoken.time_base = Fraction(1, voice.RATE)
        container.mux(sound.encode(spoken))
        container.mux(sound.encode(None))
