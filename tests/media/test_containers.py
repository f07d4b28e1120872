"""What containers state about their streams: turns, pixels, lengths, tracks, padding, holes and damage."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.media import decode
from qamoe.media.decode import ClipError, contents, read_audio, read_frames
from tests.fixtures.copies import Audio, Video, move, write

RATE = 16_000
QUARTERS = ("red", "green", "blue", "white")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (230, 230, 230)}


def image(height: int = 48, width: int = 64) -> np.ndarray:
    """Return an image whose quarters are red and green above, blue and white below."""
    quarters = np.array([COLOURS[name] for name in QUARTERS], np.uint8).reshape(2, 2, 3)
    return quarters.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def grey(value: int) -> np.ndarray:
    return np.full((48, 64, 3), value, np.uint8)


def seen(frame: np.ndarray) -> tuple[str, ...]:
    """Return the colours of the quarters of a frame, by rows."""
    height, width = frame.shape[:2]
    points = [frame[y * height // 4, x * width // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    return tuple(min(COLOURS, key=lambda name: np.abs(point - COLOURS[name]).sum()) for point in points)


def film(count: int = 10, **changes: Any) -> Video:
    """Return a video whose frame k, from k / 10 s, is grey of brightness 12 k."""
    return Video([grey(12 * k % 252) for k in range(count)], [k / 10 for k in range(count)], count / 10, **changes)


def shades(path: Path, rate: float = 10, start_s: float = 0.0, end_s: float | None = None) -> list[int]:
    return [round(float(frame.mean()) / 12) for frame in read_frames(path, rate, start_s, end_s)]


def bursts(seconds: float = 1.0, rate: int = RATE, every_s: float = 0.25) -> np.ndarray:
    """Return (1, N): a tone of .1 s that begins every `every_s` seconds, between them silence."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * time) * (time % every_s < 0.1))[None].astype(np.float32)


