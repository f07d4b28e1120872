"""Audio features: openSMILE's eGeMAPSv02 low-level descriptors (Eyben et al., 2016, doi:10.1109/TAFFC.2015.2457417).

openSMILE's licence is for research. Audio is resampled to 22.05 kHz first: at 16 kHz openSMILE misses most voiced
frames of real clips, at 44.1 kHz it finds too many.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.extractors.frame_averaging import average_hops
from qamoe.extractors.level import levelled
from qamoe.media.decode import read_audio

NAME = "egemaps"
VERSION = "2"
SAMPLE_RATE = 22_050  # Hz
HOP_RATE = 100  # Hz, openSMILE's own
COLUMNS = (
    "Loudness_sma3",
    "alphaRatio_sma3",
    "hammarbergIndex_sma3",
    "slope0-500_sma3",
    "slope500-1500_sma3",
    "spectralFlux_sma3",
    "mfcc1_sma3",
    "mfcc2_sma3",
    "mfcc3_sma3",
    "mfcc4_sma3",
    "F0semitoneFrom27.5Hz_sma3nz",
    "jitterLocal_sma3nz",
    "shimmerLocaldB_sma3nz",
    "HNRdBACF_sma3nz",
    "logRelF0-H1-H2_sma3nz",
    "logRelF0-H1-A3_sma3nz",
    "F1frequency_sma3nz",
    "F1bandwidth_sma3nz",
    "F1amplitudeLogRelF0_sma3nz",
    "F2frequency_sma3nz",
    "F2bandwidth_sma3nz",
    "F2amplitudeLogRelF0_sma3nz",
    "F3frequency_sma3nz",
    "F3bandwidth_sma3nz",
    "F3amplitudeLogRelF0_sma3nz",
)


@cache
def _plain_path(folder: str) -> str:
    """Return a path of the folder with plain ASCII characters only; openSMILE takes no others.

    Where an installation has others, it is a name that Linux gives to a folder which this process keeps open.
    """
    if re.fullmatch(r"[\w./+-]+", folder, re.ASCII):
        return folder
    return f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}"


@cache
def _smile() -> Any:
    import opensmile

    class Smile(opensmile.Smile):
        __module__ = "opensmile"  # where its base class looks for a version

        @property
        def default_config_root(self) -> str:
            return _plain_path(super().default_config_root)

    return Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
    )


class Egemaps:
    """Extract 25 descriptors at `rate` Hz, each the mean over the 10 ms hops in the frame.

    Columns that only a voiced hop has (pitch, jitter, ...) are zero in an unvoiced one. A clip may lack a voice.
    """

    name = NAME
    version = VERSION
    columns: tuple[str, ...] = COLUMNS
    made_with = ""

    def __init__(self, rate: float) -> None:
        if not 0 < rate <= HOP_RATE:
            raise ValueError(f"rate is {rate}, must be above 0 and at most {HOP_RATE} Hz")
        self.rate = rate

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        self.describe(np.full(SAMPLE_RATE, 0.1, np.float32))

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Read a span of a file -> (T, 25) float32 without NaN. Raises ClipError for a span without speech."""
        return self.describe(levelled(read_audio(path, SAMPLE_RATE, start_s, end_s), SAMPLE_RATE))

    def describe(self, wave: np.ndarray) -> np.ndarray:
        """Describe audio (N,) at 22.05 kHz -> (T, 25) float32."""
        table = _smile().process_signal(wave.clip(-1, 1), SAMPLE_RATE)  # it would wrap beyond
        if tuple(table.columns) != COLUMNS:
            raise RuntimeError(f"openSMILE returned the columns {list(table.columns)}, expected {list(COLUMNS)}")
        hops = np.nan_to_num(table.to_numpy(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return average_hops(hops, HOP_RATE, self.rate)
