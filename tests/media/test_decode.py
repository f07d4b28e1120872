"""Decoding: what is given back for a span, and one short reason for everything that cannot be decoded."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from qamoe.media.decode import ClipError, Contents, NoStream, contents, read_audio, read_frames
from tests.fixtures.damage import mutated
from tests.fixtures.research_data import shared_data

RATE = 22_050
real_clips = shared_data() / "clips" / "cremad"
needs_real_clips = pytest.mark.skipif(not real_clips.is_dir(), reason=f"there is no folder {real_clips}")


def film(
    path: Path,
    seconds: float = 2.0,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    streams: str = "av",
    options: dict[str, str] | None = None,
) -> Path:
    """Picture k is grey, of brightness 12 k; the sound is 440 Hz, twice as loud in every second half second.

    With `streams` empty, all pictures are white on the left and black on the right.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        video = audio = None
        if "v" in streams or not streams:
            video = container.add_stream("mpeg4", rate=rate)
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            video.options = {"qmin": "1", "qmax": "1"}
        if "a" in streams:
            codec = {".wav": "pcm_s16le", ".mp3": "libmp3lame"}.get(path.suffix, "aac")
            audio = container.add_stream(codec, rate=RATE, layout="mono")
        if video is not None:
            for k in range(round(seconds * rate)):
                grey = np.full((size[1], size[0], 3), min(12 * k, 255), np.uint8)
                if not streams:
                    grey[:, : size[0] // 2], grey[:, size[0] // 2 :] = 255, 0
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, rate)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None:
            time = np.arange(round(seconds * RATE)) / RATE
            wave = np.sin(2 * np.pi * 440 * time) * np.where(time % 1 < 0.5, 0.25, 0.5)
            samples = np.rint(wave * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=RATE)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    return path


def shades(path: Path, rate: float, start_s: float = 0.0, end_s: float | None = None) -> list[int]:
    return [round(float(p.mean()) / 12) for p in read_frames(path, rate, start_s, end_s)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film") / "clip.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_what_fills_up_the_last_frame_of_sound_is_no_sound(tmp_path: Path, suffix: str) -> None:
    path = film(tmp_path / f"clip{suffix}", seconds=1.5, streams="a")
    with av.open(str(path)) as container:
        decoded = sum(frame.samples for frame in container.decode(audio=0))
    assert decoded > 1.5 * RATE, "the codec filled up nothing, so that this shows nothing"
    whole = read_audio(path, RATE)
    assert len(whole) == 1.5 * RATE
    for end_s in (1.5, 60.0):
        np.testing.assert_array_equal(read_audio(path, RATE, end_s=end_s), whole)
    np.testing.assert_array_equal(read_audio(path, RATE, end_s=1.49), whole[: round(1.49 * RATE)])
    assert len(read_audio(path, RATE, 1.0)) == 0.5 * RATE
    with pytest.raises(ClipError, match="no sound between"):
        read_audio(path, RATE, 1.5)


def test_pictures_are_those_on_show_at_each_time(clip: Path) -> None:
    assert shades(clip, 10) == list(range(20))
    assert shades(clip, 5) == list(range(0, 20, 2))
    assert shades(clip, 20) == [k // 2 for k in range(40)]
    assert shades(clip, 4) == [0, 2, 5, 7, 10, 12, 15, 17]


def test_a_span_of_pictures_begins_at_its_start(clip: Path) -> None:
    assert shades(clip, 5, 0.4, 1.2) == [4, 6, 8, 10]
    assert shades(clip, 5, 1.6) == [16, 18]
    assert shades(clip, 5, 1.6, 9.0) == [16, 18]


def test_pictures_are_rgb_of_the_films_size(tmp_path: Path) -> None:
    for size in ((65, 49), (33, 64)):
        first = next(read_frames(film(tmp_path / "odd.mkv", size=size, seconds=0.5), 5))
        assert first.shape == (size[1], size[0], 3)
        assert first.dtype == np.uint8


def test_a_film_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    path = film(tmp_path / "upright.mp4", seconds=0.2, size=(64, 48), streams="")
    content = bytearray(path.read_bytes())
    # The track header's matrix, behind 40 bytes of other fields: shown a quarter turn clockwise.
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    (shown,) = read_frames(path, 5)
    assert shown.shape == (64, 48, 3)
    assert shown[:24].mean() > 200
    assert shown[40:].mean() < 50


def test_sound_of_a_span_is_as_long_as_the_span_and_in_place(clip: Path) -> None:
    whole = read_audio(clip, RATE, 0.0, 2.0)
    assert whole.dtype == np.float32
    assert len(whole) == 2 * RATE
    part = read_audio(clip, RATE, 0.75, 1.25)
    assert len(part) == RATE // 2
    quarter = RATE // 4
    assert np.sqrt((part[:quarter] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    assert np.sqrt((part[-quarter:] ** 2).mean()) == pytest.approx(0.25 / 2**0.5, rel=0.05)


def test_sound_is_resampled(clip: Path) -> None:
    assert len(read_audio(clip, 16_000, 0.0, 2.0)) == 32_000


def test_a_span_far_into_a_file_is_the_same_as_cut_from_the_whole(tmp_path: Path) -> None:
    wav = film(tmp_path / "long.wav", seconds=6, streams="a")
    whole = read_audio(wav, RATE)
    np.testing.assert_array_equal(read_audio(wav, RATE, 4.0, 5.0), whole[4 * RATE : 5 * RATE])


def test_a_format_without_the_stream_is_told_from_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(NoStream, match="no video stream"):
        next(read_frames(film(tmp_path / "voice.wav", streams="a"), 5))
    with pytest.raises(NoStream, match="no audio stream"):
        read_audio(film(tmp_path / "mute.mp4", streams="v"), RATE)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "zero bytes"),
        ("text.mp4", b"these are words and no film\n" * 40, "cannot be decoded: "),
        ("noise.mp3", b"\0" * 4096, "cannot be decoded: "),
    ],
)
def test_a_file_that_is_no_media_is_a_problem(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=reason) as seen:
        read_audio(tmp_path / name, RATE)
    assert not isinstance(seen.value, NoStream)
    with pytest.raises(ClipError, match=reason):
        next(read_frames(tmp_path / name, 5))


def test_a_file_cut_short_is_a_problem_wherever_its_index_stands(tmp_path: Path) -> None:
    for name, options in (("behind.mp4", {}), ("before.mp4", {"movflags": "+faststart"})):
        whole = film(tmp_path / name, seconds=4, size=(320, 240), options=options).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ClipError, match="cannot be decoded"):
            read_audio(tmp_path / name, RATE)
        with pytest.raises(ClipError, match="cannot be decoded"):
            list(read_frames(tmp_path / name, 5))


