"""Decoding: the samples and frames of a span, and one short reason for each file that cannot be decoded."""

import struct
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from qamoe.media.decode import ClipError, Contents, NoStream, contents, read_audio, read_frames
from tests.fixtures.damage import mutated
from tests.fixtures.research_data import shared_data

RATE = 22_050
real_clips = shared_data() / "clips" / "cremad"
needs_real_clips = pytest.mark.skipif(not real_clips.is_dir(), reason=f"{real_clips} does not exist")


def write_media(
    path: Path,
    seconds: float = 2.0,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    streams: str = "av",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a media file: frame k is grey of brightness 12 k, the audio is louder in every second half second.

    The audio changes between 440 and 1000 Hz every eighth of a second: a steady tone is no speech.
    `streams` names video (v) and audio (a). If it is empty, all frames are white on the left and black on the right.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        video: Any = None
        audio: Any = None
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
            hertz = np.where(time % 0.25 < 0.125, 440, 1000)
            wave = np.sin(2 * np.pi * hertz * time) * np.where(time % 1 < 0.5, 0.25, 0.5)
            samples = np.rint(wave * 32767).astype(np.int16).reshape(1, -1)
            wave_frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            wave_frame.sample_rate, wave_frame.pts, wave_frame.time_base = RATE, 0, Fraction(1, RATE)
            resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=RATE)
            for part in [*resampler.resample(wave_frame), *resampler.resample(None)]:
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    return path


def shades(path: Path, rate: float, start_s: float = 0.0, end_s: float | None = None) -> list[int]:
    return [round(float(p.mean()) / 12) for p in read_frames(path, rate, start_s, end_s)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("media") / "clip.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_padding_of_the_last_audio_frame_is_cut_off(tmp_path: Path, suffix: str) -> None:
    path = write_media(tmp_path / f"clip{suffix}", seconds=1.5, streams="a")
    with av.open(str(path)) as container:
        decoded = sum(frame.samples for frame in container.decode(audio=0))
    assert decoded > 1.5 * RATE, "the codec added no padding, so this test shows nothing"
    whole = read_audio(path, RATE)
    assert len(whole) == 1.5 * RATE
    for end_s in (1.5, 60.0):
        np.testing.assert_array_equal(read_audio(path, RATE, end_s=end_s), whole)
    np.testing.assert_array_equal(read_audio(path, RATE, end_s=1.49), whole[: round(1.49 * RATE)])
    assert len(read_audio(path, RATE, 1.0)) == 0.5 * RATE
    with pytest.raises(ClipError, match=r"1\.5 s and the end"):
        read_audio(path, RATE, 1.5)


def test_frames_are_those_shown_at_each_time(clip: Path) -> None:
    assert shades(clip, 10) == list(range(20))
    assert shades(clip, 5) == list(range(0, 20, 2))
    assert shades(clip, 20) == [k // 2 for k in range(40)]
    assert shades(clip, 4) == [0, 2, 5, 7, 10, 12, 15, 17]


def test_the_frames_of_a_span_begin_at_its_start(clip: Path) -> None:
    assert shades(clip, 5, 0.4, 1.2) == [4, 6, 8, 10]
    assert shades(clip, 5, 1.6) == [16, 18]
    assert shades(clip, 5, 1.6, 9.0) == [16, 18]


def test_frames_are_rgb_of_the_size_of_the_video(tmp_path: Path) -> None:
    for size in ((65, 49), (33, 64)):
        first = next(read_frames(write_media(tmp_path / "odd.mkv", size=size, seconds=0.5), 5))
        assert first.shape == (size[1], size[0], 3)
        assert first.dtype == np.uint8


def test_a_video_stored_sideways_is_turned_upright(tmp_path: Path) -> None:
    path = write_media(tmp_path / "upright.mp4", seconds=0.2, size=(64, 48), streams="")
    content = bytearray(path.read_bytes())
    # The track header's matrix follows 40 bytes of other fields. This one means a quarter turn clockwise.
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    (shown,) = read_frames(path, 5)
    assert shown.shape == (64, 48, 3)
    assert shown[:24].mean() > 200
    assert shown[40:].mean() < 50


def test_the_audio_of_a_span_has_the_length_and_position_of_the_span(clip: Path) -> None:
    whole = read_audio(clip, RATE, 0.0, 2.0)
    assert whole.dtype == np.float32
    assert len(whole) == 2 * RATE
    part = read_audio(clip, RATE, 0.75, 1.25)
    assert len(part) == RATE // 2
    quarter = RATE // 4
    assert np.sqrt((part[:quarter] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    assert np.sqrt((part[-quarter:] ** 2).mean()) == pytest.approx(0.25 / 2**0.5, rel=0.05)


def test_audio_is_resampled(clip: Path) -> None:
    assert len(read_audio(clip, 16_000, 0.0, 2.0)) == 32_000


def test_a_span_far_into_a_file_equals_a_cut_from_the_whole(tmp_path: Path) -> None:
    wav = write_media(tmp_path / "long.wav", seconds=6, streams="a")
    whole = read_audio(wav, RATE)
    np.testing.assert_array_equal(read_audio(wav, RATE, 4.0, 5.0), whole[4 * RATE : 5 * RATE])


def test_a_file_without_the_stream_is_distinguished_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(NoStream, match="video"):
        next(read_frames(write_media(tmp_path / "voice.wav", streams="a"), 5))
    with pytest.raises(NoStream, match="audio"):
        read_audio(write_media(tmp_path / "mute.mp4", streams="v"), RATE)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "zero bytes"),
        ("text.mp4", b"this is a text file, not a video\n" * 40, "cannot be decoded: "),
        ("noise.mp3", b"\0" * 4096, "cannot be decoded: "),
    ],
)
def test_a_file_that_is_not_media_is_a_problem(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=reason) as seen:
        read_audio(tmp_path / name, RATE)
    assert not isinstance(seen.value, NoStream)
    with pytest.raises(ClipError, match=reason):
        next(read_frames(tmp_path / name, 5))


def test_a_truncated_file_is_a_problem_wherever_its_index_is(tmp_path: Path) -> None:
    for name, options in (("behind.mp4", {}), ("before.mp4", {"movflags": "+faststart"})):
        whole = write_media(tmp_path / name, seconds=4, size=(320, 240), options=options).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ClipError, match="cannot be decoded"):
            read_audio(tmp_path / name, RATE)
        with pytest.raises(ClipError, match="cannot be decoded"):
            list(read_frames(tmp_path / name, 5))


