"""Metrics against cases worked out by hand, where the field's own code goes wrong or differs."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from qamoe.evaluation.metrics import correlation, of_predictions, regression, uncertainty


def measured(prediction: list[float], target: list[float]) -> dict[str, float]:
    return regression(np.array(prediction, np.float32), np.array(target, np.float64))


@pytest.mark.parametrize(
    ("value", "whole"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (0.51, 1), (3.7, 3), (-9, -3)]
)
def test_seven_classes_round_half_to_even_after_clipping(value: float, whole: float) -> None:
    assert measured([value], [whole])["acc7"] == 1
    others = [c for c in range(-3, 4) if c != whole]
    assert measured([value] * 6, others)["acc7"] == 0


def test_targets_are_rounded_and_clipped_alike() -> None:
    assert measured([2.0, 0.0, 3.0], [2.5, 0.5, 3.4])["acc7"] == 1
    assert measured([2.0, -2.0, 1.0], [2.8, -3.0, 0.6])["acc5"] == 1
    assert measured([1.6, 1.4], [3.0, 3.0])["acc5"] == 0.5


def test_zero_is_positive_in_has0_and_left_out_in_non0() -> None:
    found = measured([-0.1, 0.0, 0.2, -1.0, 0.0], [0.0, 0.0, 1.0, -1.0, -2.0])
    assert found["acc2_has0"] == pytest.approx(3 / 5)  # >= 0 against >= 0, on all
    assert found["acc2_non0"] == 1.0  # targets 1, -1, -2 against > 0: a prediction of 0 is negative


def test_f1_is_weighted_by_the_classes_of_the_target() -> None:
    """Swapped arguments, as in older papers, give another number on this case."""
    prediction, target = np.array([1, 1, 1, 1, 1, 1, -1, -1.0]), np.array([1, 1, -1, -1, -1, -1, -1, 1.0])
    truth, guess = target > 0, prediction > 0
    expected = f1_score(truth, guess, average="weighted")
    assert f1_score(guess, truth, average="weighted") != pytest.approx(expected, abs=0.05)
    found = regression(prediction, target)
    assert found["f1_non0"] == pytest.approx(expected)
    assert found["f1_has0"] == pytest.approx(expected)
    # By hand: negative 2*1/(2+5), positive 2*2/(6+3), of 8 targets 5 negative and 3 positive.
    assert expected == pytest.approx(5 / 8 * 2 / 7 + 3 / 8 * 4 / 9)


@pytest.mark.parametrize("seed", range(5))
def test_f1_and_balanced_accuracy_are_sklearns(seed: int) -> None:
    draws = np.random.default_rng(seed)
    target = np.round(draws.normal(0.5, 1, 60), 0)
    prediction = np.round(target + draws.normal(0, 2, 60), 1)
    found = regression(prediction, target)
    some = target != 0
    has0, non0 = (target >= 0, prediction >= 0), (target[some] > 0, prediction[some] > 0)
    assert found["f1_has0"] == pytest.approx(f1_score(*has0, average="weighted"))
    assert found["f1_non0"] == pytest.approx(f1_score(*non0, average="weighted"))
    assert found["balanced_acc2"] == pytest.approx(balanced_accuracy_score(*non0))


def test_one_class_alone_is_measured_without_a_warning() -> None:
    found = measured([1.0, 2.0, -1.0], [1.0, 2.0, 3.0])
    assert found["acc2_non0"] == pytest.approx(2 / 3)
    assert found["balanced_acc2"] == pytest.approx(2 / 3)
    assert found["f1_non0"] == pytest.approx(0.8)


def test_without_a_target_other_than_zero_non0_has_no_value() -> None:
    found = measured([0.1, -0.1], [0.0, 0.0])
    assert np.isnan([found["acc2_non0"], found["f1_non0"], found["balanced_acc2"]]).all()
    assert found["acc2_has0"] == 0.5


@pytest.mark.parametrize("constant", [0.0, 0.1, -2.7, 1234.5])
def test_a_constant_prediction_has_correlation_0_and_says_so(constant: float) -> None:
    found = measured([constant] * 4, [1.0, -1.0, 2.0, 0.0])
    assert (found["corr"], found["corr_undefined"]) == (0.0, 1.0)


def test_a_constant_prediction_stays_one_through_float_rounding() -> None:
    prediction = np.full(1000, 0.1, np.float32)
    prediction[::2] = np.nextafter(prediction[0], np.float32(1))
    assert correlation(prediction, np.arange(1000.0)) == (0.0, True)


def test_correlation_is_pearsons() -> None:
    found = measured([1.0, 2.0, 4.0], [2.0, 1.0, 3.0])
    assert found["corr"] == pytest.approx(2 / np.sqrt(14 / 3 * 2))  # covariance 2, squares 14/3 and 2
    assert found["corr_undefined"] == 0.0
    assert correlation(np.array([1.0]), np.array([2.0])) == (0.0, True)
    assert correlation(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == (0.0, True)


def test_the_error_is_of_predictions_that_are_not_clipped() -> None:
    found = measured([5.0, -4.0, 1.0], [3.0, -3.0, 1.0])
    assert found["mae"] == pytest.approx(1.0)
    assert found["mean_error"] == pytest.approx(1 / 3)


def test_uncertainty_by_hand() -> None:
    prediction, target = np.array([0.0, 0.0, 0.0, 0.0]), np.array([0.5, -1.0, 2.1, 3.0])
    variance = np.array([1.0, 1.0, 4.0, 1.0])
    found = uncertainty(prediction, variance, target, {"0.5": 1.0, "0.95": 2.0})
    nll = 0.5 * (4 * np.log(2 * np.pi) + np.log(4) + 0.25 + 1.0 + 2.1**2 / 4 + 9.0) / 4
    assert found["nll"] == pytest.approx(nll)
    assert found["coverage_50"] == 0.5  # 0.5 and 1.0 within one sigma; 2.1 is not within 2
    assert found["coverage_95"] == 0.75
    assert found["width_50"] == pytest.approx((2 + 2 + 4 + 2) / 4)
    assert found["width_95"] == pytest.approx((4 + 4 + 8 + 4) / 4)
    assert set(found) == {"nll", "coverage_50", "coverage_95", "width_50", "width_95"}


def test_rows_of_predictions_give_all_metrics() -> None:
    rows = pd.DataFrame({"prediction": [1.0, -1.0], "variance": [1.0, 1.0], "target": [1.0, -2.0]})
    found = of_predictions(rows, {"0.9": 1.0})
    assert found["mae"] == 0.5
    assert found["coverage_90"] == 1.0
    assert {"acc7", "acc5", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0", "corr", "nll", "width_90"} <= set(found)
