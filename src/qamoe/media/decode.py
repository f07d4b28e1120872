"""Decode a span (seconds) of a local media file: audio as mono float32, video frames as RGB.

Clips are untrusted, so only files are opened, and only formats that hold their own streams: a playlist renamed to
clip.mp4 could otherwise make the decoder open other paths.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 2  # increase it when the same span decodes to other samples or frames: extracted features are cached
# FFmpeg's names of container formats; playlists (hls, concat, dash) are left out on purpose.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,flv,matroska,webm,mpeg,mpegts,asf,ogg,wav,w64,flac,mp3,aac,aiff,caf,au,amr,gif"
# Formats whose header states how long each stream is, so that a truncated file is detected.
_HEADER_STATES_LENGTH = ("mov", "matroska")
_HEADER_STATES_END = "mov"  # states the length to the sample, so that padding in the last audio frame is known
_TRUNCATED_S = 0.5  # a file that ends this much before its stated length is truncated
_RUN_UP_S = 0.5  # decoded and discarded before a span: codecs need a few frames to settle after a seek
_SAME_TIME_S = 1e-4
_NEITHER = "neither an audio nor a video stream"
# Values beyond these mean a damaged header; decoding would take memory and time in proportion to the value.
LONGEST_GAP_S = 3600.0
_LOWEST_RATE = 1000  # Hz
_MOST_PIXELS = 1 << 26  # 8192 x 8192


class ClipError(Exception):
    """A clip cannot be used; the message is the short reason that goes into problems.csv."""


class NoStream(ClipError):
    """The file has no stream of this kind (for example audio only): the modality is absent, which is not a fault."""


@dataclass(frozen=True)
class Contents:
    """Contents of a file: its length in seconds, and whether it has an audio and a video stream."""

    seconds: float
    audio: bool
    vision: bool


def contents(path: Path) -> Contents:
    """Inspect a file without decoding it; reads headers and packets, which reveal a truncated file.

    Raises ClipError for a file that cannot be opened, has neither audio nor video, or is truncated.
    """
    with _opened(path) as (container, audio, video):
        streams = [*audio[:1], *video[:1]]
        if not streams:
            raise ClipError(_NEITHER)
        if any(stream.codec_context is None for stream in streams):
            raise ClipError("cannot be decoded: its codec is unknown")
        begin_s = (container.start_time or 0) / 1_000_000
        ends = dict.fromkeys(streams, 0.0)
        for packet in container.demux(streams):
            if packet.pts is not None and packet.time_base is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base) - begin_s
                ends[packet.stream] = max(ends[packet.stream], end_s)
        for stream, end_s in ends.items():
            _refuse_truncated(container, stream, end_s, None)
        kinds = {stream.type for stream in streams}  # a stream of a closed container must not be touched
    return Contents(max(ends.values()), "audio" in kinds, "video" in kinds)


def read_audio(path: Path, rate: int, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Read the audio of a span, mixed down to mono and resampled to `rate` Hz -> (N,) float32 in about [-1, 1].

    Sample 0 is at `start_s`; a stream that begins later is preceded by zeros. `end_s` None reads to the end, which for
    files of the mp4 family is the end of the audio according to the header. Raises NoStream without an audio stream,
    ClipError for a file that cannot be decoded or has no audio in the span.
    """
    import av

    with _opened(path) as (container, audio, video):
        if not audio:
            raise _absent("audio", video)
        stream = audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        parts: list[Any] = []
        first_s = end_of_frame = None
        for frame, time_s in _frames(container, stream, start_s):
            if end_s is not None and time_s >= end_s:
                break
            if first_s is None:
                first_s = time_s
            end_of_frame = time_s + frame.samples / frame.sample_rate
            frame.pts = None  # the resampler would fill or drop samples by jittering timestamps
            try:
                parts += resampler.resample(frame)
            except ValueError:  # a rate or layout that is not that of the frames before
                raise ClipError("cannot be decoded: the audio format changes within the file") from None
        parts += resampler.resample(None) if first_s is not None else []
        if first_s is None or end_of_frame is None or not parts:  # a stated rate of GHz leaves no sample at `rate`
            raise ClipError(_nothing("audio", start_s, end_s))
        _refuse_truncated(container, stream, end_of_frame, end_s)
        ends = [] if end_s is None else [end_s]
        if stream.duration is not None and _HEADER_STATES_END in container.format.name:
            container_start_s = (container.start_time or 0) / 1_000_000
            stated_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - container_start_s
            # Codecs store audio in frames of one length, and pad the last one.
            ends += [stated_s] if time_s < stated_s < end_of_frame else []
        wave = np.concatenate([part.to_ndarray().reshape(-1) for part in parts])
    begin = round((start_s - first_s) * rate)
    wave = wave[begin:] if begin >= 0 else np.concatenate([np.zeros(-begin, np.float32), wave])
    if ends:
        wave = wave[: max(0, round((min(ends) - start_s) * rate))]
    if not len(wave):
        raise ClipError(_nothing("audio", start_s, end_s))
    return np.ascontiguousarray(wave, np.float32)


