"""The log-mel audio extractor: bands follow the pitch, energy follows the loudness, and results repeat."""

from pathlib import Path

import numpy as np
import pytest

from qamoe.extractors.logmel import SAMPLE_RATE, LogMel, filters
from tests.media.test_decode import write_media


def tone(hertz: float, seconds: float = 1.0, amplitude: float = 0.2) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.mark.parametrize("rate", [20.0, 100.0, 12.5])
def test_frames_have_the_requested_rate(rate: float) -> None:
    frames = LogMel(rate, 24).describe(tone(440, 2.0))
    assert frames.shape[1] == len(LogMel(rate, 24).columns) == 25
    assert frames.dtype == np.float32
    assert 2 * rate - 2 <= len(frames) <= 2 * rate + 1


def test_a_tone_is_loudest_in_the_band_around_it() -> None:
    centres = filters(40).argmax(0) * SAMPLE_RATE / 512
    for hertz in (300.0, 1000.0, 4000.0):
        loudest = int(LogMel(20).describe(tone(hertz))[:, :-1].mean(0).argmax())
        assert abs(int(np.abs(centres - hertz).argmin()) - loudest) <= 1


def test_energy_is_the_logarithm_of_the_mean_power() -> None:
    frames = LogMel(20).describe(tone(1000, amplitude=0.2))
    np.testing.assert_allclose(frames[:, -1], np.log(0.2**2 / 2), atol=0.01)
    quieter = LogMel(20).describe(tone(1000, amplitude=0.02))
    np.testing.assert_allclose(frames[:, -1] - quieter[:, -1], np.log(100), atol=0.01)


@pytest.mark.parametrize("bands", [8, 40, 80])
def test_no_filter_is_empty_and_neighbours_sum_to_at_most_one(bands: int) -> None:
    bank = filters(bands)
    assert (bank.max(0) > 0).all()
    inner = bank[(bank > 0).argmax(0)[1] : bank.shape[0] - (bank[::-1] > 0).argmax(0)[-2]]
    assert inner.sum(1).max() <= 1 + 1e-9


def test_repeated_extraction_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.mp4")
    once = LogMel(20).extract(path, 0.2, 1.4)
    assert LogMel(20).extract(path, 0.2, 1.4).tobytes() == once.tobytes()
