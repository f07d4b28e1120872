"""Write a degraded copy of a clip to a temporary file, so that every extractor reads it like any other clip.

The copy is lossless: audio is float32, video frames are coded with FFV1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from qamoe.media import decode, degradations
from qamoe.media.degradations import AUDIO, Frame
from qamoe.signal_rng import SignalDraws

_AUDIO_RATE = 44_100  # Hz


@dataclass(frozen=True)
class Voice:
    """Another sound: a span (seconds) of a clip's file, the file's SHA-256, and its audio track."""

    media: Path
    start_s: float
    end_s: float | None
    digest: str
    track: str = ""


@dataclass(frozen=True)
class Signal:
    """How to degrade one clip's audio or video frames.

    `voices` are those of kind babble, or the recording of kind recorded_noise.
    """

    kind: str
    severity: float
    seed: int
    clip_id: str
    voices: tuple[Voice, ...] = ()

    @property
    def identity(self) -> str:
        """Everything that the copy depends on in addition to the clip's file and span."""
        voices = " ".join(f"{v.digest} {v.start_s!r} {v.end_s!r}{v.track and f' {v.track!r}'}" for v in self.voices)
        return f"{degradations.VERSION} {self.kind} {self.severity!r} {self.seed} {self.clip_id!r} {voices}"


def write(signal: Signal, path: Path, start_s: float, end_s: float | None, rate: float, folder: Path) -> Path:
    """Write the degraded audio of a span, or its degraded frames at `rate` Hz, into `folder`; return the file.

    Raises ClipError or NoStream if the span cannot be read.
    """
    draws = SignalDraws(signal.seed, signal.clip_id, signal.kind)
    if signal.kind in AUDIO:
        from scipy.io import wavfile

        wave = decode.read_audio(path, _AUDIO_RATE, start_s, end_s)
        others = []
        for voice in signal.voices:
            with decode.reading(voice.track):
                others.append(decode.read_audio(voice.media, _AUDIO_RATE, voice.start_s, voice.end_s))
        copy = folder / "copy.wav"
        wavfile.write(
            copy,
            _AUDIO_RATE,
            degradations.degrade_audio(signal.kind, wave, _AUDIO_RATE, signal.severity, draws, others),
        )
        return copy
    copy = folder / "copy.avi"
    frames = decode.read_frames(path, rate, start_s, end_s)
    _write_video(copy, degradations.degrade_frames(signal.kind, frames, signal.severity, draws), rate)
    return copy


def _write_video(path: Path, frames: Iterator[Frame], rate: float) -> None:
    import av

    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate).limit_denominator(1000))
        stream.pix_fmt, stream.codec_context.thread_count = "bgr0", 1
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, 1 / Fraction(rate).limit_denominator(1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
