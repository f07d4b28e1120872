"""Metrics on worked examples, in particular where published code is wrong or differs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

from qamoe.evaluation.metrics import (
    classification,
    correlation,
    lower_is_better,
    of_predictions,
    regression,
    risk_coverage,
    uncertainty,
)


def measured(prediction: Sequence[float], target: Sequence[float]) -> dict[str, float]:
    return regression(np.array(prediction, np.float32), np.array(target, np.float64))


@pytest.mark.parametrize(
    ("value", "whole"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (0.51, 1), (3.7, 3), (-9, -3)]
)
def test_seven_classes_round_half_to_even_after_clipping(value: float, whole: float) -> None:
    assert measured([value], [whole])["acc7"] == 1
    others = [c for c in range(-3, 4) if c != whole]
    assert measured([value] * 6, others)["acc7"] == 0


def test_targets_are_rounded_and_clipped_like_predictions() -> None:
    assert measured([2.0, 0.0, 3.0], [2.5, 0.5, 3.4])["acc7"] == 1
    assert measured([2.0, -2.0, 1.0], [2.8, -3.0, 0.6])["acc5"] == 1
    assert measured([1.6, 1.4], [3.0, 3.0])["acc5"] == 0.5


def test_zero_is_positive_in_has0_and_left_out_in_non0() -> None:
    values = measured([-0.1, 0.0, 0.2, -1.0, 0.0], [0.0, 0.0, 1.0, -1.0, -2.0])
    assert values["acc2_has0"] == pytest.approx(3 / 5)  # >= 0 against >= 0, on all
    assert values["acc2_non0"] == 1.0  # targets 1, -1, -2 against > 0: a prediction of 0 is negative


def test_f1_is_weighted_by_the_classes_of_the_target() -> None:
    """Swapped arguments, as in older papers, give another number on this case."""
    prediction, target = np.array([1, 1, 1, 1, 1, 1, -1, -1.0]), np.array([1, 1, -1, -1, -1, -1, -1, 1.0])
    truth, guess = target > 0, prediction > 0
    expected = f1_score(truth, guess, average="weighted")
    assert f1_score(guess, truth, average="weighted") != pytest.approx(expected, abs=0.05)
    values = regression(prediction, target)
    assert values["f1_non0"] == pytest.approx(expected)
    assert values["f1_has0"] == pytest.approx(expected)
    # Negative 2*1/(2+5), positive 2*2/(6+3), of 8 targets 5 negative and 3 positive.
    assert expected == pytest.approx(5 / 8 * 2 / 7 + 3 / 8 * 4 / 9)


@pytest.mark.parametrize("seed", range(5))
def test_f1_and_balanced_accuracy_are_sklearns(seed: int) -> None:
    draws = np.random.default_rng(seed)
    target = np.round(draws.normal(0.5, 1, 60), 0)
    prediction = np.round(target + draws.normal(0, 2, 60), 1)
    values = regression(prediction, target)
    some = target != 0
    has0, non0 = (target >= 0, prediction >= 0), (target[some] > 0, prediction[some] > 0)
    assert values["f1_has0"] == pytest.approx(f1_score(*has0, average="weighted"))
    assert values["f1_non0"] == pytest.approx(f1_score(*non0, average="weighted"))
    assert values["balanced_acc2"] == pytest.approx(balanced_accuracy_score(*non0))


def test_a_single_class_is_measured_without_a_warning() -> None:
    values = measured([1.0, 2.0, -1.0], [1.0, 2.0, 3.0])
    assert values["acc2_non0"] == pytest.approx(2 / 3)
    assert values["balanced_acc2"] == pytest.approx(2 / 3)
    assert values["f1_non0"] == pytest.approx(0.8)


def test_without_a_target_other_than_zero_non0_has_no_value() -> None:
    values = measured([0.1, -0.1], [0.0, 0.0])
    assert np.isnan([values["acc2_non0"], values["f1_non0"], values["balanced_acc2"]]).all()
    assert values["acc2_has0"] == 0.5


@pytest.mark.parametrize("constant", [0.0, 0.1, -2.7, 1234.5])
def test_a_constant_prediction_has_correlation_0_and_is_marked_undefined(constant: float) -> None:
    values = measured([constant] * 4, [1.0, -1.0, 2.0, 0.0])
    assert (values["corr"], values["corr_undefined"]) == (0.0, 1.0)


def test_a_prediction_that_is_constant_up_to_rounding_has_correlation_0() -> None:
    prediction = np.full(1000, 0.1, np.float32)
    prediction[::2] = np.nextafter(prediction[0], np.float32(1))
    assert correlation(prediction, np.arange(1000.0)) == (0.0, True)


def test_correlation_is_pearsons() -> None:
    values = measured([1.0, 2.0, 4.0], [2.0, 1.0, 3.0])
    assert values["corr"] == pytest.approx(2 / np.sqrt(14 / 3 * 2))  # covariance 2, squares 14/3 and 2
    assert values["corr_undefined"] == 0.0
    assert correlation(np.array([1.0]), np.array([2.0])) == (0.0, True)
    assert correlation(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == (0.0, True)


def test_the_error_uses_unclipped_predictions() -> None:
    values = measured([5.0, -4.0, 1.0], [3.0, -3.0, 1.0])
    assert values["mae"] == pytest.approx(1.0)
    assert values["mean_error"] == pytest.approx(1 / 3)


def test_uncertainty_of_an_example() -> None:
    prediction, target = np.array([0.0, 0.0, 0.0, 0.0]), np.array([0.5, -1.0, 2.1, 3.0])
    variance = np.array([1.0, 1.0, 4.0, 1.0])
    values = uncertainty(prediction, variance, target, {"0.5": 1.0, "0.95": 2.0})
    nll = 0.5 * (4 * np.log(2 * np.pi) + np.log(4) + 0.25 + 1.0 + 2.1**2 / 4 + 9.0) / 4
    assert values["nll"] == pytest.approx(nll)
    assert values["coverage_50"] == 0.5  # 0.5 and 1.0 within one sigma; 2.1 is not within 2
    assert values["coverage_95"] == 0.75
    assert values["width_50"] == pytest.approx((2 + 2 + 4 + 2) / 4)
    assert values["width_95"] == pytest.approx((4 + 4 + 8 + 4) / 4)
    rest = {"calibration_error", "risk_coverage"}
    assert set(values) == {"nll", "coverage_50", "coverage_95", "width_50", "width_95"} | rest


def test_rows_of_predictions_give_all_metrics() -> None:
    rows = pd.DataFrame({"prediction": [1.0, -1.0], "variance": [1.0, 1.0], "target": [1.0, -2.0]})
    values = of_predictions(rows, {"0.9": 1.0})
    assert values["mae"] == 0.5
    assert values["coverage_90"] == 1.0
    assert {"acc7", "acc5", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0", "corr", "nll", "width_90"} <= set(values)


SIMS = (-1.0, 1.0)


def test_labels_in_minus_one_to_one_have_the_accuracies_of_ch_sims() -> None:
    """A class includes its upper cut, and a label of .1 stays .1 although it was stored in single precision."""
    target = np.array([-1.0, -0.7, -0.6, -0.1, 0.0, 0.1, 0.2, 0.7, 0.8], np.float32).astype(np.float64)
    classes = {"acc5": [0, 0, 1, 1, 2, 2, 3, 3, 4], "acc3": [0, 0, 0, 0, 1, 1, 2, 2, 2], "acc2": [0] * 5 + [1] * 4}
    middles = {"acc5": [-0.9, -0.4, 0.05, 0.4, 0.9], "acc3": [-0.5, 0.05, 0.5], "acc2": [-0.5, 0.5]}
    for name, expected in classes.items():
        prediction = np.array([middles[name][c] for c in expected], np.float32)
        assert regression(prediction, target, SIMS)[f"{name}_sims"] == 1
        assert regression(-prediction, -target, SIMS)[f"{name}_sims"] < 1  # cuts are closed on one side only
    values = regression(np.array([0.0, 0.2, -0.3]), np.array([-0.4, 0.6, 0.0]), SIMS)
    assert values["acc2_sims"] == 1  # 0 is negative here, on both sides
    assert "acc7" not in values
    assert "acc2_has0" not in values


def test_ch_sims_also_has_the_error_of_clipped_values() -> None:
    values = regression(np.array([1.5, -3.0, 0.0, 0.5]), np.array([1.0, -1.0, 0.0, 0.0]), SIMS)
    assert values["mae"] == pytest.approx((0.5 + 2 + 0 + 0.5) / 4)
    assert values["mae_clipped"] == pytest.approx(0.5 / 4)
    expected = np.corrcoef([1, -1, 0, 0.5], [1, -1, 0, 0])[0, 1]
    assert values["corr_clipped"] == pytest.approx(expected)
    # Predicted positive: the first and fourth; true: the first. Negative F1 2*2/(2+3), positive 2*1/(2+1).
    assert values["f1_sims"] == pytest.approx(3 / 4 * 4 / 5 + 1 / 4 * 2 / 3)


def test_class_metrics_of_an_example() -> None:
    """Class 2 is never predicted, class 0 is predicted once too often."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]])
    values = classification(probabilities, np.array([0, 0, 1, 2]))
    assert values["accuracy"] == 0.75
    assert values["macro_recall"] == pytest.approx((1 + 1 + 0) / 3)
    assert values["macro_precision"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert values["macro_f1"] == pytest.approx((4 / 5 + 1 + 0) / 3)
    assert values["weighted_f1"] == pytest.approx((2 * 4 / 5 + 1 + 0) / 4)
    assert values["weighted_precision"] == pytest.approx((2 * 2 / 3 + 1 + 0) / 4)
    assert values["nll"] == pytest.approx(-np.log(0.7 * 0.6 * 0.8 * 0.4) / 4)
    # Bins of confidence (b, b+1]/15: .5 in the eighth, .6 in the ninth, .7 in the eleventh, .8 in the twelfth.
    assert values["calibration_error"] == pytest.approx((0.5 + 0.4 + 0.3 + 0.2) / 4)
    # Most confident first, .8, .7, .6, .5: risks 0 0 0 1.
    assert values["risk_coverage"] == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)


