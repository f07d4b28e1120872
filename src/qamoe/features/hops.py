"""From the hops of a fine analysis to frames at the rate that was asked for."""

import numpy as np


def averaged(hops: np.ndarray, hop_rate: float, rate: float) -> np.ndarray:
    """(H, D) at `hop_rate` Hz -> (T, D) float32 at `rate` Hz, each the mean over the hops that fall into the frame.

    `rate` is at most `hop_rate`, so that no frame is without a hop.
    """
    # The small addend keeps a hop at a frame's very beginning from rounding into the frame before.
    frame = np.floor(np.arange(len(hops)) * rate / hop_rate + 1e-9).astype(np.int64)
    first = np.flatnonzero(np.diff(frame, prepend=-1))
    return (np.add.reduceat(hops, first) / np.diff(first, append=len(hops))[:, None]).astype(np.float32)
