"""Split-conformal intervals: how many sigmas an interval needs, learnt on validation residuals."""

import math

import numpy as np

LEVELS = (0.5, 0.8, 0.9, 0.95)


def fit_conformal(residual: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    """Residuals and sigmas (N,) -> sigmas an interval of each level reaches out (Papadopoulos et al. 2002).

    The finite-sample rank is ceil((N + 1) level), at most N.
    """
    scores = np.sort(np.abs(residual) / sigma)
    ranks = {level: min(len(scores), math.ceil((len(scores) + 1) * level)) for level in LEVELS}
    return {f"{level:g}": float(scores[rank - 1]) for level, rank in ranks.items()}
