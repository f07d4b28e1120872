"""Interventions on r: who gets whose, and what they cost a model that uses its r and one that does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from qamoe.evaluation.quality_diagnostic import diagnose, exchanged, in_order_of
from qamoe.evaluation.quality_permutation import MixedDraw
from qamoe.evaluation.reliability import intervention_effects
from qamoe.evaluation.summary import INTERVENTIONS
from qamoe.models.checkpoint import Trained
from qamoe.models.heads import Prediction

MODALITIES = ("text", "audio", "vision")
R = [f"r_{m}" for m in MODALITIES]
CLIPS, SOURCES, DRAWS = 120, 24, 2


class Planted:
    """Predict from one number per modality: their mean with weights r, or without r their plain mean.

    With `classes`, the probability of class 1 is the sigmoid of that mean.
    """

    def __init__(self, *, uses_r: bool, classes: bool) -> None:
        self.uses_r, self.classes, self.encode = uses_r, classes, self

    def together(self, vectors: dict[str, Tensor], clips: int) -> Tensor:
        assert all(vector.shape == (clips, 1) for vector in vectors.values())
        return torch.stack(list(vectors.values()), 1)

    def fuse(self, h_BMD: Tensor, target: None, quality: Tensor) -> Prediction:
        weights = quality + 1e-6 if self.uses_r else torch.ones_like(quality)
        value = (weights * h_BMD[..., 0]).sum(1) / weights.sum(1)
        if self.classes:
            return Prediction(r=quality, probabilities=torch.stack([(-value).sigmoid(), value.sigmoid()], 1))
        return Prediction(value, torch.ones_like(value), r=quality)


def planted(*, uses_r: bool, classes: bool = False) -> Trained:
    task = {"kind": "classification", "classes": ["no", "yes"]} if classes else {"kind": "regression", "classes": []}
    anchors = {m: {"rescaled": False} for m in MODALITIES}
    config: Any = {"modalities": list(MODALITIES), "trust": anchors, "task": task}
    model: Any = Planted(uses_r=uses_r, classes=classes)
    return Trained(model, config, Path())


def mixed_draw(number: int, *, classes: bool = False) -> MixedDraw:
    """Return a draw in which a modality is wrong by its severity, and r follows severity only loosely.

    Of vision, every fourth clip has no frames, but a mask that is not empty (as text without words has, by its special
    tokens), and every fifth has frames, but an empty mask. Batches are in reverse clip order.
    """
    random = np.random.default_rng([5, number])
    target = np.random.default_rng(6).choice([-2.0, -1.0, 1.0, 2.0], CLIPS)
    severity = random.uniform(size=(CLIPS, 3)).astype(np.float32)
    severity[random.uniform(size=severity.shape) < 0.25] = 1
    shown = target[:, None] + 4 * severity * random.normal(size=severity.shape)
    r = 1 / (1 + np.exp(3 * severity - random.normal(1, 3, severity.shape)))
    rows = pd.DataFrame({"clip_id": [f"clip-{i:03d}" for i in range(CLIPS)], "slice": "mixed", "cell": "mixed"})
    rows["source"] = [f"source-{i % SOURCES:02d}" for i in range(CLIPS)]
    rows = rows.assign(draw=number, target=(target > 0).astype(float) if classes else target)
    frames, announced = np.full((CLIPS, 3), 9), np.zeros((CLIPS, 3), bool)
    frames[::4, 2], announced[::5, 2] = 0, True
    for index, m in enumerate(MODALITIES):
        rows[f"severity_{m}"], rows[f"frames_{m}"], rows[f"r_{m}"] = (
            severity[:, index],
            frames[:, index],
            r[:, index].astype(np.float32),
        )
    sort = np.arange(CLIPS)[::-1]
    batch_order = torch.tensor(sort.copy())  # a reversal is its own inverse
    vectors = {m: torch.tensor(shown[:, i : i + 1], dtype=torch.float32)[batch_order] for i, m in enumerate(MODALITIES)}
    present = {m: torch.tensor(~announced[:, i])[batch_order] for i, m in enumerate(MODALITIES)}
    return MixedDraw(number, rows, vectors, present, sort)


def diagnosed(*, uses_r: bool, classes: bool = False, permutations: int = 3) -> pd.DataFrame:
    trained = planted(uses_r=uses_r, classes=classes)
    draws = [mixed_draw(number, classes=classes) for number in range(DRAWS)]
    tables = [diagnose(trained, draw, permutations, 7) for draw in draws]
    return pd.concat(tables, ignore_index=True).assign(seed=1)


def test_values_are_given_out_in_the_order_of_a_key_with_ties_at_random() -> None:
    r = np.array([0.5, 0.1, 0.4, 0.2, 0.3])
    key = np.array([-0.2, -1.0, -0.7, -0.7, 0.0])
    seen = {tuple(in_order_of(key, r, np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert seen == {(0.4, 0.1, 0.2, 0.3, 0.5), (0.4, 0.1, 0.3, 0.2, 0.5)}


@pytest.mark.parametrize(("count", "staying"), [(0, 0), (1, 1), (2, 0), (7, 0)])
def test_exchanged_values_are_the_same_ones_at_other_places(count: int, staying: int) -> None:
    r = np.arange(count, dtype=np.float32)
    for seed in range(20):
        moved = exchanged(r, np.random.default_rng(seed))
        assert sorted(moved) == list(r)
        assert (moved == r).sum() == staying


def test_clips_without_the_modality_keep_their_r_and_marginals_are_unchanged() -> None:
    rows = diagnosed(uses_r=True)
    absent = np.zeros(CLIPS, bool)
    absent[::4], absent[::5] = True, True
    for (_, name, permutation), given in rows.groupby(["draw", "intervention", "permutation"]):
        native = mixed_draw(given["draw"].iloc[0]).rows
        for m in MODALITIES:
            own, new = native[f"r_{m}"].to_numpy(), given[f"r_{m}"].to_numpy()
            assert sorted(new) == sorted(own), (name, permutation, m)
            without = absent if m == "vision" else np.zeros(CLIPS, bool)
            assert (new[without] == own[without]).all(), (name, permutation, m)
            if name == "permuted":
                assert (new[~without] != own[~without]).all()
    assert (rows[rows["intervention"] == "native"][R].to_numpy()[:CLIPS] == mixed_draw(0).rows[R].to_numpy()).all()


def test_modalities_permutations_and_draws_move_differently_and_every_model_alike() -> None:
    rows = diagnosed(uses_r=True)
    of_data = rows["intervention"] != "correctness"  # which is a matter of the model
    assert rows.loc[of_data, R].equals(diagnosed(uses_r=False).loc[of_data, R])
    origins = set()
    for _, given in rows[rows["intervention"] == "permuted"].groupby(["draw", "permutation"]):
        for m in MODALITIES:
            own = mixed_draw(given["draw"].iloc[0]).rows[f"r_{m}"].to_numpy()
            place = np.searchsorted(np.sort(own), given[f"r_{m}"].to_numpy())
            origins.add(tuple(np.argsort(own)[place]))
    assert len(origins) == DRAWS * 3 * len(MODALITIES)


def test_r_follows_corruption_and_correctness_of_each_modality_alone() -> None:
    rows = diagnosed(uses_r=True)
    for number in range(DRAWS):
        draw = mixed_draw(number)
        own = {name: of.reset_index(drop=True) for name, of in rows[rows["draw"] == number].groupby("intervention")}
        for index, m in enumerate(MODALITIES):
            has = np.ones(CLIPS, bool)
            if m == "vision":
                has[::4], has[::5] = False, False
            severity = draw.rows[f"severity_{m}"].to_numpy()[has]
            r = own["corruption"][f"r_{m}"].to_numpy()[has]
            assert (np.diff(severity[np.argsort(r, kind="stable")]) <= 0).all(), m
            shown = list(draw.vectors.values())[index].numpy()[::-1, 0][has]
            error = np.abs(shown - draw.rows["target"].to_numpy()[has])
            r = own["correctness"][f"r_{m}"].to_numpy()[has]
            assert (np.diff(error[np.argsort(r)]) <= 1e-4).all(), m


def test_a_model_that_uses_r_gains_from_the_controls_and_loses_by_permutation() -> None:
    measured = intervention_effects(diagnosed(uses_r=True), draws=300)
    assert tuple(measured) == INTERVENTIONS
    for control in ("corruption", "correctness"):
        assert measured[control]["mae"].high < 0, control
        assert measured[control]["acc2_non0"].low > 0, control
    assert measured["permuted"]["mae"].low > 0
    assert measured["correctness"]["mae"].value < measured["corruption"]["mae"].value


@pytest.mark.parametrize("classes", [False, True])
def test_a_model_that_ignores_r_differs_by_exactly_zero(classes: bool) -> None:
    measured = intervention_effects(diagnosed(uses_r=False, classes=classes), draws=50)
    assert {metric for of in measured.values() for metric in of} == ({"accuracy"} if classes else {"mae", "acc2_non0"})
    assert {effect[1:] for of in measured.values() for effect in of.values()} == {(0.0, 0.0, 0.0)}


def test_correctness_of_classes_is_the_probability_of_the_target() -> None:
    rows = diagnosed(uses_r=True, classes=True)
    given = rows[(rows["intervention"] == "correctness") & (rows["draw"] == 0)]
    draw = mixed_draw(0, classes=True)
    for m in ("text", "audio"):
        shown = draw.vectors[m].numpy()[::-1, 0]
        toward_target = np.where(draw.rows["target"] == 1, shown, -shown)
        assert (np.diff(toward_target[np.argsort(given[f"r_{m}"].to_numpy())]) >= -1e-3).all(), m
    measured = intervention_effects(rows, draws=300)
    assert measured["correctness"]["accuracy"].low > 0


def test_effects_are_means_over_draws_permutations_and_seeds() -> None:
    """Two clips: right by sign natively; permuted once with errors .5 and 1.5, once with 1 and 3 and a wrong sign."""
    errors = {("native", 0): (0.0, 0.5), ("permuted", 0): (0.5, 1.5), ("permuted", 1): (1.0, 3.0)}
    errors |= {("corruption", 0): (0.0, 0.0), ("correctness", 0): (0.0, 0.0)}
    parts = [
        pd.DataFrame({"source": ["a", "b"], "target": 2.0, "prediction": 2 - np.array(error)}).assign(
            seed=seed, cell="mixed", draw=draw, intervention=name, permutation=number
        )
        for (name, number), error in errors.items()
        for seed in (1, 2)
        for draw in (0, 1)
    ]
    measured = intervention_effects(pd.concat(parts, ignore_index=True), draws=20)
    assert measured["native"]["mae"].value == 0.25
    assert measured["permuted"]["mae"][:2] == pytest.approx((1.5, 1.25))
    assert measured["permuted"]["acc2_non0"][:2] == pytest.approx((0.75, -0.25))
    assert measured["corruption"]["mae"][:2] == pytest.approx((0.0, -0.25))
