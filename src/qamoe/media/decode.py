"""Decode a span (seconds) of a local media file: audio as mono float32, video frames as RGB.

Clips are untrusted, so only files are opened, and only formats that hold their own streams: a playlist renamed to
clip.mp4 could otherwise make the decoder open other paths.

Time 0 of a file is where its video begins, or its audio if that begins earlier or is alone. Codecs of voices put some
milliseconds of padding before the first sample (`_PADDING`); if the file does not state that, it is cut here. So a file
whose streams were moved into another container gives the same samples and frames.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 3  # increase it when the same span decodes to other samples or frames: extracted features are cached
# FFmpeg's names of container formats; playlists (hls, concat, dash) are left out on purpose.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,flv,matroska,webm,mpeg,mpegts,asf,ogg,wav,w64,flac,mp3,aac,aiff,caf,au,amr,gif"
# The endings of such files, in lower case.
SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3gpp", ".3g2", ".m4a", ".m4b", ".f4v", ".mkv", ".mka", ".webm"),
        *(".weba", ".avi", ".divx", ".flv", ".mpg", ".mpeg", ".mpe", ".m2p", ".vob", ".mod", ".ts", ".mts", ".m2ts"),
        *(".m2t", ".tod", ".wmv", ".wma", ".asf", ".ogg", ".ogv", ".ogm", ".oga", ".opus", ".spx", ".wav", ".wave"),
        *(".w64", ".flac", ".mp3", ".mp2", ".mpga", ".aac", ".adts", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"),
        *(".amr", ".gif"),
    )
)
# Formats whose header states how long each stream is, so that a truncated file is detected.
_HEADER_STATES_LENGTH = ("mov", "matroska")
_HEADER_STATES_END = "mov"  # states the length to the sample, so that padding in the last audio frame is known
_TRUNCATED_S = 0.5  # a file that ends this much before its stated length is truncated
# Decoded and discarded before a span: codecs need a few frames to settle after a seek. The next one is tried if the
# first frame after the seek is too late.
_RUN_UPS_S = (0.5, 4.0, 30.0, math.inf)
_SAME_TIME_S = 1e-4
_TICK_S = 1.1e-3  # many containers round times to milliseconds
# Samples that an encoder puts before the first sample; FFmpeg's encoders and LAME, others are within a packet of it.
_PADDING = {"aac": 1024, "mp3": 1105, "mp2": 481, "mp1": 481, "ac3": 256, "eac3": 256, "opus": 312}
_PADDING |= {"wmav1": 2048, "wmav2": 2048}
_LONGEST_LEAD_S = 0.1  # audio that begins this much before the video is padding
_SHORTEST_HOLE_S = 0.015
_CANCEL = 0.5  # channels cancel each other if their mix has less than this share of the loudest one's amplitude
_SILENT = 1e-4  # peak amplitude
_MOST_PEEKED = 1000  # packets read before the first one of the audio
_NEITHER = "neither an audio nor a video stream"
# Values beyond these mean a damaged header; decoding would take memory and time in proportion to the value.
LONGEST_GAP_S = 3600.0
_LOWEST_RATE = 1000  # Hz
_MOST_PIXELS = 1 << 26  # 8192 x 8192
_MOST_ASPECT = 8  # width of a pixel divided by its height
_UNTAGGED, _HD_HEIGHT = 2, 720  # video of this height without a stated colour matrix has that of BT.709


class ClipError(Exception):
    """A clip cannot be used; the message is the short reason that goes into problems.csv."""


class NoStream(ClipError):
    """The file has no stream of this kind (for example audio only): the modality is absent, which is not a fault."""


@dataclass(frozen=True)
class Contents:
    """Contents of a file: its length in seconds, and whether it has an audio, a video and a text subtitle stream.

    spans: beginning and end (seconds) of its audio and its vision.
    """

    seconds: float
    audio: bool
    vision: bool
    subtitles: bool = False
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class _Source:
    """An open file, the streams of it that are read (None: it has none), and its packets from the beginning.

    streams: those two. numbered: the container has numbers of video packets and no times, so that a codec that reorders
    frames hides them. begins_s: what the packets of a type of stream say at time 0. content_s: time of the first sample
    after padding_s seconds of padding. ends_s: where the packets read so far end, by type of stream. damaged, whole:
    number of packets that could not be decoded, and of the others.
    """

    container: Any
    audio: Any
    video: Any
    streams: list[Any]
    packets: Iterator[Any]
    numbered: bool
    begins_s: dict[str, float] = field(default_factory=dict)
    content_s: float = -math.inf
    padding_s: float = 0.0
    ends_s: dict[str, float] = field(default_factory=dict)
    damaged: int = 0
    whole: int = 0


_track: ContextVar[str] = ContextVar("track", default="")
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def reading(track: str | None = "") -> Iterator[list[str]]:
    """Yield a list that gets sentences on what was left out of the files that are read within the with block.

    `track` is the number (from 1), the language or the title of the audio track to read; "" is the default one, and
    None that of the with block around.
    """
    notes: list[str] = []
    tokens = _track.set(_track.get() if track is None else track), _notes.set(notes)
    try:
        yield notes
    finally:
        _track.reset(tokens[0])
        _notes.reset(tokens[1])


def note(sentence: str) -> None:
    """Add a sentence to the list of the with block around (`reading`)."""
    notes = _notes.get()
    if notes is not None:
        notes.append(sentence)


def contents(path: Path) -> Contents:
    """Inspect a file without decoding it; reads headers and packets, which reveal a truncated file.

    Raises ClipError for a file that cannot be opened, has neither audio nor video, or is truncated.
    """
    with _opened(path) as source:
        if not source.streams:
            raise ClipError(_NEITHER)
        if any(stream.codec_context is None for stream in source.streams):
            raise ClipError("cannot be decoded: its codec is unknown")
        for packet in source.packets:
            _note_end(source, packet)
        for stream in source.streams:
            _refuse_truncated(source, stream, source.ends_s.get(stream.type, 0.0), None)
        audio_s, video_s = (source.ends_s.get(kind, 0.0) for kind in ("audio", "video"))
        seconds = video_s if video_s < audio_s <= video_s + _LONGEST_LEAD_S else max(audio_s, video_s)
        subtitles = bool(source.container.streams.subtitles)
        spans = {
            modality: (float((s.start_time or 0) * s.time_base) - source.begins_s[s.type], source.ends_s[s.type])
            for modality, s in (("audio", source.audio), ("vision", source.video))
            if s is not None and s.type in source.ends_s
        }
        return Contents(seconds, source.audio is not None, source.video is not None, subtitles, spans)


def read_audio(path: Path, rate: int, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Read the audio of a span, mixed down to mono and resampled to `rate` Hz -> (N,) float32 in about [-1, 1].

    Sample 0 is at `start_s`; a stream that begins later is preceded by zeros, and holes between its packets are zeros.
    `end_s` None reads to the end: that of the video if the audio ends less than _LONGEST_LEAD_S later, and for files of
    the mp4 family the end of the audio according to the header. Raises NoStream without an audio stream, ClipError for
    a file that cannot be decoded or has no audio in the span.
    """
    import av

    with _opened(path) as source:
        if source.audio is None:
            raise _absent("audio", source)
        samples, own_rate, first_s = _samples(source, start_s, end_s)
        tracks = len(source.container.streams.audio)
        number = source.container.streams.audio.index(source.audio) + 1
        end_of_audio_s = first_s + len(samples) / own_rate
        _refuse_truncated(source, source.audio, end_of_audio_s, end_s)
        ends = [] if end_s is None else [end_s]
        stated_s = _stated_end_s(source, source.audio)
        if stated_s is not None and _HEADER_STATES_END in source.container.format.name:
            ends += [stated_s] if end_of_audio_s - _LONGEST_LEAD_S < stated_s < end_of_audio_s else []
        video_s = source.ends_s.get("video")
        if video_s is not None and video_s < end_of_audio_s <= video_s + _LONGEST_LEAD_S:
            ends.append(video_s)
    position = round(first_s * own_rate)
    step = own_rate // math.gcd(own_rate, rate)
    if 0 <= position + -position % step <= start_s * own_rate:  # so that a span has the samples of the whole file
        samples, first_s = samples[-position % step :], (position + -position % step) / own_rate
    whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    whole.sample_rate = own_rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    resampled = resampler.resample(whole) + (resampler.resample(None) if own_rate != rate else [])
    wave = np.concatenate([np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in resampled)])
    begin = round((start_s - first_s) * rate)
    wave = wave[begin:] if begin >= 0 else np.concatenate([np.zeros(-begin, np.float32), wave])
    if ends:
        wave = wave[: max(0, round((min(ends) - start_s) * rate))]
    if tracks > 1 and np.abs(wave).max(initial=0.0) < _SILENT:
        note(f"audio track {number} of {tracks} was read")
    if not len(wave):  # also where a stated rate of GHz leaves no sample at `rate`
        raise ClipError(_nothing("audio", start_s, end_s))
    return np.ascontiguousarray(wave, np.float32)