def read_frames(path: Path, rate: float, start_s: float = 0.0, end_s: float | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of a span at `rate` Hz, each (H, W, 3) uint8 RGB, upright.

    Frame k is the one shown at start_s + k / rate, so a rate above the file's own repeats frames.
    Raises NoStream without a video stream, ClipError for a file that cannot be decoded or has no frame in the span.
    """
    with _opened(path) as (container, audio, video):
        if not video:
            raise _absent("video", audio)
        stream = video[0]
        shown: Any = None
        shown_s = 0.0
        count = 0
        for frame, time_s in _frames(container, stream, start_s):
            if end_s is not None and time_s >= end_s - _SAME_TIME_S:
                break
            while shown is not None and start_s + count / rate < time_s - _SAME_TIME_S:
                yield _upright(shown)
                count += 1
            shown, shown_s = frame, time_s
        if shown is None:
            raise ClipError(_nothing("video frame", start_s, end_s))
        frame_s = min(1 / float(stream.average_rate or stream.guessed_rate or 25), LONGEST_GAP_S)
        _refuse_truncated(container, stream, shown_s + frame_s, end_s)
        last_s = shown_s + frame_s if end_s is None else min(end_s, shown_s + frame_s)
        while start_s + count / rate < last_s - _SAME_TIME_S:
            yield _upright(shown)
            count += 1
        if not count:
            raise ClipError(_nothing("video frame", start_s, end_s))


def _absent(kind: str, others: list[Any]) -> ClipError:
    """Return NoStream if the file has the other kind of stream, ClipError if it has neither."""
    return NoStream(f"no {kind} stream") if others else ClipError(_NEITHER)


def _nothing(what: str, start_s: float, end_s: float | None) -> str:
    return f"no {what} between {start_s:g} s and {'the end' if end_s is None else f'{end_s:g} s'}"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Yield a file's container, its audio streams and its video streams without cover images."""
    import av
    from av.stream import Disposition

    try:
        if not path.is_file():
            raise ClipError("no such file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ClipError("zero bytes")
    except OSError as error:
        raise ClipError(f"not readable: {error.strerror}") from None
    try:
        # Without the prefix, a name with a colon would be read as a protocol.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as container:
            video = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            yield container, list(container.streams.audio), video
    except IndexError:  # PyAV knows only the streams that exist at the beginning
        raise ClipError("cannot be decoded: a stream begins within the file") from None
    except (av.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError(f"cannot be decoded: {reason}") from error


def _frames(container: Any, stream: Any, start_s: float) -> Iterator[tuple[Any, float]]:
    """Yield decoded frames from shortly before `start_s`, each with its time in seconds from the file's beginning.

    Raises ClipError for a gap, size or rate that only a damaged file has.
    """
    if stream.codec_context is None:
        raise ClipError("cannot be decoded: its codec is unknown")
    # One thread: the extractors already run one clip per core, and frames then come in a fixed order.
    stream.codec_context.thread_count = 1
    begin_s = (container.start_time or 0) / 1_000_000
    if start_s > _RUN_UP_S:
        container.seek(int((start_s - _RUN_UP_S + begin_s) * 1_000_000), backward=True)
    expected_s = 0.0
    for frame in container.decode(stream):
        time_s = expected_s if frame.time is None else frame.time - begin_s
        if time_s - max(expected_s, start_s) > LONGEST_GAP_S:
            raise ClipError(f"cannot be decoded: no frames between {expected_s:.0f} s and {time_s:.0f} s")
        expected_s = time_s
        if stream.type == "audio":
            if frame.sample_rate < _LOWEST_RATE:
                raise ClipError(f"cannot be decoded: audio sample rate of {frame.sample_rate} Hz")
            expected_s += frame.samples / frame.sample_rate
        elif frame.width * frame.height > _MOST_PIXELS:
            raise ClipError(f"cannot be decoded: video frames of {frame.width} x {frame.height} pixels")
        yield frame, time_s


def _refuse_truncated(container: Any, stream: Any, decoded_s: float | None, end_s: float | None) -> None:
    if decoded_s is None or stream.duration is None:
        return
    if not any(name in container.format.name for name in _HEADER_STATES_LENGTH):
        return
    stated_s = float(stream.duration * stream.time_base)
    required_s = stated_s if end_s is None else min(end_s, stated_s)
    if decoded_s < required_s - _TRUNCATED_S:
        raise ClipError(f"cannot be decoded: ends after {decoded_s:.1f} s of {stated_s:.1f} s")


def _upright(frame: Any) -> np.ndarray:
    """Return RGB (H, W, 3), rotated as the file states; phones store every video sideways."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
