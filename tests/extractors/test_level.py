"""The level of audio: the gain of a recording does not matter, and sound without speech is never made louder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from qamoe.extractors.egemaps import Egemaps
from qamoe.extractors.level import LEVEL, STEADY_DB, _band_powers, levelled, swing_db
from qamoe.extractors.logmel import LogMel
from qamoe.media.decode import ClipError
from tests.fixtures.research_data import shared_data

RATE = 16_000
COLOURS = {"white": 0.0, "pink": -0.5, "brown": -1.0, "blue": 0.5}  # exponent of the frequency in the amplitude
real_voices = shared_data() / "ravdess"


def spoken(seconds: float, rate: int = RATE, amplitude: float = 0.2) -> np.ndarray:
    """Return syllables of a buzz: four a second, with harmonics of 220 Hz and pauses between them."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 220 * k * time) / k for k in range(1, 11))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, None)
    return (amplitude * buzz * syllables / np.abs(buzz).max()).astype(np.float32)


def hiss(seconds: float, colour: str = "white", rms: float = 0.001, seed: int = 1) -> np.ndarray:
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    spectrum *= np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20) ** COLOURS[colour]
    noise = np.fft.irfft(spectrum, count)
    return (rms * noise / np.sqrt((noise**2).mean())).astype(np.float32)


def as_16_bits(audio: Any) -> np.ndarray:
    return (np.rint(audio * 32768) / 32768).astype(np.float32)


def save(path: Path, audio: np.ndarray) -> Path:
    """Write a file of floating-point samples, which hold values beyond full scale too."""
    wavfile.write(path, RATE, audio)
    return path


@pytest.mark.parametrize("decibels", [-30, -12, 12])
def test_a_gain_does_not_change_the_result(decibels: float) -> None:
    audio = spoken(2.0) + hiss(2.0)
    changed = levelled(audio * np.float32(10 ** (decibels / 20)), RATE)
    np.testing.assert_allclose(changed, levelled(audio, RATE), atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_speech_gets_its_level_at_any_rate_and_in_any_pauses(rate: int) -> None:
    quiet = np.zeros(2 * rate, np.float32)
    for audio in (spoken(2.0, rate), np.concatenate([quiet, spoken(2.0, rate), quiet])):
        result = levelled(audio, rate)
        syllables = result[np.abs(result) > 0]
        assert result.dtype == np.float32
        assert np.sqrt((syllables**2).mean()) == pytest.approx(LEVEL, rel=0.25)


def test_rumble_below_the_voice_does_not_make_the_voice_quieter() -> None:
    voice, time = spoken(2.0), np.arange(2 * RATE) / RATE
    rumble = (0.3 * np.sin(2 * np.pi * 40 * time)).astype(np.float32)
    gains = [float(levelled(audio, RATE) @ voice) / float(voice @ voice) for audio in (voice, voice + rumble)]
    assert gains[1] == pytest.approx(gains[0], rel=0.05)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("seconds", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("rms", [0.1, 0.001, 0.0003])
def test_steady_noise_is_no_speech_at_any_level(colour: str, seconds: float, rms: float) -> None:
    for seed in range(3):
        with pytest.raises(ClipError, match="no speech"):
            levelled(as_16_bits(hiss(seconds, colour, rms, seed)), RATE)


@pytest.mark.parametrize("hertz", [47.0, 50.0, 60.3, 433.0, 1001.7])
def test_a_steady_tone_is_no_speech(hertz: float) -> None:
    time = np.arange(3 * RATE) / RATE
    mains = sum(np.sin(2 * np.pi * k * hertz * time + k * k) / k for k in range(1, 8))
    for audio in (0.1 * np.sin(2 * np.pi * hertz * time), 0.03 * mains, 0.03 * mains + hiss(3.0)):
        with pytest.raises(ClipError, match="no speech"):
            levelled(as_16_bits(audio), RATE)


@pytest.mark.parametrize("colour", ["white", "pink", "brown"])
def test_speech_as_loud_as_the_noise_is_speech(colour: str) -> None:
    voice = spoken(3.0)
    level = float(np.sqrt((voice**2).mean()))
    for seed in range(5):
        assert len(levelled(voice + hiss(3.0, colour, level, seed), RATE))


def test_one_word_in_a_minute_is_speech_and_one_click_is_not() -> None:
    audio = hiss(60.0)
    audio[30 * RATE : 30 * RATE + 5] = 0.5
    with pytest.raises(ClipError, match="no speech"):
        levelled(audio, RATE)
    audio[40 * RATE : 40 * RATE + RATE // 2] += spoken(0.5)
    assert len(levelled(audio, RATE)) == 60 * RATE


def test_silence_is_a_problem_and_broken_samples_leave_no_nan() -> None:
    for audio in (np.zeros(RATE, np.float32), np.full(RATE, 1e-5, np.float32), np.zeros(0, np.float32)):
        with pytest.raises(ClipError, match="silence"):
            levelled(audio, RATE)
    broken = spoken(1.0)
    broken[5000:5100], broken[6000] = np.nan, np.inf
    assert np.isfinite(levelled(broken, RATE)).all()


def test_too_short_audio_is_a_problem() -> None:
    with pytest.raises(ClipError, match=r"\b0\.05 s.*\b0\.1 s"):
        levelled(spoken(0.05), RATE)


def test_the_powers_do_not_depend_on_how_many_windows_are_transformed_together(monkeypatch) -> None:
    audio = spoken(2.0)
    whole = _band_powers(audio, RATE)
    monkeypatch.setattr("qamoe.extractors.level._BATCH", 7)
    np.testing.assert_array_equal(_band_powers(audio, RATE), whole)
    assert whole[:, 0].mean() == pytest.approx((audio**2).mean(), rel=0.1)


@pytest.mark.integration  # runs openSMILE
@pytest.mark.parametrize("made_by", [Egemaps(20), LogMel(20)], ids=lambda made_by: made_by.name)
def test_features_do_not_depend_on_the_gain(made_by: Egemaps | LogMel, tmp_path: Path) -> None:
    voice = spoken(2.0) + hiss(2.0)
    frames = [
        made_by.extract(save(tmp_path / f"{decibels}.wav", voice * np.float32(10 ** (decibels / 20))))
        for decibels in (0, -12, 12)
    ]
    spread = frames[0].std(0).mean()
    for changed in frames[1:]:
        assert np.abs(changed - frames[0]).mean() < 0.002 * spread


@pytest.mark.real_data
@pytest.mark.skipif(not real_voices.is_dir(), reason=f"{real_voices} does not exist")
def test_real_voices_are_speech_at_any_gain() -> None:
    from qamoe.media.decode import read_audio

    for path in sorted(real_voices.iterdir())[::9]:
        audio = read_audio(path, RATE)
        for decibels in (-12, 0, 12):
            assert swing_db(_band_powers(audio * 10 ** (decibels / 20), RATE)) > 2 * STEADY_DB, path.name
