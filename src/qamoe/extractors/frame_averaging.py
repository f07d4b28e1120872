"""What the extractors of sound share: what counts as sound, and from the hops of a fine analysis to frames."""

import numpy as np

from qamoe.media.decode import ClipError

SILENCE = 1e-4  # peak amplitude, -80 dB of full scale


def heard(wave: np.ndarray) -> np.ndarray:
    """Sound (N,) without NaN and infinity. Raises ClipError where there is nothing to hear."""
    wave = np.nan_to_num(wave, nan=0.0, posinf=1.0, neginf=-1.0)
    if np.abs(wave).max(initial=0.0) < SILENCE:
        raise ClipError("silence")
    return wave


def averaged(hops: np.ndarray, hop_rate: float, rate: float) -> np.ndarray:
    """(H, D) at `hop_rate` Hz -> (T, D) float32 at `rate` Hz, each the mean over the hops that fall into the frame.

    `rate` is at most `hop_rate`, so that no frame is without a hop.
    """
    # The small addend keeps a hop at a frame's very beginning from rounding into the frame before.
    frame = np.floor(np.arange(len(hops)) * rate / hop_rate + 1e-9).astype(np.int64)
    first = np.flatnonzero(np.diff(frame, prepend=-1))
    return (np.add.reduceat(hops, first) / np.diff(first, append=len(hops))[:, None]).astype(np.float32)