def test_contents_give_length_and_streams_without_decoding(clip: Path, tmp_path: Path) -> None:
    both = contents(clip)
    assert (both.audio, both.vision) == (True, True)
    assert both.seconds == pytest.approx(2.0, abs=0.05)
    assert contents(write_media(tmp_path / "voice.wav", streams="a")) == Contents(
        2.0, True, False, spans={"audio": (0.0, 2.0)}
    )
    assert contents(write_media(tmp_path / "mute.mkv", streams="v")).audio is False


def test_the_contents_of_an_unusable_file_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ClipError, match="zero bytes"):
        contents(tmp_path / "empty.mp4")
    whole = write_media(
        tmp_path / "long.mp4", seconds=4, size=(320, 240), options={"movflags": "+faststart"}
    ).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError, match=r"cannot be decoded: .*\d\.\d s of 4\.0 s"):
        contents(tmp_path / "half.mp4")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.wav"])
def test_damaged_media_are_either_read_or_a_problem(tmp_path: Path, name: str) -> None:
    """50 damaged files per container: only ClipError is raised, and results have the right shape."""
    path = write_media(tmp_path / name, seconds=0.5, streams="a" if name.endswith("wav") else "av")
    whole = path.read_bytes()
    reads = (
        lambda: contents(path).seconds >= 0,
        lambda: read_audio(path, 8_000).ndim == 1,
        lambda: all(frame.shape[2] == 3 for frame in read_frames(path, 5)),
    )
    reasons = []
    for seed in range(50):
        path.write_bytes(mutated(whole, seed))
        for read in reads:
            try:
                assert read()
            except ClipError as problem:
                reasons.append(str(problem))
    assert 20 < len(reasons) < 150
    assert not any("\n" in reason for reason in reasons)


def test_audio_that_changes_its_rate_within_the_file_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = write_media(tmp_path / "slow.aac", seconds=0.5, streams="a").read_bytes()
    monkeypatch.setitem(globals(), "RATE", 44_100)
    fast = write_media(tmp_path / "fast.aac", seconds=0.5, streams="a").read_bytes()
    (tmp_path / "both.aac").write_bytes(slow + fast)
    with pytest.raises(ClipError, match=r"cannot be decoded: .*format"):
        read_audio(tmp_path / "both.aac", 8_000)