def onsets_s(wave: np.ndarray, rate: int = RATE) -> list[float]:
    """Return when the bursts in a wave begin, to 10 ms."""
    loud = np.abs(wave[: len(wave) // (rate // 100) * (rate // 100)]).reshape(-1, rate // 100).max(axis=1) > 0.1
    return [round(float(n) / 100, 2) for n in np.flatnonzero(loud & ~np.append(False, loud[:-1]))]


ONE, FULL = 1 << 16, 1 << 30
# The matrix (a, b, c, d) shows a pixel at x, y at a x + c y, b x + d y.
TURNS = {
    (1, 0, 0, 1): ("red", "green", "blue", "white"),
    (-1, 0, 0, 1): ("green", "red", "white", "blue"),
    (1, 0, 0, -1): ("blue", "white", "red", "green"),
    (-1, 0, 0, -1): ("white", "blue", "green", "red"),
    (0, 1, -1, 0): ("blue", "red", "white", "green"),
    (0, -1, 1, 0): ("green", "white", "red", "blue"),
    (0, 1, 1, 0): ("red", "blue", "green", "white"),
    (0, -1, -1, 0): ("white", "green", "blue", "red"),
}


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [(".mp4", "mpeg4", "yuv420p"), (".mov", "mjpeg", "yuvj420p"), (".3gp", "libx264", "yuv420p")],
)
@pytest.mark.parametrize("matrix", TURNS)
def test_turns_and_flips_are_applied(
    tmp_path: Path, suffix: str, codec: str, pixels: str, matrix: tuple[int, int, int, int]
) -> None:
    a, b, c, d = (ONE * value for value in matrix)
    video = Video([image()] * 3, [0.0, 0.1, 0.2], 0.3, codec, pixels, matrix=(a, b, 0, c, d, 0, 0, 0, FULL))
    first = next(read_frames(write(tmp_path / f"clip{suffix}", video), 5))
    assert first.shape == ((48, 64, 3) if matrix[0] else (64, 48, 3))
    assert seen(first) == TURNS[matrix]


@pytest.mark.parametrize(
    ("suffix", "codec", "aspect", "size"),
    [
        (".mp4", "mpeg4", Fraction(4, 3), (48, 85)),
        (".mkv", "libx264", Fraction(3, 4), (64, 64)),
        (".avi", "mpeg4", Fraction(12, 11), (48, 70)),
        (".ts", "libx264", Fraction(16, 11), (48, 93)),
    ],
)
def test_pixels_become_square(tmp_path: Path, suffix: str, codec: str, aspect: Fraction, size: tuple[int, int]) -> None:
    video = Video([image()] * 3, [0.0, 0.1, 0.2], 0.3, codec, aspect=aspect)
    first = next(read_frames(write(tmp_path / f"clip{suffix}", video), 5))
    assert first.shape == (*size, 3)
    assert seen(first) == QUARTERS


def test_pixels_are_made_square_before_a_turn(tmp_path: Path) -> None:
    quarter = (0, ONE, 0, -ONE, 0, 0, 0, 0, FULL)
    video = Video([image()] * 2, [0.0, 0.1], 0.2, aspect=Fraction(2), matrix=quarter)
    first = next(read_frames(write(tmp_path / "clip.mp4", video), 5))
    assert first.shape == (128, 48, 3)
    assert seen(first) == ("blue", "red", "white", "green")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.m4v", "clip.mkv"])
def test_the_last_frame_stays_as_long_as_it_says(tmp_path: Path, name: str) -> None:
    video = Video([grey(12 * k) for k in range(4)], [0.0, 0.1, 0.2, 0.3], 3.0)
    path = write(tmp_path / name, video, Audio(bursts(3.0), RATE), format="mp4" if name.endswith("m4v") else None)
    assert shades(path, 10) == [0, 1, 2, *[3] * 27]
    assert shades(path, 10, 1.0, 1.5) == [3] * 5
    assert contents(path).seconds == pytest.approx(3.0, abs=0.03)


def test_a_frame_in_the_middle_stays_too_and_a_last_one_may_be_short(tmp_path: Path) -> None:
    video = Video([grey(0), grey(24), grey(48)], [0.0, 0.1, 1.0], 1.1)
    assert shades(write(tmp_path / "clip.mp4", video), 10) == [0, *[2] * 9, 4]


def test_a_gif_is_as_long_as_its_delays(tmp_path: Path) -> None:
    video = Video([grey(0), grey(60)], [0.0, 0.4], 1.0, "gif", "rgb8")
    assert shades(write(tmp_path / "clip.gif", video), 10) == [*[0] * 4, *[5] * 6]
    assert contents(tmp_path / "clip.gif").audio is False


# The shortest GOP makes every frame one that a stream can be cut at.
CUT = {"g": "5", "bf": "0"}


@pytest.mark.parametrize(
    ("name", "codec", "audio"),
    [
        ("clip.mpg", "mpeg1video", "mp2"),
        ("clip.vob", "mpeg2video", "ac3"),
        ("clip.ts", "libx264", "aac"),
        ("clip.m2ts", "libx264", "ac3"),
        ("clip.avi", "mpeg4", "pcm_s16le"),
        ("clip.mkv", "libx264", "flac"),
        ("clip.wmv", "wmv2", "wmav2"),
    ],
)
def test_a_span_is_a_cut_of_the_whole(tmp_path: Path, name: str, codec: str, audio: str) -> None:
    times = [k / 10 for k in range(60)]
    path = tmp_path / name
    if codec.startswith("mpeg") and codec != "mpeg4":
        path = mpeg(path, codec, audio)
    else:
        images = [grey(12 * (k % 10)) for k in range(60)]
        video = Video(images, times, 6.0, codec, options=CUT)
        path = write(
            path,
            video,
            Audio(np.tile(bursts(1.0, 44_100), 6), 44_100, audio, bits=96_000),
            format="mpegts" if name.endswith("ts") else None,
        )
    whole = read_audio(path, 22_050)
    frames = list(read_frames(path, 5))
    np.testing.assert_allclose([frame.mean() / 12 for frame in frames], [k % 10 for k in range(0, 60, 2)], atol=0.8)
    for start_s, end_s in ((0.6, 1.2), (1.0, 2.0), (3.0, 4.0), (5.0, 5.8)):
        span = read_audio(path, 22_050, start_s, end_s)
        np.testing.assert_allclose(span, whole[round(start_s * 22_050) :][: len(span)], atol=2e-3)
        assert len(span) == round((end_s - start_s) * 22_050)
        for frame, same in zip(
            read_frames(path, 5, start_s, end_s), frames[round(5 * start_s) : round(5 * end_s)], strict=True
        ):
            np.testing.assert_allclose(frame.mean(), same.mean(), atol=2)


def mpeg(path: Path, video: str, audio: str) -> Path:
    """Write six seconds at 25 frames a second, as MPEG-1 and MPEG-2 need: brightness 24 k from 80 ms before k / 5 s."""
    import av

    container: Any
    draws = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        coded = container.add_stream(video, rate=25)
        coded.width, coded.height, coded.pix_fmt, coded.options = 64, 48, "yuv420p", CUT | {"qmin": "1", "qmax": "2"}
        voice = container.add_stream(audio, rate=48_000, layout="mono")
        voice.codec_context.open()
        resampler = av.AudioResampler(
            format=voice.codec_context.format, layout="mono", rate=48_000, frame_size=voice.codec_context.frame_size
        )
        for k in range(150):
            # Noise, so that a frame has several packets, as in real films.
            noisy = np.clip(grey(24 * ((k + 2) // 5 % 5)) + draws.normal(0, 4, (48, 64, 3)), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(coded.encode(frame))
            block = np.tile(bursts(1.0, 48_000), 6)[:, k * 1920 : (k + 1) * 1920]
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono")
            sound.sample_rate = 48_000
            for part in resampler.resample(sound):
                container.mux(voice.encode(part))
        container.mux(coded.encode(None))
        container.mux(voice.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "unit", "share"), [("clip.mpg", 2048, 0.4), ("clip.vob", 2048, 0.6), ("clip.ts", 188, 0.5)]
)
def test_a_file_cut_out_of_another_one_is_read_from_its_first_whole_packet(
    tmp_path: Path, name: str, unit: int, share: float
) -> None:
    if name.endswith("ts"):
        images = [grey(12 * (k % 10)) for k in range(60)]
        video = Video(images, [k / 10 for k in range(60)], 6.0, "libx264", options=CUT)
        whole = write(tmp_path / name, video, Audio(np.tile(bursts(), 6), RATE), format="mpegts")
    else:
        codecs = ("mpeg1video", "mp2") if name.endswith("mpg") else ("mpeg2video", "ac3")
        whole = mpeg(tmp_path / name, *codecs)
    content = whole.read_bytes()
    begin = round(len(content) * share) // unit * unit
    head = content[: 188 * 3] if unit == 188 else b""  # the tables of a transport stream
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(head + content[begin:])
    length = contents(cut).seconds
    assert 1.0 < length < 5.0
    wave = read_audio(cut, RATE)
    assert len(wave) / RATE == pytest.approx(length, abs=0.3)
    assert np.diff(onsets_s(wave)[1:]) == pytest.approx(0.25, abs=0.011)
    assert len(shades(cut)) >= 10 * (length - 0.7)


def tracks(path: Path, defaults: tuple[bool, ...], codec: str = "aac") -> Path:
    """Write a video whose audio tracks have tones of 300, 600, 900 Hz in Japanese, English and French."""
    time = np.arange(RATE) / RATE
    audio = [
        Audio(
            (0.3 * np.sin(2 * np.pi * 300 * (n + 1) * time))[None],
            RATE if codec != "ac3" else 48_000,
            codec,
            default=default,
            metadata={"language": language, "title": title},
        )
        for n, (default, language, title) in enumerate(
            zip(defaults, ("jpn", "eng", "fra"), ("Stereo", "Dub", "Commentary"), strict=False)
        )
    ]
    return write(path, film(), *audio)


def pitch(wave: np.ndarray) -> int:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return round(float(np.argmax(spectrum)) * RATE / len(wave) / 300)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.mov", "clip.webm"])
@pytest.mark.parametrize("defaults", [(True, False, False), (False, True, False), (False, False, True)])
def test_the_default_track_is_read_and_others_by_name(tmp_path: Path, name: str, defaults: tuple[bool, ...]) -> None:
    if name.endswith("webm"):
        time = np.arange(48_000) / 48_000
        audio = [
            Audio(
                (0.3 * np.sin(2 * np.pi * 300 * (n + 1) * time))[None],
                48_000,
                "libopus",
                default=default,
                metadata={"language": language},
            )
            for n, (default, language) in enumerate(zip(defaults, ("jpn", "eng", "fra"), strict=True))
        ]
        path = write(tmp_path / name, film(codec="libvpx"), *audio)
    else:
        path = tracks(tmp_path / name, defaults)
    assert pitch(read_audio(path, RATE)) == defaults.index(True) + 1
    for track, tone in (("1", 1), ("2", 2), ("3", 3), ("jpn", 1), ("en", 2), ("FRA", 3)):
        with decode.reading(track):
            assert pitch(read_audio(path, RATE)) == tone
    with decode.reading("deu"), pytest.raises(ClipError, match=r"'deu'.* 1 \(jpn.* 2 \(eng.* 3 \(fra"):
        read_audio(path, RATE)


def test_a_title_names_a_track_of_a_file_that_has_titles(tmp_path: Path) -> None:
    path = tracks(tmp_path / "clip.mkv", (True, False, False))
    with decode.reading("commentary"):
        assert pitch(read_audio(path, RATE)) == 3


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("clip.wav", "pcm_s16le", RATE),
        ("clip.flac", "flac", 44_100),
        ("clip.mp4", "aac", 48_000),
        ("clip.mp3", "libmp3lame", 44_100),
    ],
)
@pytest.mark.parametrize("share", [1.0, 0.9])
def test_channels_that_cancel_each_other_are_not_silence(
    tmp_path: Path, name: str, codec: str, rate: int, share: float
) -> None:
    left = bursts(1.0, rate)
    path = write(tmp_path / name, Audio(np.concatenate([left, -share * left]), rate, codec, "stereo", 192_000))
    wave = read_audio(path, RATE)
    assert onsets_s(wave) == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=0.011)
    assert np.abs(wave).max() == pytest.approx(0.5, rel=0.3)


