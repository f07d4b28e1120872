"""AUROC: how well one number separates two groups."""

import numpy as np


def probability_above(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability that a positive is above a negative, a tie counting half (Mann and Whitney)."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return float((ranks - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))