def _samples(source: _Source, start_s: float, end_s: float | None) -> tuple[np.ndarray, int, float]:
    """Decode the audio from shortly before a span to its end -> mono samples (N,), their rate, and time of the first.

    Padding before the first sample is left out, and missing packets are zeros. Channels are mixed down so that power is
    kept; where they cancel each other, the loudest one is returned.
    """
    import av

    planar = av.AudioResampler(format="fltp")
    parts: list[np.ndarray] = []
    first_s, length, kind, padding = 0.0, 0, None, None
    for frame, frame_s in _frames(source, source.audio, start_s):
        time_s, kind = frame_s, kind or (frame.sample_rate, frame.layout.name, frame.layout.nb_channels)
        if end_s is not None and time_s >= end_s:
            break
        if kind != (frame.sample_rate, frame.layout.name, frame.layout.nb_channels):
            raise ClipError("cannot be decoded: the audio format changes within the file")
        frame.pts = None  # the resampler would fill or drop samples by jittering timestamps
        samples = np.concatenate([part.to_ndarray() for part in planar.resample(frame)], axis=1)
        if padding is None:
            padding = round(source.padding_s * kind[0]) if time_s < source.content_s - _TICK_S else 0
        if padding:
            cut = min(padding, samples.shape[1])
            samples, time_s, padding = samples[:, cut:], time_s + cut / kind[0], padding - cut
        if not samples.shape[1]:
            continue
        if not parts:
            first_s = _near(time_s, frame.samples / kind[0])
        hole_s = time_s - first_s - length / kind[0]
        if hole_s > _SHORTEST_HOLE_S:
            hole = round(_near(hole_s, frame.samples / kind[0]) * kind[0])
            parts.append(np.zeros((len(samples), hole), np.float32))
            length += hole
        parts.append(samples)
        length += samples.shape[1]
    if kind is None or not parts:
        raise ClipError(_nothing("audio", start_s, end_s))
    names = [channel.name for channel in frame.layout.channels]
    channels = np.concatenate(parts, axis=1)
    if len(names) > 1:
        channels = channels[[name != "LFE" for name in names]]
    # A voice that was spread over two channels with its power kept, as FFmpeg does, has its level again.
    mixed = channels.sum(axis=0, dtype=np.float32) / np.float32(math.sqrt(len(channels)))
    power = np.einsum("ij,ij->i", channels, channels, dtype=np.float64)
    if float(mixed @ mixed) < _CANCEL**2 * power.max(initial=0.0):
        mixed = np.ascontiguousarray(channels[int(power.argmax())])
    return mixed, kind[0], first_s


