"""Average the hops of a fine analysis of audio into frames."""

import numpy as np


def average_hops(hops: np.ndarray, hop_rate: float, rate: float) -> np.ndarray:
    """Average hops (H, D) at `hop_rate` Hz to frames (T, D) float32 at `rate` Hz.

    `rate` must be at most `hop_rate`, so that every frame has a hop.
    """
    # Without the small addend, a hop at the very beginning of a frame could round into the frame before.
    frame = np.floor(np.arange(len(hops)) * rate / hop_rate + 1e-9).astype(np.int64)
    first = np.flatnonzero(np.diff(frame, prepend=-1))
    return (np.add.reduceat(hops, first) / np.diff(first, append=len(hops))[:, None]).astype(np.float32)
