"""Calibration: the rank of an interval, its coverage on new data, and the recovery of a known temperature."""

import numpy as np
import pytest

from qamoe.models.calibration import TEMPERATURES, fit_conformal, fit_temperature, tempered


def test_the_rank_counts_one_more_residual() -> None:
    """Ten scores 1..10: ceil(11 * level) gives the 6th, 9th, 10th, and 11th, which is limited to the 10th."""
    residual = np.array([9, -1, 2, -3, 4, 8, -7, 6, 5.0, -10])
    assert fit_conformal(residual, np.ones(10)) == {"0.5": 6, "0.8": 9, "0.9": 10, "0.95": 10}


def test_residuals_are_measured_in_sigmas() -> None:
    sigmas = fit_conformal(np.array([2.0, -4.0, 6.0]), np.array([2.0, 2.0, 2.0]))
    assert sigmas == {"0.5": 2, "0.8": 3, "0.9": 3, "0.95": 3}


def test_one_residual_is_enough() -> None:
    assert set(fit_conformal(np.array([0.5]), np.array([0.25])).values()) == {2.0}


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_intervals_cover_new_data_for_a_wrong_scale_of_sigma(scale: float) -> None:
    draws = np.random.default_rng(0)
    sigma = draws.uniform(0.5, 2, 4000)
    sigmas = fit_conformal(draws.normal(0, sigma * scale), sigma)
    new = draws.uniform(0.5, 2, 20_000)
    residual = draws.normal(0, new * scale)
    for level, reach in sigmas.items():
        assert (np.abs(residual) <= reach * new).mean() == pytest.approx(float(level), abs=0.025)


def test_the_temperature_undoes_scaled_logits() -> None:
    """Labels are drawn from the softmax of some logits; the model predicts three times those logits."""
    draws = np.random.default_rng(1)
    logits = draws.normal(0, 1.5, (6000, 4))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (chances.cumsum(1) > draws.uniform(size=(6000, 1))).argmax(1)
    assert fit_temperature(3 * logits, target) == pytest.approx(3, rel=0.06)
    assert fit_temperature(logits, target) == pytest.approx(1, rel=0.06)
    assert fit_temperature(np.log(chances), target) == pytest.approx(fit_temperature(logits, target), rel=1e-4)


def test_the_temperature_of_two_classes() -> None:
    """Three of four are correct at a logit of 1: the best probability is 3/4, so 1 / temperature is log 3."""
    logits = np.array([[1.0, 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(1 / np.log(3), rel=1e-4)


def test_the_temperature_of_separable_data_stays_in_bounds() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert TEMPERATURES[0] <= fit_temperature(logits, np.array([0, 1])) < 0.06
    assert TEMPERATURES[1] >= fit_temperature(logits, np.array([1, 0])) > 19


def test_tempered_probabilities_are_the_softmax_of_divided_logits() -> None:
    logits = np.array([[2.0, 0.0, -1.0]])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    divided = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum()
    assert tempered(probabilities, 2.5) == pytest.approx(divided)
    assert tempered(probabilities, 1.0) is probabilities
    assert tempered(np.array([[1.0, 0.0]]), 2.0).sum() == pytest.approx(1)