def _near(time_s: float, step_s: float) -> float:
    """Return the multiple of a step that a time was, if it may have been rounded to milliseconds, else the time."""
    whole_s = round(time_s / step_s) * step_s
    return whole_s if abs(time_s - whole_s) < _TICK_S else time_s


def read_frames(path: Path, rate: float, start_s: float = 0.0, end_s: float | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of a span at `rate` Hz, each (H, W, 3) uint8 RGB, upright and with square pixels.

    Frame k is the one shown at start_s + k / rate, so a rate above the file's own repeats frames, and a frame that
    stays is repeated as long as it says. Raises NoStream without a video stream, ClipError for a file that cannot be
    decoded or has no frame in the span.
    """
    with _opened(path) as source:
        if source.video is None:
            raise _absent("video", source)
        stream = source.video
        shown: Any = None
        shown_s = 0.0
        count = 0
        for frame, time_s in _frames(source, stream, start_s):
            if end_s is not None and time_s >= end_s - _SAME_TIME_S:
                break
            while shown is not None and start_s + count / rate < time_s - _SAME_TIME_S:
                yield _upright(shown, stream)
                count += 1
            shown, shown_s = frame, time_s
        if shown is None:
            raise ClipError(_nothing("video frame", start_s, end_s))
        last_s = shown_s + _lasts_s(source, shown.duration, shown.time_base)
        _refuse_truncated(source, stream, last_s, end_s)
        if "matroska" in source.container.format.name:  # has no place for the length of a last frame
            last_s = max(last_s, min(_stated_end_s(source, stream) or 0.0, source.ends_s.get("audio", 0.0)))
        last_s = last_s if end_s is None else min(end_s, last_s)
        while start_s + count / rate < last_s - _SAME_TIME_S:
            yield _upright(shown, stream)
            count += 1
        if not count:
            raise ClipError(_nothing("video frame", start_s, end_s))


def read_subtitles(path: Path) -> list[tuple[float, float, str]]:
    """Read the text of a track inside a file -> beginning and end (seconds) and the text of each cue, with markup.

    The track is the default one, else the first in English, else the first. Empty without a track of text. Raises
    ClipError for a file that cannot be opened.
    """
    from av.stream import Disposition

    with opened(path) as container:
        tracks = [s for s in container.streams.subtitles if s.codec_context is not None and not _is_picture(s)]
        if not tracks:
            return []
        stream = min(
            tracks,
            key=lambda s: (
                bool(s.disposition & Disposition.forced),
                not s.disposition & Disposition.default,
                not (s.language or "").startswith("en"),
            ),
        )
        begin_s = (container.start_time or 0) / 1_000_000
        cues = []
        for packet in container.demux(stream):
            if not packet.size or packet.pts is None:
                continue
            texts = [part.dialogue.decode("utf-8", "replace") for part in packet.decode() if part.type == b"ass"]
            time_s = float(packet.pts * packet.time_base) - begin_s
            cues.append((time_s, time_s + float((packet.duration or 0) * packet.time_base), "\n".join(texts)))
    return cues


def _is_picture(subtitles: Any) -> bool:
    return subtitles.codec_context.codec.canonical_name in ("dvd_subtitle", "dvb_subtitle", "hdmv_pgs_subtitle", "xsub")


def _absent(kind: str, source: _Source) -> ClipError:
    """Return NoStream if the file has the other kind of stream, ClipError if it has neither."""
    return NoStream(f"no {kind} stream") if source.streams else ClipError(_NEITHER)


def _nothing(what: str, start_s: float, end_s: float | None) -> str:
    return f"no {what} between {start_s:g} s and {'the end' if end_s is None else f'{end_s:g} s'}"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield the container of a file of FORMATS. Raises ClipError for another one, and for damage within the block."""
    import av

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
            yield container
    except IndexError:  # PyAV knows only the streams that exist at the beginning
        raise ClipError("cannot be decoded: a stream begins within the file") from None
    except (av.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError(f"cannot be decoded: {reason}") from error


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """Yield a file with the streams to read: the chosen audio track, and the video that is not a cover image.

    Notes how many packets were skipped. Raises ClipError if they are more than the whole ones.
    """
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    with opened(path) as container:
        videos = [s for s in container.streams.video if not s.disposition & still]
        video = next((s for s in videos if s.disposition & Disposition.default), videos[0] if videos else None)
        tracks = container.streams.audio
        audio = _chosen_track(tracks) if len(tracks) > 1 or _track.get() else next(iter(tracks), None)
        streams = [stream for stream in (audio, video) if stream is not None]
        packets = container.demux(streams) if streams else iter(())
        source = _Source(container, audio, video, streams, packets, container.format.name == "avi")
        _align(source)
        yield source
        read = source.damaged + source.whole
        if source.damaged > source.whole:
            raise ClipError(f"cannot be decoded: {source.damaged} of {read} packets are damaged")
        if source.damaged:
            note(f"{source.damaged} of {read} packets are damaged and were skipped")


def _chosen_track(tracks: Any) -> Any:
    """Return the track that `reading` names; else the default one, but none for other listeners if another exists."""
    from av.stream import Disposition

    name = _track.get().strip().lower()
    spoken = [(t.language or "").lower() for t in tracks]
    titles = [t.metadata.get("title", "").lower() for t in tracks]
    if name and tracks:
        for number, track in enumerate(tracks, 1):
            if name in (str(number), titles[number - 1]) or (
                len(name) > 1 and spoken[number - 1].startswith(name) and not name.isdecimal()
            ):
                return track
        listed = ", ".join(
            f"{number} ({' '.join(filter(None, (t.language, t.metadata.get('title')))) or 'no language'})"
            for number, t in enumerate(tracks, 1)
        )
        raise ClipError(f"no audio track {_track.get()!r}; the file has {listed}")
    other = Disposition.comment | Disposition.visual_impaired | Disposition.hearing_impaired | Disposition.dub
    ranked = [
        (not t.disposition & Disposition.default, bool(t.disposition & other), place) for place, t in enumerate(tracks)
    ]
    return tracks[min(ranked)[2]] if ranked else None


def _align(source: _Source) -> None:
    """Set the times of a source by the beginnings of its streams and the padding of its audio."""
    audio, video = source.audio, source.video
    begins = {stream.type: float((stream.start_time or 0) * stream.time_base) for stream in source.streams}
    padding_s = early_s = 0.0
    codec: Any = None if audio is None else audio.codec_context
    if codec is not None and codec.sample_rate >= _LOWEST_RATE:
        padding_s = _PADDING.get(codec.codec.canonical_name, 0) / codec.sample_rate
        if codec.codec.canonical_name.startswith("wma"):  # one frame, whose length depends on the rate
            padding_s /= 1 if codec.sample_rate > 22_050 else 2 if codec.sample_rate > 16_000 else 4
    first = None
    peeked = []
    for packet in source.packets if padding_s else ():
        peeked.append(packet)
        first = packet if packet.stream is audio else None
        if first is not None or len(peeked) == _MOST_PEEKED:
            break
    source.packets = chain(peeked, source.packets)
    if first is not None and first.pts is not None and not first.has_sidedata("skip_samples"):
        begin_s = float(first.pts * first.time_base)
        if begin_s >= begins["audio"] - _TICK_S:  # else the padding is before the stated beginning
            lasts_s = float((first.duration or 0) * first.time_base)
            one_packet = audio.codec_context.codec.canonical_name == "aac" and lasts_s < 1
            # With SBR, a packet has twice the samples.
            source.padding_s = lasts_s if one_packet and padding_s < lasts_s < 2.5 * padding_s else padding_s
            source.content_s = begin_s + max(padding_s, lasts_s if one_packet else 0.0)
            if video is None or begins["video"] - begin_s < padding_s / 2:  # its times ignore the padding
                early_s = source.content_s - begin_s
            begins["audio"] = source.content_s - early_s
    zero_s = min(begins.values(), default=0.0)
    if len(begins) == 2 and 0 < begins["video"] - begins["audio"] <= _LONGEST_LEAD_S:
        zero_s = begins["video"]
    source.begins_s = {"audio": zero_s + early_s, "video": zero_s}
    source.content_s -= zero_s + early_s


def _frames(source: _Source, stream: Any, start_s: float) -> Iterator[tuple[Any, float]]:
    """Yield decoded frames from shortly before `start_s`, each with its time in seconds in the file.

    Raises ClipError for a gap, size or rate that only a damaged file has.
    """
    if stream.codec_context is None:
        raise ClipError("cannot be decoded: its codec is unknown")
    # One thread: the extractors already run one clip per core, and frames then come in a fixed order.
    stream.codec_context.thread_count = 1
    if start_s <= _RUN_UPS_S[0]:
        yield from _timed_frames(source, stream, start_s)
        return
    for run_up_s in _RUN_UPS_S:
        _seek(source, stream, start_s - run_up_s)
        if source.container.format.name == "mpeg":
            _skip_guessed_times(source, stream, start_s)
        frames = _timed_frames(source, stream, start_s)
        first = list(islice(frames, 2))
        # A format without an index seeks by guess: to its end, or to where the first frame that needs no other is late.
        if run_up_s > start_s or (len(first) == 2 and first[0][1] <= start_s):
            yield from first
            yield from frames
            return
        frames.close()


def _seek(source: _Source, stream: Any, target_s: float) -> None:
    """Go to the last place before a time at which a stream can be read, or to the beginning of the file."""
    import av

    begin_s = max(target_s, 0.0) + source.begins_s[stream.type]
    try:
        source.container.seek(math.floor(begin_s / stream.time_base), stream=stream)
    except av.FFmpegError:  # the format cannot: read on
        return
    source.packets = source.container.demux(source.streams)
    source.damaged, source.whole = 0, 0


def _skip_guessed_times(source: _Source, stream: Any, start_s: float) -> None:
    """Skip the packets of a program stream before a span whose times are those of others.

    The first packet after a seek is a part of one, and may have the time of the next one. All that follow are then late
    by its length, until one states a time of its own.
    """
    peeked: list[Any] = []
    begin, expected = 0, None
    for packet in source.packets:
        peeked.append(packet)
        if packet.stream is not stream or packet.dts is None:
            continue
        if not begin and expected is not None and abs(packet.dts - expected) > packet.duration // 2:
            begin = len(peeked) - 1
        expected = packet.dts + packet.duration
        if float(packet.dts * packet.time_base) - source.begins_s[stream.type] >= start_s:
            break
    source.packets = chain(peeked[begin:], source.packets)


def _timed_frames(source: _Source, stream: Any, start_s: float) -> Generator[tuple[Any, float]]:
    """Yield decoded frames from where the source is, each with its time; checks them as _frames says."""
    counted = stream.type == "video" and source.numbered
    rate = float(stream.guessed_rate or 0) if stream.type == "video" else 0.0
    expected_s, shift = 0.0, None
    for frame, packet_dts in _decoded(source, stream):
        time_s = None if frame.time is None else frame.time - source.begins_s[stream.type]
        if counted and packet_dts is not None and frame.dts is not None:
            shift = packet_dts - frame.dts if shift is None else shift
            time_s = float((frame.dts + shift) * stream.time_base) - source.begins_s[stream.type]
        elif counted and shift is not None:  # the last ones of a codec that reorders frames
            time_s = None
        time_s = expected_s if time_s is None else time_s
        if time_s - max(expected_s, start_s) > LONGEST_GAP_S:
            raise ClipError(f"cannot be decoded: no frames between {expected_s:.0f} s and {time_s:.0f} s")
        time_s = _near(time_s, 1 / rate) if rate else time_s
        expected_s = time_s
        if stream.type == "audio":
            if frame.sample_rate < _LOWEST_RATE:
                raise ClipError(f"cannot be decoded: audio sample rate of {frame.sample_rate} Hz")
            expected_s += frame.samples / frame.sample_rate
        else:
            if frame.width * frame.height > _MOST_PIXELS:
                raise ClipError(f"cannot be decoded: video frames of {frame.width} x {frame.height} pixels")
            expected_s += 0.0 if frame.time is not None and not counted else _lasts_s(source, None, None)
        yield frame, time_s


def _decoded(source: _Source, stream: Any) -> Iterator[tuple[Any, int | None]]:
    """Yield decoded frames, each with the decoding time of the first packet read, and skip packets that are damaged.

    Packets before the first whole one do not count as damaged: a span that was cut out begins with parts of some.
    """
    import av

    first_dts: int | None = None
    error: Exception | None = None
    begun = False
    while True:
        try:
            packet = next(source.packets, None)
        except av.FFmpegError:
            if not begun:
                raise
            source.damaged += 1  # nothing after this place can be read
            return
        if packet is None:
            break
        _note_end(source, packet)
        if packet.stream is not stream:
            continue
        first_dts = packet.dts if first_dts is None else first_dts
        try:
            frames = packet.decode()
        except av.EOFError:
            break
        except av.FFmpegError as problem:
            source.damaged += begun
            error = problem
            continue
        source.whole += bool(packet.size)  # the last one is empty and only flushes the decoder
        for frame in frames:
            if begun and stream.type == "video" and frame.is_corrupt:
                source.damaged += 1
                continue
            begun = True
            yield frame, first_dts
    if not begun and error is not None:
        raise error


def _note_end(source: _Source, packet: Any) -> None:
    """Note where the stream of a packet ends, as far as it was read."""
    kind = packet.stream.type
    time = packet.dts if packet.pts is None or (kind == "video" and source.numbered) else packet.pts
    if time is None or not packet.size:
        return
    lasts_s = _lasts_s(source, packet.duration, packet.time_base) if kind == "video" else 0.0
    lasts_s = lasts_s or float((packet.duration or 0) * packet.time_base)
    end_s = float(time * packet.time_base) - source.begins_s[kind] + lasts_s
    source.ends_s[kind] = max(source.ends_s.get(kind, 0.0), end_s)


def _lasts_s(source: _Source, duration: int | None, time_base: Any) -> float:
    """Return how many seconds a video frame lasts that states a duration, or 1 / rate if it states none."""
    if duration and time_base and not source.numbered:
        return min(float(duration * time_base), LONGEST_GAP_S)
    rate = float(source.video.guessed_rate or source.video.average_rate or 25)
    return min(1 / rate, LONGEST_GAP_S)


def _stated_end_s(source: _Source, stream: Any) -> float | None:
    """Return where a stream ends according to the file's header; None if it does not say."""
    name = source.container.format.name
    if "matroska" in name and source.container.duration is not None:
        hours, minutes, seconds = (["", "", *stream.metadata.get("DURATION", "").split(":")])[-3:]
        try:
            stated_s = float(hours) * 3600 + float(minutes) * 60 + float(seconds)
        except ValueError:
            return None
        return min(stated_s, source.container.duration / 1_000_000) - source.begins_s[stream.type]
    if stream.duration is None or not any(known in name for known in _HEADER_STATES_LENGTH):
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - source.begins_s[stream.type]


def _refuse_truncated(source: _Source, stream: Any, decoded_s: float, end_s: float | None) -> None:
    stated_s = _stated_end_s(source, stream)
    if stated_s is None:
        return
    if "matroska" in source.container.format.name:  # the last frame may stay while the other stream goes on
        decoded_s = max([decoded_s, *source.ends_s.values()])
    required_s = stated_s if end_s is None else min(end_s, stated_s)
    if decoded_s < required_s - _TRUNCATED_S:
        raise ClipError(f"cannot be decoded: ends after {decoded_s:.1f} s of {stated_s:.1f} s")


def _upright(frame: Any, stream: Any) -> np.ndarray:
    """Return RGB (H, W, 3) with square pixels, turned and flipped as the file states.

    Phones store every video sideways, front cameras mirror it, and discs and tapes have pixels that are not square.
    """
    from av.video.reformatter import Colorspace

    width, height = frame.width, frame.height
    aspect = float(stream.sample_aspect_ratio or 1)
    if 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT:
        width, height = round(width * max(aspect, 1)), round(height / min(aspect, 1))
    if width * height > _MOST_PIXELS:
        width, height = frame.width, frame.height
    hd = frame.colorspace == _UNTAGGED and frame.height >= _HD_HEIGHT
    image = frame.to_ndarray(
        format="rgb24", width=width, height=height, src_colorspace=Colorspace.ITU709 if hd else None
    )
    try:
        side_data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data that PyAV does not know
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
    if side_data is None:
        return image
    # A pixel at x, y is shown at a x + c y, b x + d y; other turns than quarters are rounded to the nearest.
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)