def test_gaps_of_one_bin_cancel_before_they_count() -> None:
    probabilities = np.array([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])
    assert classification(probabilities, np.array([0, 0, 0, 1]))["calibration_error"] == pytest.approx(0)
    assert classification(probabilities, np.array([1, 1, 1, 1]))["calibration_error"] == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(4))
def test_class_metrics_are_sklearns(seed: int) -> None:
    draws = np.random.default_rng(seed)
    probabilities, target = draws.dirichlet(np.ones(5), 40), draws.integers(0, 4, 40)
    values = classification(probabilities, target)
    predicted = probabilities.argmax(1)
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(target, predicted, average=average, zero_division=0)
        assert values[f"{average}_precision"] == pytest.approx(precision)
        assert values[f"{average}_f1"] == pytest.approx(f1)
        assert values["macro_recall" if average == "macro" else "accuracy"] == pytest.approx(recall)


def test_swapped_arguments_would_give_another_weighted_f1() -> None:
    target, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 1, 1])
    values = classification(np.eye(3)[predicted], target)["weighted_f1"]
    assert values == pytest.approx(f1_score(target, predicted, average="weighted", zero_division=0))
    assert values != pytest.approx(f1_score(predicted, target, average="weighted", zero_division=0), abs=0.05)


def test_a_certain_mistake_has_a_finite_nll() -> None:
    assert classification(np.array([[1.0, 0.0]]), np.array([1]))["nll"] == pytest.approx(-np.log(1e-12))