def late(path: Path, at_s: float) -> Path:
    """Write a video of three frames; a fourth frame and the first audio follow at `at_s` seconds."""
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


def test_late_streams_keep_their_time_and_a_damaged_time_takes_no_memory(tmp_path: Path) -> None:
    path = late(tmp_path / "late.mkv", 8.0)
    assert len(read_audio(path, 8_000)) == pytest.approx(8 * 8_000 + 4096 * 8_000 / RATE, abs=1200)
    assert len(list(read_frames(path, 5))) == 41
    path = late(tmp_path / "damaged.mkv", 10_000)
    with pytest.raises(ClipError, match=r"cannot be decoded: .*\b0 s and 10000 s"):
        read_audio(path, 8_000)
    with pytest.raises(ClipError, match=r"cannot be decoded: .*\b0 s and 10000 s"):
        list(read_frames(path, 5))


@pytest.mark.parametrize("rate", [1, 999])
def test_an_impossible_sample_rate_is_a_problem_before_resampling(tmp_path: Path, rate: int) -> None:
    path = write_media(tmp_path / "slow.wav", seconds=0.5, streams="a")
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"fmt ") + 12, rate)
    path.write_bytes(content)
    with pytest.raises(ClipError, match=rf"cannot be decoded: .*\b{rate} Hz"):
        read_audio(path, 16_000)


def test_a_file_that_lost_both_streams_is_a_problem_and_not_an_absent_modality(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.mp4", seconds=0.5)
    path.write_bytes(path.read_bytes().replace(b"trak", b"free"))
    for read in (lambda: read_audio(path, RATE), lambda: next(read_frames(path, 5)), lambda: contents(path)):
        with pytest.raises(ClipError, match=r"audio .*video") as seen:
            read()
        assert not isinstance(seen.value, NoStream)


def test_a_stream_that_begins_within_the_file_is_a_problem(tmp_path: Path) -> None:
    """A transport stream repeats the list of its streams; here it later lists those of another video."""
    one = write_media(tmp_path / "one.ts", seconds=0.5).read_bytes()
    two = write_media(tmp_path / "two.ts", seconds=6, size=(320, 240)).read_bytes()
    moved = bytearray(two)
    for start in range(0, len(moved), 188):  # in each packet of 188 bytes, the second and third give the stream
        pid = int.from_bytes(moved[start + 1 : start + 3], "big")
        if pid & 0x1FFF in (0x100, 0x101):
            moved[start + 1 : start + 3] = (pid + 0x10).to_bytes(2, "big")
    (tmp_path / "both.ts").write_bytes(one + two + bytes(moved))
    reads = (
        lambda: read_audio(tmp_path / "both.ts", RATE),
        lambda: list(read_frames(tmp_path / "both.ts", 5)),
        lambda: contents(tmp_path / "both.ts"),
    )
    for read in reads:
        with pytest.raises(ClipError, match=r"cannot be decoded: .*stream begins"):
            read()


def test_a_span_after_the_end_is_a_problem(clip: Path) -> None:
    with pytest.raises(ClipError, match="5 s and 6 s"):
        read_audio(clip, RATE, 5.0, 6.0)
    with pytest.raises(ClipError, match="5 s and the end"):
        list(read_frames(clip, 5, 5.0))


def test_only_local_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_media(tmp_path / "clip.mp4", seconds=0.5)
    monkeypatch.chdir(tmp_path)
    for name in ("http://127.0.0.1:9/clip.mp4", f"concat:{clip}", f"file:{clip}", str(tmp_path)):
        with pytest.raises(ClipError, match="no such file"):
            read_audio(Path(name), RATE)
    # A name that looks like a protocol is still a file name.
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
    write_media(tmp_path / "clip.ts", seconds=0.5)
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


def test_audio_that_is_shorter_than_a_sample_is_none(tmp_path: Path) -> None:
    path = tmp_path / "fast.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 2_000_000_000, 0, "NONE", ""))
        file.writeframes(bytes(64))
    with pytest.raises(ClipError, match=r"\bno audio\b"):
        read_audio(path, 16_000)