def test_contents_say_what_is_there_without_decoding(clip: Path, tmp_path: Path) -> None:
    found = contents(clip)
    assert (found.audio, found.vision) == (True, True)
    assert found.seconds == pytest.approx(2.0, abs=0.05)
    assert contents(film(tmp_path / "voice.wav", streams="a")) == Contents(2.0, True, False)
    assert contents(film(tmp_path / "mute.mkv", streams="v")).audio is False


def test_contents_of_what_cannot_be_used_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ClipError, match="zero bytes"):
        contents(tmp_path / "empty.mp4")
    whole = film(tmp_path / "long.mp4", seconds=4, size=(320, 240), options={"movflags": "+faststart"}).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError, match=r"cannot be decoded: ends after \d\.\d s of 4\.0 s"):
        contents(tmp_path / "half.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.wav"])
def test_damaged_media_are_read_or_a_problem_and_nothing_else(tmp_path: Path, name: str) -> None:
    """50 damages a container: nothing but ClipError is raised, and what is read has a shape."""
    path = film(tmp_path / name, seconds=0.5, streams="a" if name.endswith("wav") else "av")
    whole = path.read_bytes()
    looks = (
        lambda: contents(path).seconds >= 0,
        lambda: read_audio(path, 8_000).ndim == 1,
        lambda: all(picture.shape[2] == 3 for picture in read_frames(path, 5)),
    )
    reasons = []
    for seed in range(50):
        path.write_bytes(mutated(whole, seed))
        for look in looks:
            try:
                assert look()
            except ClipError as problem:
                reasons.append(str(problem))
    assert 20 < len(reasons) < 150
    assert not any("\n" in reason for reason in reasons)


def test_sound_that_changes_its_rate_on_the_way_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = film(tmp_path / "slow.aac", seconds=0.5, streams="a").read_bytes()
    monkeypatch.setitem(globals(), "RATE", 44_100)
    fast = film(tmp_path / "fast.aac", seconds=0.5, streams="a").read_bytes()
    (tmp_path / "both.aac").write_bytes(slow + fast)
    with pytest.raises(ClipError, match="cannot be decoded: its sound changes its format on the way"):
        read_audio(tmp_path / "both.aac", 8_000)


