"""The eGeMAPS audio extractor: its frames, its columns, and the audio that it rejects."""

import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from qamoe.extractors import egemaps
from qamoe.extractors.egemaps import COLUMNS, SAMPLE_RATE, Egemaps
from qamoe.media.decode import ClipError, NoStream
from tests.extractors.test_level import spoken
from tests.fixtures.research_data import shared_data

pytestmark = pytest.mark.integration  # runs openSMILE

real_clips = shared_data() / "clips" / "cremad"
needs_real_clips = pytest.mark.skipif(not real_clips.is_dir(), reason=f"{real_clips} does not exist")
PITCH, LOUDNESS = COLUMNS.index("F0semitoneFrom27.5Hz_sma3nz"), COLUMNS.index("Loudness_sma3")


def hum(seconds: float, pitch: float = 150.0, amplitude: float = 0.2) -> np.ndarray:
    """Return a voice-like buzz: ten harmonics of decreasing amplitude."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 11))
    return (amplitude * buzz / np.abs(buzz).max()).astype(np.float32)


def save(path: Path, audio: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((audio * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("rate", [20.0, 10.0, 100.0, 12.5])
def test_frames_have_the_requested_rate(rate: float) -> None:
    frames = Egemaps(rate).describe(hum(2.0))
    assert frames.shape[1] == len(COLUMNS) == 25
    assert frames.dtype == np.float32
    # openSMILE's windows do not reach beyond the end, so the last hops are missing.
    assert 2.0 * rate - 0.1 * rate - 1 <= len(frames) <= 2.0 * rate


def test_a_frame_is_the_mean_of_its_hops() -> None:
    audio = hum(1.0, 140) + hum(1.0, 231, 0.05)
    hops = Egemaps(100).describe(audio)
    frames = Egemaps(20).describe(audio)
    for k in (0, 7, 18):
        np.testing.assert_allclose(frames[k], hops[5 * k : 5 * k + 5].mean(0), rtol=1e-4, atol=1e-4)


def test_pitch_and_loudness_follow_the_voice() -> None:
    low, high = (Egemaps(20).describe(hum(1.0, pitch))[5:-5, PITCH].mean() for pitch in (110, 220))
    assert high - low == pytest.approx(12, abs=0.5)  # semitones: an octave
    quiet, loud = (Egemaps(20).describe(hum(1.0, 150, a))[5:-5, LOUDNESS].mean() for a in (0.05, 0.4))
    assert loud > 1.5 * quiet


def test_a_jump_in_loudness_is_at_its_time() -> None:
    frames = Egemaps(20).describe(np.concatenate([hum(1.0, amplitude=0.02), hum(1.0, amplitude=0.4)]))
    jump = int(np.argmax(np.diff(frames[:, LOUDNESS])))
    assert abs(jump - 19) <= 1


def test_silence_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="silence"):
        Egemaps(20).extract(save(tmp_path / "silent.wav", np.full(SAMPLE_RATE, 1e-5)))


def test_audio_without_a_voice_is_valid() -> None:
    hiss = np.random.default_rng(1).normal(0, 0.02, SAMPLE_RATE).astype(np.float32)
    frames = Egemaps(20).describe(hiss)
    assert np.isfinite(frames).all()
    assert (frames[:, PITCH] == 0).mean() > 0.8


def test_a_loud_sample_is_limited_and_does_not_wrap() -> None:
    audio = hum(1.0, amplitude=0.9)
    limited = Egemaps(20).describe(np.clip(2 * audio, -1, 1))
    np.testing.assert_array_equal(Egemaps(20).describe(2 * audio), limited)


def test_repeated_extraction_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "voice.wav", spoken(1.5, SAMPLE_RATE))
    once = Egemaps(20).extract(path)
    assert Egemaps(20).extract(path).tobytes() == once.tobytes()
    assert len(Egemaps(20).extract(path, 0.5, 1.0)) == pytest.approx(10, abs=2)


def test_a_file_without_audio_is_not_a_problem(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(NoStream):
        Egemaps(20).extract(tmp_path / "mute.mp4")


@pytest.mark.parametrize("rate", [0, -1, 101])
def test_a_rate_out_of_range_is_rejected(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"rate is {rate}\b.*100 Hz"):
        Egemaps(rate)


@pytest.mark.real_data
@needs_real_clips
def test_real_voices_have_voiced_frames() -> None:
    for path in sorted(real_clips.iterdir()):
        frames = Egemaps(20).extract(path)
        assert np.isfinite(frames).all()
        assert 0.4 < (frames[:, PITCH] > 0).mean() < 0.95


@pytest.mark.parametrize("name", ["my dir é'", "a b", "{x}; y", "\N{CJK UNIFIED IDEOGRAPH-4E2D}"])
def test_an_installation_below_any_folder_gives_the_same_values(tmp_path: Path, name: str) -> None:
    import opensmile

    installed = Path(opensmile.__file__).parent
    shutil.copytree(installed, tmp_path / name / "opensmile", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import numpy as np, opensmile, sys; from qamoe.extractors.egemaps import Egemaps;"
        f"assert opensmile.__file__.startswith({str(tmp_path / name)!r});"
        f"np.save({str(tmp_path / 'values.npy')!r}, Egemaps(rate=20).describe(np.load({str(tmp_path / 'wave.npy')!r})))"
    )
    buzz = hum(1.0)
    np.save(tmp_path / "wave.npy", buzz)
    path = f"{tmp_path / name}{os.pathsep}{Path(egemaps.__file__).parents[2]}"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, check=True)
    assert np.array_equal(np.load(tmp_path / "values.npy"), Egemaps(rate=20).describe(buzz))