def test_a_voice_in_one_of_six_channels_keeps_its_level(tmp_path: Path) -> None:
    voice = bursts(1.0, 48_000)
    channels = np.zeros((6, 48_000), np.float32)
    channels[2] = voice  # the centre
    channels[3] = 0.9  # low frequencies, which hold no voice
    path = write(tmp_path / "clip.wav", Audio(channels, 48_000, "pcm_s16le", "5.1"))
    assert np.abs(read_audio(path, RATE)).max() == pytest.approx(0.5, rel=0.1)


def test_channels_are_mixed_so_that_power_is_kept(tmp_path: Path) -> None:
    left = bursts()
    path = write(tmp_path / "clip.wav", Audio(np.concatenate([left, 0.5 * left]), RATE, "pcm_s16le", "stereo"))
    np.testing.assert_allclose(read_audio(path, RATE), 1.5 / 2**0.5 * left[0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("clip.mkv", "flac", 48_000),
        ("clip.mp4", "aac", 48_000),
        ("clip.webm", "libopus", 48_000),
        ("clip.ts", "ac3", 48_000),
    ],
)
def test_holes_between_packets_are_silence(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    """A recorder that loses packets leaves a hole; without silence in it, all words after it came too early."""
    container = ".mka" if name.endswith("webm") else Path(name).suffix
    whole = write(tmp_path / f"whole{container}", Audio(bursts(2.0, rate), rate, codec))
    import av

    with av.open(str(whole)) as read:
        stream: Any = read.streams.audio[0]
        first_s = float((stream.start_time or 0) * stream.time_base)

    def outside(packet: Any) -> bool:
        return not 0.45 < packet.pts * packet.time_base - first_s < 1.2

    move(whole, tmp_path / name, ("audio",), keep=outside)
    wave = read_audio(tmp_path / name, RATE)
    kept = [onset for onset in onsets_s(read_audio(whole, RATE)) if not 0.35 < onset < 1.2]
    assert onsets_s(wave) == pytest.approx(kept, abs=0.031)
    assert np.abs(wave[round(0.65 * RATE) : round(1.1 * RATE)]).max() == 0.0


def broken(number: set[int]) -> Callable[[Any], Any]:
    """Return a function that overwrites packets with these numbers."""
    import av

    count = iter(range(10_000))

    def change(packet: Any) -> Any:
        if next(count) not in number:
            return packet
        damaged = av.Packet(b"\xff" * packet.size)
        damaged.pts, damaged.dts, damaged.duration = packet.pts, packet.dts, packet.duration
        damaged.time_base, damaged.stream = packet.time_base, packet.stream
        return damaged

    return change


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("clip.mp4", "aac", RATE), ("clip.mkv", "ac3", 48_000), ("clip.mkv", "flac", 44_100), ("clip.mka", "mp2", 48_000)],
)
def test_damaged_packets_are_skipped_and_said(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    whole = write(tmp_path / f"whole{Path(name).suffix}", Audio(bursts(3.0, rate), rate, codec))
    move(whole, tmp_path / name, ("audio",), change=broken({8, 9}))
    with decode.reading() as notes:
        wave = read_audio(tmp_path / name, RATE)
    (note,) = notes
    assert note.split(" of ")[0] in ("1", "2")  # a decoder may conceal one
    good = read_audio(whole, RATE)
    np.testing.assert_allclose(len(wave), len(good), atol=0.1 * RATE)
    np.testing.assert_allclose(wave[-RATE:], good[len(wave) - RATE : len(wave)], atol=0.05)
    with decode.reading() as notes:
        read_audio(whole, RATE)
    assert notes == []


def test_damaged_frames_are_skipped_and_said(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", film(codec="mjpeg", pixels="yuvj420p"))
    move(whole, tmp_path / "clip.mkv", ("video",), change=broken({3}))
    with decode.reading() as notes:
        assert shades(tmp_path / "clip.mkv") == [0, 1, 2, 2, *range(4, 10)]
    assert notes == ["1 of 10 packets are damaged and were skipped"]


def test_a_stream_of_which_most_packets_are_damaged_is_a_problem(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", film(codec="mjpeg", pixels="yuvj420p"))
    move(whole, tmp_path / "clip.mkv", ("video",), change=broken(set(range(1, 8))))
    with pytest.raises(ClipError, match="7 of 10 packets"):
        shades(tmp_path / "clip.mkv")


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mka"])
def test_a_truncated_matroska_file_is_a_problem(tmp_path: Path, name: str) -> None:
    streams = [Audio(bursts(4.0), RATE)] if name.endswith("a") else [film(40), Audio(bursts(4.0), RATE)]
    path = write(tmp_path / name, *streams)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for read in (lambda: contents(path), lambda: read_audio(path, RATE)):
        with pytest.raises(ClipError, match=r"ends after \d\.\d s of 4\.\d s"):
            read()


def test_frames_of_an_avi_are_in_their_order(tmp_path: Path) -> None:
    """AVI has no times, and a codec that reorders frames gave them those of others."""
    whole = write(tmp_path / "whole.mp4", film(codec="libx264", options={"bf": "3", "b_strategy": "0"}))
    move(whole, tmp_path / "clip.avi", ("video",), bitstream="h264_mp4toannexb")
    assert shades(tmp_path / "clip.avi") == list(range(10))


@pytest.mark.parametrize(
    ("name", "format", "options", "bitstream"),
    [
        ("copy.mkv", None, {}, None),
        ("copy.mov", None, {}, None),
        ("copy.3gp", None, {}, None),
        ("copy.flv", None, {}, None),
        ("copy.ts", None, {}, None),
        ("copy.m2ts", "mpegts", {"mpegts_m2ts_mode": "1"}, None),
        ("copy.avi", None, {}, "h264_mp4toannexb"),
        ("copy.m4v", "mp4", {"movflags": "+frag_keyframe+empty_moov"}, None),
        ("copy.mp4", None, {"use_editlist": "0"}, None),
    ],
)
def test_moved_streams_give_the_same_samples_and_frames(
    tmp_path: Path, name: str, format: str | None, options: dict[str, str], bitstream: str | None
) -> None:
    video = film(20, codec="libx264", options={"bf": "2", "b_strategy": "0"})
    whole = write(tmp_path / "whole.mp4", video, Audio(bursts(2.0, 22_050), 22_050))
    copy = move(whole, tmp_path / name, format=format, options=options, bitstream=bitstream)
    np.testing.assert_array_equal(read_audio(copy, RATE), read_audio(whole, RATE))
    for frame, same in zip(read_frames(copy, 5), read_frames(whole, 5), strict=True):
        np.testing.assert_array_equal(frame, same)


def test_untagged_high_definition_has_the_colours_of_bt_709(tmp_path: Path) -> None:
    import av
    from av.video.reformatter import Colorspace

    path, container = tmp_path / "clip.mp4", None
    with av.open(str(path), "w") as opened:
        container = opened
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 1280, 720, "yuv420p", {"qp": "1"}
        frame = av.VideoFrame.from_ndarray(image(720, 1280), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode(None))
    first = next(read_frames(path, 5))
    for name, (y, x) in zip(QUARTERS, ((100, 100), (100, 900), (600, 100), (600, 900)), strict=True):
        np.testing.assert_allclose(first[y, x].astype(int), COLOURS[name], atol=6)
