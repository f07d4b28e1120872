"""Write videos of the sample corpus: a spoken sentence and the drawn face that speaks it, as one mp4."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from qamoe.data.synthetic import face, voice

FRAME_RATE = 10  # Hz
SAMPLES_PER_FRAME = voice.RATE // FRAME_RATE
_AUDIO_BITS = 40_000  # per second
_QUALITY = "27"  # x264's constant rate factor


def pad_to_frames(wave: np.ndarray) -> np.ndarray:
    """Pad audio with zeros to a whole number of video frames, so that both streams end together."""
    return np.pad(wave, (0, -len(wave) % SAMPLES_PER_FRAME))


def openings(wave: np.ndarray) -> np.ndarray:
    """Return how far the mouth opens in each frame (T,): half the relative energy of the padded audio."""
    energy = np.sqrt((wave.reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1))
    return 0.5 * energy / max(float(energy.max()), 1e-9)


def expressions(wave: np.ndarray, feeling: float, arousal: float, random: np.random.Generator) -> list[face.Expression]:
    """Return the expression of the face in each video frame while the sentence is spoken.

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
    # The expression builds up over the first half second and then sways a little, like the head.
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
    """Return slow movements (kinds, count) within about -1 to 1."""
    time = np.arange(count) / FRAME_RATE
    rate = random.uniform(0.15, 0.6, (kinds, 1))
    phase = random.uniform(0, 2 * np.pi, (kinds, 1))
    return random.uniform(0.3, 1.0, (kinds, 1)) * np.sin(2 * np.pi * rate * time + phase)


def write(path: Path, wave: np.ndarray, images: Iterable[np.ndarray]) -> None:
    """Write audio (N,) float32 at 22.05 kHz and images (H, W, 3) RGB at 10 Hz as H.264 and AAC in mp4.

    x264 runs on one thread without its assembler code, which gives other bytes for the same images in some runs.
    """
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE)
        video.width = video.height = face.SIZE
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.options = {"crf": _QUALITY, "preset": "veryfast", "x264-params": "asm=0:threads=1"}
        audio = container.add_stream("aac", rate=voice.RATE, layout="mono")
        audio.bit_rate = _AUDIO_BITS
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        spoken = av.AudioFrame.from_ndarray(wave.astype(np.float32).reshape(1, -1), format="fltp", layout="mono")
        spoken.sample_rate, spoken.pts = voice.RATE, 0
        spoken.time_base = Fraction(1, voice.RATE)
        container.mux(audio.encode(spoken))
        container.mux(audio.encode(None))
