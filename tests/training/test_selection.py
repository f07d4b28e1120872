"""Selection: its cells, its mean over them, and the calibration on them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.config.params import Selection
from qamoe.dataset import degraded_split
from qamoe.degradation.features import KINDS
from qamoe.degradation.views import View, apply, uniform_view
from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.training.selection import (
    Cells,
    SplitPredictions,
    calibration,
    drawn_clips,
    injected_severity,
    predictions,
    selection_cells,
    selection_value,
    specialist,
    with_oracle_quality,
)


def selection(severities: dict[str, list[float]], draws: int = 3) -> Selection:
    return Selection.model_validate({"severities": severities, "draws": draws, "seed": 41})


def test_each_cell_has_the_same_number_of_draws_and_the_clean_cell_one() -> None:
    cells = selection_cells(selection({"missing": [0.0, 0.3, 0.5], "noise": [0.0, 0.3]}))
    assert Counter(cells.groups) == {0: 1, 1: 3, 2: 3, 3: 3}, "severity 0 of every kind is the same clean cell"
    assert cells.selection == tuple(range(10))
    assert cells.clean == (0,)
    assert [cells.views[i] for i in range(4)] == [
        uniform_view("clean", 0.0, 41, 0),
        *(uniform_view("missing", 0.3, 41, draw) for draw in range(3)),
    ]
    assert [cells.views[i] for i in cells.fully_degraded] == [uniform_view("noise", 1.0, 41, draw) for draw in range(3)]
    assert len(set(cells.views)) == len(cells.views)


def test_trust_is_anchored_on_a_kind_of_the_grid() -> None:
    cells = selection_cells(selection({"missing": [0.0, 0.3]}, draws=2))
    assert [cells.views[i] for i in cells.fully_degraded] == [
        uniform_view("missing", 1.0, 41, draw) for draw in range(2)
    ]
    assert cells.selection == (0, 1, 2)


def test_every_pair_of_levels_of_the_landscape_is_a_cell() -> None:
    cells = selection_cells(selection({"landscape": [0.0, 0.5], "missing": [0.0, 0.3]}, draws=2))
    ranges = [None if view.spectrum is None else (view.spectrum.noise, view.spectrum.missing) for view in cells.views]
    none, half = (0.0, 0.0), (0.5, 0.5)
    assert ranges[:7] == [None, (none, half), (none, half), (half, none), (half, none), (half, half), (half, half)]
    assert cells.groups == (0, 1, 1, 2, 2, 3, 3, 4, 4)
    assert cells.clean == (0,)
    only = selection_cells(selection({"landscape": [0.3, 0.5]}, draws=2))
    assert [only.views[i] for i in only.fully_degraded] == [
        uniform_view("paper_noise", 1.0, 41, draw) for draw in range(2)
    ]


def test_without_a_clean_cell_trust_is_still_anchored_on_clean_clips() -> None:
    cells = selection_cells(selection({"noise": [0.5]}, draws=2))
    assert cells.selection == (0, 1)
    assert cells.clean == (2,)
    assert cells.views[2] == uniform_view("clean", 0.0, 41, 0)
    assert cells.fully_degraded == (3, 4)


def test_full_noise_is_not_repeated_if_the_grid_has_it() -> None:
    cells = selection_cells(selection({"missing": [0.0], "noise": [0.3, 1.0]}))
    assert len(cells.views) == len(set(cells.views)) == 7
    assert cells.fully_degraded == (4, 5, 6)
    assert [cells.views[i] for i in cells.fully_degraded] == [uniform_view("noise", 1.0, 41, draw) for draw in range(3)]
    one_draw = selection_cells(selection({"noise": [1.0]}, draws=1))
    assert (one_draw.selection, one_draw.fully_degraded, one_draw.clean) == ((0,), (0,), (1,))


@pytest.mark.parametrize(("kind", "severity"), [("missing", 0.3), ("noise", 1.0)])
def test_a_specialist_is_trained_and_selected_in_its_own_cell(setting: Any, kind: str, severity: float) -> None:
    common = setting.params.train.common
    training, cells = specialist(kind, severity, common)
    assert training == [uniform_view(kind, severity, common.degrade.seed, number) for number in range(3)]
    assert [cells.views[i] for i in cells.selection] == [uniform_view(kind, severity, 41, draw) for draw in range(2)]
    assert set(cells.groups) == {0}
    assert cells.views[cells.clean[0]] == uniform_view("clean", 0.0, 41, 0), (
        "trust has the same anchors as for every model"
    )
    assert [cells.views[i] for i in cells.fully_degraded] == [uniform_view(kind, 1.0, 41, draw) for draw in range(2)]


def test_the_clean_specialist_never_sees_a_degraded_clip(setting: Any) -> None:
    training, cells = specialist("clean", 0.0, setting.params.train.common)
    clean = setting.train.clean(range(5))
    for view in (*training, *(cells.views[i] for i in cells.selection)):
        batch, lost, state = apply(clean, view, setting.train.references)
        assert all(torch.equal(batch.x[m], clean.x[m]) for m in clean.x)
        assert (lost == 0).all()
        assert (state.kind == -1).all()
    assert (len(training), len(cells.selection)) == (1, 1), "clean has a single draw"


def test_only_the_oracle_gets_the_severity_of_each_view(setting: Any, tiny_checkpoint: Any, tmp_path: Any) -> None:
    cells = setting.cells
    assert [cells.views[i].severities[0] for i in (0, 1, 3)] == [0.0, 0.5, 0.5]
    models = {name: checkpoint.load(tiny_checkpoint(tmp_path / name, model=name)).model for name in ("oracle", "qamoe")}
    r: Any = predictions(models["oracle"], setting.valid, (0, 1, 3, cells.fully_degraded[0]), 4, "cpu").r
    for index, severity in enumerate((0.0, 0.5, 0.5, 1.0)):
        assert (r[index] == 1 - severity).all()
    own_r: Any = predictions(models["qamoe"], setting.valid, (0, 1), 4, "cpu").r
    assert ((own_r > 0) & (own_r < 1)).all()
    batch, quality = with_oracle_quality(models["oracle"], setting.train.degraded(1, [3, 1]), "cpu")
    state = setting.train.degraded(1, [3, 1])[2]
    assert quality is not None
    assert torch.equal(quality, 1 - state.severity)  # drawn per clip and modality
    assert len(set(quality.flatten().tolist())) > 2
    assert torch.equal(batch.x["audio"], setting.train.batch(1, [3, 1]).x["audio"])
    assert with_oracle_quality(models["qamoe"], setting.train.degraded(1, [3, 1]), "cpu")[1] is None


def test_the_severity_of_a_swap_is_its_outcome(setting: Any, tiny_checkpoint: Any, tmp_path: Any) -> None:
    model = checkpoint.load(tiny_checkpoint(tmp_path / "qamoe")).model
    swapping = replace(setting.train, views=(View(2026, 0, drawn=("noise",), swap=True),), states=None)
    batch, lost, state = swapping.degraded(0, range(20))
    injected, swap = injected_severity(model, (batch, lost, state), "cpu"), state.kind == KINDS.index("swap")
    assert set(injected[swap].tolist()) == {0.0, 1.0}, "not the probability of a swap"
    assert torch.equal(injected[swap], lost[swap])
    assert torch.equal(injected[~swap], state.severity[~swap])
    assert 10 < int(swap.sum()) < 50
    oracle = checkpoint.load(tiny_checkpoint(tmp_path / "oracle", model="oracle")).model
    quality = with_oracle_quality(oracle, (batch, lost, state), "cpu")[1]
    assert quality is not None
    assert torch.equal(quality, 1 - injected)


def test_repeated_keeps_batches_up_to_its_limit(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split = replace(setting.valid)
    expected = split.degraded(1, [2, 0])
    kept = split.repeated(1, [2, 0])
    assert split.repeated(1, [2, 0]) is kept
    assert split.repeated(1, [0, 2]) is not kept
    assert all(torch.equal(kept[0].x[m], expected[0].x[m]) for m in expected[0].x)
    assert torch.equal(kept[1], expected[1])
    monkeypatch.setattr(degraded_split, "_KEPT_BYTES", kept[0].bytes)
    full = replace(setting.valid)
    first = full.repeated(1, [2, 0])
    assert full.repeated(1, [2, 0]) is first
    assert full.repeated(2, [2, 0]) is not full.repeated(2, [2, 0]), "nothing beyond the limit is kept"


def test_the_value_is_the_mean_over_cells_of_the_mean_over_draws() -> None:
    cells = selection_cells(selection({"missing": [0.0, 0.5]}, draws=2))
    target = np.array([0.0, 1.0])
    value = np.array([[1.0, 1.0], [3.0, 1.0], [0.0, -4.0]])  # clean; two draws of 0.5
    assert selection_value(SplitPredictions(target, value), cells) == pytest.approx((0.5 + (1.5 + 2.5) / 2) / 2)


def test_predictions_do_not_depend_on_the_batch_size(setting: Any, tiny_checkpoint: Any, tmp_path: Any) -> None:
    model = checkpoint.load(tiny_checkpoint(tmp_path)).model
    views = (0, 2, 4)
    whole: Any = predictions(model, setting.valid, views, 100, "cpu")
    assert whole.value.shape == whole.variance.shape == (3, 10)
    assert whole.r.shape == (3, 10, 3)
    assert whole.target.tolist() == setting.valid.store.labels
    single = predictions(model, setting.valid, views, 1, "cpu")
    for name in ("value", "variance", "r"):
        np.testing.assert_allclose(getattr(single, name), getattr(whole, name), atol=1e-5)
    assert np.abs(whole.value[0] - whole.value[1]).max() > 0, "views are different degradations"


def test_a_model_without_reliability_has_none(setting: Any, tiny_checkpoint: Any, tmp_path: Any) -> None:
    model = checkpoint.load(tiny_checkpoint(tmp_path, model="mean")).model
    assert predictions(model, setting.valid, (0,), 4, "cpu").r is None


def test_classification_is_selected_by_likelihood() -> None:
    """Two cells, with one and two draws: the mean of -log q of the target over clips and draws, then over cells."""
    cells = Cells((), (0, 1, 2), (0, 1, 1), (), ())
    target_probabilities = np.array([[0.5, 0.25], [0.5, 0.5], [0.25, 0.25]])
    predicted = SplitPredictions(
        np.array([0.0, 0.0]), probabilities=np.stack([target_probabilities, 1 - target_probabilities], -1)
    )
    assert selection_value(predicted, cells) == pytest.approx((1.5 + 1.5) / 2 * np.log(2))


def test_classes_are_calibrated_by_a_temperature_over_all_cells() -> None:
    """Three of four are correct at odds of 9 to 1: calibrated odds are 3 to 1, half the logit."""
    regression = SplitPredictions(np.zeros(2), np.zeros((1, 2)), np.ones((1, 2)))
    assert set(calibration(regression)) == {"sigmas"}
    probabilities = np.array([[0.9, 0.1]] * 4).reshape(2, 2, 2)
    all_correct = calibration(SplitPredictions(np.zeros(2), probabilities=probabilities))
    assert all_correct["temperature"] < 0.5, "all are correct: the probabilities become sharper"
    mixed = calibration(
        SplitPredictions(np.array([0.0, 0.0, 0.0, 1.0]), probabilities=probabilities[None].reshape(1, 4, 2))
    )
    assert mixed["temperature"] == pytest.approx(2, rel=1e-3)


def test_fewer_clips_are_drawn_by_their_ids_and_the_seed_alone() -> None:
    ids = [f"clip-{number}" for number in range(40)]
    ten = drawn_clips(ids, 10, 2026)
    assert ten == [0, 4, 7, 16, 19, 22, 23, 30, 32, 39]
    assert set(drawn_clips(ids, 5, 2026)) < set(ten), "fewer clips are some of the same"
    assert drawn_clips(ids, 40, 2026) == list(range(40))
    turned = drawn_clips(ids[::-1], 10, 2026)
    assert turned == sorted(turned)
    assert {ids[::-1][row] for row in turned} == {ids[row] for row in ten}
    assert drawn_clips(ids, 10, 2027) != ten
    with pytest.raises(UserError, match=r"train\.common\.clips is 41\b.*\b40\b"):
        drawn_clips(ids, 41, 2026)