def late(path: Path, at_s: float) -> Path:
    """A film of three pictures and, `at_s` seconds in, a fourth and the first sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for pts in (0, 1, 2, round(at_s * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = av.AudioFrame.from_ndarray(np.full((1, 4096), 0.1, np.float32), format="fltp", layout="mono")
        wave.sample_rate, wave.pts, wave.time_base = RATE, round(at_s * RATE), Fraction(1, RATE)
        container.mux(audio.encode(wave))
        container.mux(audio.encode(None))
    return path


def test_what_begins_late_is_in_its_place_and_a_time_that_damage_gave_fills_no_memory(tmp_path: Path) -> None:
    path = late(tmp_path / "late.mkv", 8.0)
    assert len(read_audio(path, 8_000)) == pytest.approx(8 * 8_000 + 4096 * 8_000 / RATE, abs=1200)
    assert len(list(read_frames(path, 5))) == 41
    path = late(tmp_path / "damaged.mkv", 10_000)
    with pytest.raises(ClipError, match="cannot be decoded: nothing between 0 s and 10000 s"):
        read_audio(path, 8_000)
    with pytest.raises(ClipError, match="cannot be decoded: nothing between 0 s and 10000 s"):
        list(read_frames(path, 5))


@pytest.mark.parametrize("rate", [1, 999])
def test_a_rate_that_no_sound_has_is_a_problem_before_it_is_resampled(tmp_path: Path, rate: int) -> None:
    path = film(tmp_path / "slow.wav", seconds=0.5, streams="a")
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"fmt ") + 12, rate)
    path.write_bytes(content)
    with pytest.raises(ClipError, match=f"cannot be decoded: sound of {rate} samples a second"):
        read_audio(path, 16_000)


def test_a_file_that_lost_both_its_streams_is_a_problem_and_not_one_without_them(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.mp4", seconds=0.5)
    path.write_bytes(path.read_bytes().replace(b"trak", b"free"))
    for look in (lambda: read_audio(path, RATE), lambda: next(read_frames(path, 5)), lambda: contents(path)):
        with pytest.raises(ClipError, match="neither an audio nor a video stream") as seen:
            look()
        assert not isinstance(seen.value, NoStream)


def test_a_stream_that_begins_on_the_way_is_a_problem(tmp_path: Path) -> None:
    """A transport stream names its streams again and again: here those of another film, after the first have begun."""
    one = film(tmp_path / "one.ts", seconds=0.5).read_bytes()
    two = film(tmp_path / "two.ts", seconds=6, size=(320, 240)).read_bytes()
    moved = bytearray(two)
    for place in range(0, len(moved), 188):  # packets of 188 bytes, whose second and third name the stream
        pid = int.from_bytes(moved[place + 1 : place + 3], "big")
        if pid & 0x1FFF in (0x100, 0x101):
            moved[place + 1 : place + 3] = (pid + 0x10).to_bytes(2, "big")
    (tmp_path / "both.ts").write_bytes(one + two + bytes(moved))
    looks = (
        lambda: read_audio(tmp_path / "both.ts", RATE),
        lambda: list(read_frames(tmp_path / "both.ts", 5)),
        lambda: contents(tmp_path / "both.ts"),
    )
    for look in looks:
        with pytest.raises(ClipError, match="cannot be decoded: a stream begins on the way"):
            look()


def test_a_span_behind_the_end_is_a_problem(clip: Path) -> None:
    with pytest.raises(ClipError, match="no sound between 5 s and 6 s"):
        read_audio(clip, RATE, 5.0, 6.0)
    with pytest.raises(ClipError, match="no picture between 5 s and the end"):
        list(read_frames(clip, 5, 5.0))


def test_only_local_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = film(tmp_path / "clip.mp4", seconds=0.5)
    monkeypatch.chdir(tmp_path)
    for name in ("http://127.0.0.1:9/clip.mp4", f"concat:{clip}", f"file:{clip}", str(tmp_path)):
        with pytest.raises(ClipError, match="no such file"):
            read_audio(Path(name), RATE)
    # A name that looks like a protocol is still a file.
    clip.rename(tmp_path / "concat:clip.mp4")
    assert len(read_audio(Path("concat:clip.mp4"), RATE))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\nclip.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile clip.ts\n",
    ],
)
def test_a_playlist_in_disguise_opens_no_other_file(tmp_path: Path, playlist: str) -> None:
    film(tmp_path / "clip.ts", seconds=0.5)
    for name in ("list.mp4", "list.m3u8"):
        (tmp_path / name).write_text(playlist)
        with pytest.raises(ClipError, match="cannot be decoded"):
            read_audio(tmp_path / name, RATE)


@pytest.mark.real_data
@needs_real_clips
def test_real_clips_decode() -> None:
    for path in sorted(real_clips.iterdir()):
        wave = read_audio(path, RATE)
        assert 1.8 < len(wave) / RATE < 2.9
        assert 0.02 < np.abs(wave).max() <= 1.0
        if path.suffix == ".flv":
            shown = list(read_frames(path, 5))
            assert shown[0].shape == (360, 480, 3)
            assert abs(len(shown) / 5 - len(wave) / RATE) < 0.4
        else:
            with pytest.raises(NoStream):
                next(read_frames(path, 5))
