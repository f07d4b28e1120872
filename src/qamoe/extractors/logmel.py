"""Audio features: log-mel bands and energy, computed with torch alone (openSMILE's licence is for research).

Audio is resampled to 16 kHz. Every 10 ms, a Hann window of 25 ms gives a power spectrum of 512 points. Triangular
filters, evenly spaced on the mel scale 2595 log10(1 + f / 700) (O'Shaughnessy, 1987) from 20 Hz to 8 kHz, sum it up.
A band is the natural logarithm of its power, with a floor of 1e-10.
"""

from pathlib import Path

import numpy as np

from qamoe.extractors.frame_averaging import average_hops
from qamoe.extractors.level import levelled
from qamoe.media.decode import read_audio

NAME = "logmel"
VERSION = "2"
SAMPLE_RATE = 16_000  # Hz
HOP_RATE = 100  # Hz
WINDOW = 400  # samples, 25 ms
POINTS = 512  # size of the Fourier transform
LOWEST, HIGHEST = 20.0, 8_000.0  # Hz
FLOOR = 1e-10


class LogMel:
    """Extract `bands` log-mel bands and the log mean power of the window at `rate` Hz: means over the 10 ms hops."""

    name = NAME
    version = VERSION

    def __init__(self, rate: float, bands: int = 40) -> None:
        self.rate = rate
        self.columns = (*(f"mel_{band:02d}" for band in range(bands)), "log_energy")
        self.made_with = f"{bands} bands"
        self._filters = filters(bands)

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        self.describe(np.full(SAMPLE_RATE, 0.1, np.float32))

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Read a span of a file -> (T, bands + 1) float32. Raises ClipError for a span without speech."""
        return self.describe(levelled(read_audio(path, SAMPLE_RATE, start_s, end_s), SAMPLE_RATE))

    def describe(self, wave: np.ndarray) -> np.ndarray:
        """Describe audio (N,) at 16 kHz -> (T, bands + 1) float32 without NaN."""
        import torch

        # Threads may change the order of a sum; in float64 the difference does not reach the stored float32.
        windows = torch.from_numpy(wave.astype(np.float64)).unfold(0, WINDOW, SAMPLE_RATE // HOP_RATE)
        shaped = windows * torch.hann_window(WINDOW, dtype=torch.float64)
        power = torch.fft.rfft(shaped, n=POINTS).abs() ** 2
        bands = power @ torch.from_numpy(self._filters)
        hops = torch.cat([bands, (windows**2).mean(1, keepdim=True)], 1).clamp(min=FLOOR).log()
        return average_hops(hops.numpy(), HOP_RATE, self.rate)


def filters(bands: int) -> np.ndarray:
    """Return triangular filters (POINTS / 2 + 1, bands) float64, 1 at the centre and 0 at the neighbours' centres."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, POINTS // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))
