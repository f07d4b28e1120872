"""Which cells choose a checkpoint, and the mean over them by hand."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from qamoe.degradation.views import alike
from qamoe.params import Selection
from qamoe.training import checkpoint
from qamoe.training.selection import predictions, selection_cells, selection_value


def selection(severities: dict[str, list[float]], draws: int = 3) -> Selection:
    return Selection.model_validate({"severities": severities, "draws": draws, "seed": 41})


def test_each_cell_is_drawn_as_often_and_the_clean_one_once() -> None:
    cells = selection_cells(selection({"missing": [0.0, 0.3, 0.5], "noise": [0.0, 0.3]}))
    assert Counter(cells.groups) == {0: 1, 1: 3, 2: 3, 3: 3}, "clean is one cell, whichever kind names it"
    assert cells.selection == tuple(range(10))
    assert cells.clean == (0,)
    assert [cells.views[i] for i in range(4)] == [
        alike("missing", 0.0, 41, 0),
        *(alike("missing", 0.3, 41, draw) for draw in range(3)),
    ]
    assert [cells.views[i] for i in cells.worthless] == [alike("noise", 1.0, 41, draw) for draw in range(3)]
    assert len(set(cells.views)) == len(cells.views)


def test_without_a_clean_cell_trust_is_still_anchored_on_clean_clips() -> None:
    cells = selection_cells(selection({"noise": [0.5]}, draws=2))
    assert cells.selection == (0, 1)
    assert cells.clean == (2,)
    assert cells.views[2] == alike("clean", 0.0, 41, 0)
    assert cells.worthless == (3, 4)


def test_the_value_is_the_mean_over_cells_of_the_mean_over_draws() -> None:
    cells = selection_cells(selection({"missing": [0.0, 0.5]}, draws=2))
    target = np.array([0.0, 1.0])
    value = np.array([[1.0, 1.0], [3.0, 1.0], [0.0, -4.0]])  # clean; two draws of 0.5
    assert selection_value({"value": value, "target": target}, cells) == pytest.approx((0.5 + (1.5 + 2.5) / 2) / 2)


def test_predictions_do_not_depend_on_the_batch_size(setting: Any, tiny_checkpoint: Any, tmp_path: Any) -> None:
    model = checkpoint.load(tiny_checkpoint(tmp_path)).model
    places = (0, 2, 4)
    whole = predictions(model, setting.valid, places, 100, "cpu")
    assert whole["value"].shape == whole["variance"].shape == (3, 10)
    assert whole["r"].shape == (3, 10, 3)
    assert whole["target"].tolist() == setting.valid.store.labels
    single = predictions(model, setting.valid, places, 1, "cpu")
    for name in ("value", "variance", "r"):
        np.testing.assert_allclose(single[name], whole[name], atol=1e-5)
    assert np.abs(whole["value"][0] - whole["value"][1]).max() > 0, "each view is another degradation"


def test_a_model_without_reliability_has_none(setting: Any, tiny_checkpoint: Any, tmp_path: Any) -> None:
    model = checkpoint.load(tiny_checkpoint(tmp_path, model="mean")).model
    assert predictions(model, setting.valid, (0,), 4, "cpu")["r"] is None
