"""A degraded copy of a clip as a file that is soon thrown away, so that every extractor reads it as it reads any clip.

Nothing is lost by writing it: sound is float32, pictures are packed without loss (FFV1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from qamoe.media import decode, degradations
from qamoe.media.degradations import SOUND

_SOUND_RATE = 44_100  # Hz


@dataclass(frozen=True)
class Voice:
    """A span (seconds) of another clip's file, and the file's SHA-256."""

    media: Path
    start_s: float
    end_s: float | None
    digest: str


@dataclass(frozen=True)
class Signal:
    """How one clip's sound or pictures are degraded; `voices` are those of kind babble."""

    kind: str
    severity: float
    seed: int
    clip_id: str
    voices: tuple[Voice, ...] = ()

    @property
    def identity(self) -> str:
        """All that the copy depends on beside the clip's own span."""
        voices = " ".join(f"{v.digest} {v.start_s!r} {v.end_s!r}" for v in self.voices)
        return f"{degradations.VERSION} {self.kind} {self.severity!r} {self.seed} {self.clip_id!r} {voices}"


def write(signal: Signal, path: Path, start_s: float, end_s: float | None, rate: float, folder: Path) -> Path:
    """Write the degraded sound of a span, or its degraded pictures at `rate` Hz, into `folder`; returns the file.

    Raises ClipError or NoStream where the span cannot be read.
    """
    draws = degradations.drawn(signal.seed, signal.clip_id, signal.kind)
    if signal.kind in SOUND:
        from scipy.io import wavfile

        wave = decode.read_audio(path, _SOUND_RATE, start_s, end_s)
        others = [decode.read_audio(v.media, _SOUND_RATE, v.start_s, v.end_s) for v in signal.voices]
        copy = folder / "copy.wav"
        wavfile.write(
            copy, _SOUND_RATE, degradations.sound(signal.kind, wave, _SOUND_RATE, signal.severity, draws, others)
        )
        return copy
    copy = folder / "copy.avi"
    seen = decode.read_frames(path, rate, start_s, end_s)
    _film(copy, degradations.pictures(signal.kind, seen, signal.severity, draws), rate)
    return copy


def _film(path: Path, pictures: Iterator[degradations.Picture], rate: float) -> None:
    import av

    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate).limit_denominator(1000))
        stream.pix_fmt, stream.codec_context.thread_count = "bgr0", 1
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, 1 / Fraction(rate).limit_denominator(1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
