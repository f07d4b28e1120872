"""Split-conformal intervals: the rank by hand, and the coverage it promises on data it has not seen."""

import numpy as np
import pytest

from qamoe.evaluation.calibration import fit_conformal


def test_the_rank_is_that_of_one_more_residual() -> None:
    """Ten scores 1..10: ceil(11 * level) gives the 6th, 9th, 10th, and the 11th, of which there are ten."""
    residual = np.array([9, -1, 2, -3, 4, 8, -7, 6, 5.0, -10])
    assert fit_conformal(residual, np.ones(10)) == {"0.5": 6, "0.8": 9, "0.9": 10, "0.95": 10}


def test_residuals_count_in_sigmas() -> None:
    found = fit_conformal(np.array([2.0, -4.0, 6.0]), np.array([2.0, 2.0, 2.0]))
    assert found == {"0.5": 2, "0.8": 3, "0.9": 3, "0.95": 3}


def test_one_residual_is_enough() -> None:
    assert set(fit_conformal(np.array([0.5]), np.array([0.25])).values()) == {2.0}


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_intervals_hold_on_new_data_however_wrong_sigma_is(scale: float) -> None:
    draws = np.random.default_rng(0)
    sigma = draws.uniform(0.5, 2, 4000)
    found = fit_conformal(draws.normal(0, sigma * scale), sigma)
    new = draws.uniform(0.5, 2, 20_000)
    residual = draws.normal(0, new * scale)
    for level, reach in found.items():
        assert (np.abs(residual) <= reach * new).mean() == pytest.approx(float(level), abs=0.025)
