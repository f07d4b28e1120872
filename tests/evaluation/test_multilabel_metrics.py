"""Multilabel tasks: every metric is scikit-learn's, and a comparison of models uses the same ones."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from qamoe.config.task import Task, label_names, label_number
from qamoe.data.clip import label_value
from qamoe.errors import UserError
from qamoe.evaluation import metrics
from qamoe.evaluation.bootstrap import resample
from qamoe.models.calibration import tempered_labels
from qamoe.training.selection import SplitPredictions, calibration

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
TASK = Task(kind="multilabel", classes=EMOTIONS)


@pytest.fixture
def rows() -> pd.DataFrame:
    """Rows of predictions.parquet of one cell; fear is never there and never predicted."""
    draws = np.random.default_rng(3)
    has = draws.random((40, 6)) < [0.5, 0.3, 0.2, 0.1, 0.2, 0.0]
    presence = (0.3 * has + 0.5 * draws.random((40, 6))) * [1, 1, 1, 1, 1, 0.1]
    columns: dict[str, Any] = {f"has_{name}": presence[:, i] for i, name in enumerate(EMOTIONS)}
    columns["target"] = [label_number(row) for row in has]
    columns["prediction"] = [label_number(row) for row in presence >= 0.5]
    places = {"clip_id": [f"c{i}" for i in range(40)], "source": [f"s{i // 4}" for i in range(40)]}
    return pd.DataFrame(places | columns).assign(slice="clean", cell="clean", draw=0, variance=np.nan)


def sides(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which labels are there and which are predicted, (N, 6) each."""
    has = np.array([[name in label_names(number, EMOTIONS) for name in EMOTIONS] for number in rows["target"]])
    return has, rows[[f"has_{name}" for name in EMOTIONS]].to_numpy() >= 0.5


@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true.*")
@pytest.mark.filterwarnings("ignore:.*single label was found.*")
def test_the_metrics_are_those_of_scikit_learn(rows: pd.DataFrame) -> None:
    measured = metrics.of_predictions(rows, {})
    has, predicted = sides(rows)
    for i, name in enumerate(EMOTIONS):
        truth, ours = has[:, i], predicted[:, i]
        assert measured[f"f1_{name}"] == pytest.approx(f1_score(truth, ours, zero_division=0))
        weighted = f1_score(truth, ours, average="weighted", zero_division=0)
        assert measured[f"weighted_f1_{name}"] == pytest.approx(weighted)
        assert measured[f"balanced_acc_{name}"] == pytest.approx(balanced_accuracy_score(truth, ours))
    assert measured["macro_f1"] == pytest.approx(f1_score(has, predicted, average="macro", zero_division=0))
    assert measured["exact_match"] == pytest.approx(accuracy_score(has, predicted))
    assert measured["accuracy"] == pytest.approx((has == predicted).mean())
    presence = rows[metrics.labels_of(rows)].to_numpy()
    assert measured["nll"] == pytest.approx(log_loss(has.ravel(), presence.ravel()))
    means = {name: np.mean([measured[f"{name}_{e}"] for e in EMOTIONS]) for name in ("weighted_f1", "balanced_acc")}
    assert {name: measured[name] for name in means} == pytest.approx(means)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_comparison_uses_the_same_metrics(rows: pd.DataFrame, metric: str) -> None:
    resampled = resample(rows, metric, draws=10)
    assert resampled.values[0] == pytest.approx(metrics.of_predictions(rows, {})[metric])
    assert resampled.values[1:].std() > 0


def test_the_error_of_a_row_is_its_share_of_wrong_labels(rows: pd.DataFrame) -> None:
    has, predicted = sides(rows)
    np.testing.assert_allclose(metrics.errors(rows), (has != predicted).mean(1))


def test_the_temperature_is_fitted_on_the_labels() -> None:
    """Probabilities that are twice as sure as they should be get the temperature 2."""
    draws = np.random.default_rng(5)
    logits = draws.normal(0, 2, (1, 20_000, 2))
    has = draws.random(logits.shape) < 1 / (1 + np.exp(-logits))
    target = np.array([label_number(row) for row in has[0]])
    sure = 1 / (1 + np.exp(-2 * logits))
    predicted = SplitPredictions(target, presence=sure)
    temperature = calibration(predicted)["temperature"]
    assert temperature == pytest.approx(2, abs=0.1)
    np.testing.assert_allclose(tempered_labels(sure[0], 2.0), 1 / (1 + np.exp(-logits[0])), atol=1e-6)
    expected = -np.log(np.where(has, sure, 1 - sure)).mean(-1)
    np.testing.assert_allclose(predicted.errors(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("cell", "names"),
    [("happy", ["happy"]), ("fear; sad", ["sad", "fear"]), ("none", []), (";".join(EMOTIONS), EMOTIONS)],
)
def test_a_label_names_any_number_of_classes(cell: str, names: list[str]) -> None:
    assert label_names(label_value(cell, TASK, "here"), EMOTIONS) == list(names)


def test_an_unknown_label_and_an_impossible_task_are_rejected() -> None:
    with pytest.raises(UserError, match=r"here: label 'joy' .*none .*happy, sad"):
        label_value("sad;joy", TASK, "here")
    for classes, named in (
        (("a",), "2 to 20 classes, not 1"),
        (tuple(map(str, range(21))), "not 21"),
        (("a", "b;c"), "'b;c'"),
        (("a", "none"), "'none'"),
    ):
        with pytest.raises(ValueError, match=named):
            Task(kind="multilabel", classes=classes)
