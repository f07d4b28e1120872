"""Decoding local media: sound as mono float32, pictures as RGB, both of a span in seconds.

A clip may come from anywhere, so only files are opened and only formats that hold their own streams: a playlist
renamed to clip.mp4 could otherwise make the decoder open other paths.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 2  # other samples or pictures of the same span need another one, since what was made of them is kept
# FFmpeg's names of container formats; playlists (hls, concat, dash) are left out on purpose.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,flv,matroska,webm,mpeg,mpegts,asf,ogg,wav,w64,flac,mp3,aac,aiff,caf,au,amr,gif"
# Formats whose header states how long each stream is, so that a file cut short gives itself away.
_HEADER_STATES_LENGTH = ("mov", "matroska")
_HEADER_STATES_END = "mov"  # likewise to the sample, so that what fills up the last frame of sound is known
_CUT_SHORT_S = 0.5
_RUN_UP_S = 0.5  # decoded and thrown away before a span: codecs need a few frames to settle after a jump
_SAME_TIME_S = 1e-4
_NEITHER = "neither an audio nor a video stream"
# Beyond these a header is damaged; the memory and the time that it asks for would follow a number in it, not its size.
LONGEST_GAP_S = 3600.0
_LOWEST_RATE = 1000  # Hz
_MOST_PIXELS = 1 << 26  # 8192 x 8192


class ClipError(Exception):
    """Why one clip cannot be used; the message is the short reason that goes into problems.csv."""


class NoStream(ClipError):
    """The file has no such stream at all (audio only, say): the modality is absent, and nothing is wrong."""


@dataclass(frozen=True)
class Contents:
    """What a file holds: its length in seconds, and whether there are a sound and a film in it."""

    seconds: float
    audio: bool
    vision: bool


def contents(path: Path) -> Contents:
    """Look into a file without decoding it: headers and packets, so that a file cut short gives itself away.

    Raises ClipError for a file that cannot be opened, holds neither sound nor film, or ends before it says.
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
            _refuse_cut_short(container, stream, end_s, None)
        kinds = {stream.type for stream in streams}  # a stream of a closed container must not be touched
    return Contents(max(ends.values()), "audio" in kinds, "video" in kinds)