def test_risk_coverage_of_an_example() -> None:
    risk, uncertainties = np.array([4.0, 1.0, 2.0]), np.array([0.9, 0.1, 0.5])
    assert risk_coverage(risk, uncertainties) == pytest.approx((1 + 1.5 + 7 / 3) / 3)
    assert risk_coverage(risk, -uncertainties) == pytest.approx((4 + 3 + 7 / 3) / 3)


def test_equal_uncertainty_ignores_the_order_of_rows() -> None:
    risk = np.array([5.0, 0.0, 0.0, 3.0])
    assert risk_coverage(risk, np.ones(4)) == pytest.approx(2.0)
    assert risk_coverage(risk[::-1], np.ones(4)) == pytest.approx(2.0)
    mixed = np.array([1.0, 0.0, 1.0, 0.0])  # the two zeros: risks 0 and 3; the two ones: 5 and 0
    assert risk_coverage(risk, mixed) == pytest.approx((1.5 + 1.5 + 5.5 / 3 + 2) / 4)


def test_the_calibration_error_is_the_mean_gap_over_the_levels() -> None:
    prediction, target = np.zeros(4), np.array([0.5, -1.5, 2.5, 3.5])
    values = uncertainty(prediction, np.ones(4), target, {"0.5": 3.0, "0.95": 2.0})
    assert (values["coverage_50"], values["coverage_95"]) == (0.75, 0.5)
    assert values["calibration_error"] == pytest.approx((0.25 + 0.45) / 2)


def test_rows_with_class_probabilities_have_class_metrics() -> None:
    rows = pd.DataFrame({"p_no": [0.9, 0.2], "p_yes": [0.1, 0.8], "target": [0.0, 0.0], "prediction": np.nan})
    cold, hot = of_predictions(rows, {}), of_predictions(rows, {}, temperature=4.0)
    assert cold["accuracy"] == hot["accuracy"] == 0.5
    assert hot["nll"] < cold["nll"]
    assert "mae" not in cold


def test_the_label_range_determines_the_metrics() -> None:
    rows = pd.DataFrame({"prediction": [1.0, -1.0], "variance": [1.0, 1.0], "target": [1.0, -1.0]})
    assert "acc5_sims" in of_predictions(rows, {}, limits=(-1.0, 1.0))
    assert "acc7" in of_predictions(rows, {})


def test_lower_is_better_for_errors_only() -> None:
    assert all(map(lower_is_better, ("mae", "mae_clipped", "nll", "width_90", "calibration_error", "risk_coverage")))
    assert not any(map(lower_is_better, ("corr", "acc7", "macro_f1", "coverage_90", "balanced_acc2")))