def read_audio(path: Path, rate: int, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Sound of a span, mixed down and resampled to `rate` Hz -> (N,) float32 in about [-1, 1].

    Sample 0 lies at `start_s`; a stream that begins later is preceded by zeros. `end_s` None means to the end, which in
    a file of the mp4 family is where it says that its sound ends. Raises NoStream without an audio stream, ClipError
    for a file that cannot be decoded or has no sound in the span.
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
                raise ClipError("cannot be decoded: its sound changes its format on the way") from None
        if first_s is None or end_of_frame is None:
            raise ClipError(_nothing("sound", start_s, end_s))
        parts += resampler.resample(None)
        _refuse_cut_short(container, stream, end_of_frame, end_s)
        ends = [] if end_s is None else [end_s]
        if stream.duration is not None and _HEADER_STATES_END in container.format.name:
            first_of_all_s = (container.start_time or 0) / 1_000_000
            stated_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - first_of_all_s
            # Codecs store sound in frames of one length, and the last one is filled up.
            ends += [stated_s] if time_s < stated_s < end_of_frame else []
        wave = np.concatenate([part.to_ndarray().reshape(-1) for part in parts])
    begin = round((start_s - first_s) * rate)
    wave = wave[begin:] if begin >= 0 else np.concatenate([np.zeros(-begin, np.float32), wave])
    if ends:
        wave = wave[: max(0, round((min(ends) - start_s) * rate))]
    if not len(wave):
        raise ClipError(_nothing("sound", start_s, end_s))
    return np.ascontiguousarray(wave, np.float32)


def read_frames(path: Path, rate: float, start_s: float = 0.0, end_s: float | None = None) -> Iterator[np.ndarray]:
    """Pictures of a span at `rate` Hz, each (H, W, 3) uint8 RGB, upright.

    Picture k is the one on show at start_s + k / rate, so a rate above the file's own repeats pictures.
    Raises NoStream without a video stream, ClipError for a file that cannot be decoded or has no picture in the span.
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
            raise ClipError(_nothing("picture", start_s, end_s))
        frame_s = min(1 / float(stream.average_rate or stream.guessed_rate or 25), LONGEST_GAP_S)
        _refuse_cut_short(container, stream, shown_s + frame_s, end_s)
        last_s = shown_s + frame_s if end_s is None else min(end_s, shown_s + frame_s)
        while start_s + count / rate < last_s - _SAME_TIME_S:
            yield _upright(shown)
            count += 1
        if not count:
            raise ClipError(_nothing("picture", start_s, end_s))


def _absent(kind: str, others: list[Any]) -> ClipError:
    """A file of sound or of pictures alone is none; one that holds neither lost them."""
    return NoStream(f"no {kind} stream") if others else ClipError(_NEITHER)


def _nothing(what: str, start_s: float, end_s: float | None) -> str:
    return f"no {what} between {start_s:g} s and {'the end' if end_s is None else f'{end_s:g} s'}"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """A file's container, its audio streams and its video streams, of which the cover of a song is none."""
    import av
    from av.stream import Disposition

    if not path.is_file():
        raise ClipError("no such file")
    if not path.stat().st_size:
        raise ClipError("zero bytes")
    try:
        # The prefix keeps a name with a colon in it from being read as a protocol.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as container:
            video = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            yield container, list(container.streams.audio), video
    except IndexError:  # PyAV knows the streams that there were at the beginning and no later ones
        raise ClipError("cannot be decoded: a stream begins on the way") from None
    except (av.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError(f"cannot be decoded: {reason}") from error


def _frames(container: Any, stream: Any, start_s: float) -> Iterator[tuple[Any, float]]:
    """Decoded frames from a little before `start_s` on, each with its time in seconds from the file's beginning.

    Raises ClipError for a size or a rate that only damage gives.
    """
    if stream.codec_context is None:
        raise ClipError("cannot be decoded: its codec is unknown")
    # One thread: the extractors already run one clip a core, and frames then come in one fixed order.
    stream.codec_context.thread_count = 1
    begin_s = (container.start_time or 0) / 1_000_000
    if start_s > _RUN_UP_S:
        container.seek(int((start_s - _RUN_UP_S + begin_s) * 1_000_000), backward=True)
    expected_s = 0.0
    for frame in container.decode(stream):
        time_s = expected_s if frame.time is None else frame.time - begin_s
        if time_s - max(expected_s, start_s) > LONGEST_GAP_S:
            raise ClipError(f"cannot be decoded: nothing between {expected_s:.0f} s and {time_s:.0f} s")
        expected_s = time_s
        if stream.type == "audio":
            if frame.sample_rate < _LOWEST_RATE:
                raise ClipError(f"cannot be decoded: sound of {frame.sample_rate} samples a second")
            expected_s += frame.samples / frame.sample_rate
        elif frame.width * frame.height > _MOST_PIXELS:
            raise ClipError(f"cannot be decoded: pictures of {frame.width} x {frame.height}")
        yield frame, time_s


def _refuse_cut_short(container: Any, stream: Any, decoded_s: float | None, end_s: float | None) -> None:
    if decoded_s is None or stream.duration is None:
        return
    if not any(name in container.format.name for name in _HEADER_STATES_LENGTH):
        return
    promised_s = float(stream.duration * stream.time_base)
    wanted_s = promised_s if end_s is None else min(end_s, promised_s)
    if decoded_s < wanted_s - _CUT_SHORT_S:
        raise ClipError(f"cannot be decoded: ends after {decoded_s:.1f} s of {promised_s:.1f} s")


def _upright(frame: Any) -> np.ndarray:
    """RGB (H, W, 3), turned the way the file says it was held; phones store every film sideways."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
