"""Each rule of the gate, on numbers that can be checked by hand; tests/pipeline/test_promote.py goes the whole way."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.registry import gate
from qamoe.registry.gate import Evidence


def rows(errors: list[float], name: str = "mixed", variance: float = 0.25) -> pd.DataFrame:
    """Clip i has target i % 3 - 1 and is predicted wrong by errors[i]; a source has two clips, each two draws."""
    target = np.arange(len(errors)) % 3 - 1.0
    one = pd.DataFrame(
        {
            "clip_id": [f"clip-{i}" for i in range(len(errors))],
            "source": [f"source-{i // 2}" for i in range(len(errors))],
            "slice": name,
            "cell": name,
            "target": target,
            "prediction": target + errors,
            "variance": variance,
        }
    )
    draws = (0,) if name == "clean" else (0, 1)
    return pd.concat([one.assign(draw=draw) for draw in draws], ignore_index=True)


def evidence(errors: list[float], champion: list[float] | None = None, **changed: Any) -> Evidence:
    clean = rows(errors, "clean")
    made = Evidence(
        config={"task": {"kind": "regression"}, "target_mean": 0.0, "calibration": {"sigmas": {"0.9": 1.6}}},
        candidate=pd.concat([clean, rows(errors)], ignore_index=True),
        champion=None if champion is None else pd.concat([rows(champion, "clean"), rows(champion)], ignore_index=True),
        clips=pd.DataFrame({"text": ["a", "b"]}, index=["clip-1", "clip-0"]),
        split="gate",
        coverage_90=(0.75, 1.0),
    )
    return replace(made, **changed)


def unused(clips: pd.DataFrame) -> pd.DataFrame:
    raise AssertionError("this rule does not ask the registered model")


def test_a_first_champion_beats_the_training_mean():
    good = gate.beats_the_mean(evidence([0.1, -0.2, 0.1, 0.2, 0.1, -0.1]), unused)
    assert good.passed
    assert good.numbers == {"mae": pytest.approx(0.8 / 6), "mean_mae": pytest.approx(4 / 6)}
    assert not gate.beats_the_mean(evidence([0.7] * 6), unused).passed
    assert not gate.beats_the_mean(evidence([1.0, 0.0, -1.0] * 2), unused).passed  # it is the mean predictor


def test_a_new_champion_is_better_beyond_its_interval():
    worse = [0.5, 0.4, 0.5, 0.6, 0.5, 0.4]
    better = gate.beats_the_champion(evidence([0.1] * 6, worse), unused)
    assert better.passed
    assert better.numbers["difference"] == pytest.approx(0.1 - np.mean(worse))
    assert better.numbers["high"] < 0
    assert better.numbers["sources"] == 3
    by_chance = gate.beats_the_champion(
        evidence([0.1, 0.1, 0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.4, 0.4, 0.4, 0.4]), unused
    )
    assert by_chance.numbers["difference"] < 0 < by_chance.numbers["high"]
    assert not by_chance.passed
    assert not gate.beats_the_champion(evidence(worse, worse), unused).passed


def test_no_slice_may_be_much_worse_than_the_champions():
    def on(slices: dict[str, float]) -> pd.DataFrame:
        return pd.concat([rows([error] * 6, name) for name, error in slices.items()], ignore_index=True)

    theirs = {"clean": 0.4, "missing": 0.8, "mixed": 0.7}
    base = evidence([0.1] * 6, tolerance=0.05)

    def verdict(**errors: float) -> gate.Verdict:
        seen = replace(base, candidate=on({**theirs, **errors}), champion=on(theirs))
        return gate.keeps_every_slice(seen, unused)

    assert verdict().passed
    assert verdict(clean=0.41, missing=0.83, mixed=9.0).passed, "mixed has a rule of its own"
    worse = verdict(clean=0.1, missing=0.85)
    assert not worse.passed
    assert worse.numbers["missing"] == pytest.approx(0.85)
    assert "missing 0.8500, allowed 0.8400" in worse.sentence
    assert not verdict(clean=0.43).passed


def test_a_slice_weighs_its_cells_as_its_summary_does():
    """The end of a curve counts half, however many draws it has."""

    def curve(*errors: float) -> pd.DataFrame:
        cells = []
        for severity, error in zip((0.0, 0.5, 1.0), errors, strict=True):
            own = rows([error] * 6, "missing").assign(cell=f"missing-{severity}", severity_text=np.float32(severity))
            cells.append(own[own["draw"] == 0] if severity == 0 else own)
        return pd.concat(cells, ignore_index=True)

    seen = replace(evidence([0.1] * 6, tolerance=0.05), candidate=curve(0.4, 0.5, 0.6), champion=curve(0.2, 0.5, 0.8))
    verdict = gate.keeps_every_slice(seen, unused)
    assert verdict.numbers["missing"] == pytest.approx(0.5)
    assert verdict.numbers["champion_missing"] == pytest.approx(0.5)


def test_of_classes_a_slice_may_have_a_few_more_misses():
    made = of_classes([0.8] * 6, champion=[0.8] * 6, tolerance=0.2)
    assert gate.keeps_every_slice(made, unused).passed
    one = of_classes([0.2] + [0.8] * 5, champion=[0.8] * 6, tolerance=0.2)
    assert gate.keeps_every_slice(one, unused).passed, "one of six is less than a fifth"
    two = of_classes([0.2] * 2 + [0.8] * 4, champion=[0.8] * 6, tolerance=0.2)
    assert not gate.keeps_every_slice(two, unused).passed


def test_intervals_must_hold_about_their_share():
    assert gate.covers_90(evidence([0.7, 0.7, 0.7, 0.9]), unused).passed  # reach .8: three of four, just allowed
    few = gate.covers_90(evidence([0.7, 0.7, 0.9, 0.9]), unused)
    assert (few.passed, few.numbers["coverage"]) == (False, 0.5)
    assert not gate.covers_90(evidence([0.1] * 4, coverage_90=(0.8, 0.99)), unused).passed  # too wide counts too


def test_the_registered_model_is_the_evaluated_one():
    seen = evidence([0.1, 0.2, 0.3])
    by_clip = seen.candidate[seen.candidate["slice"] == "clean"].set_index("clip_id")

    def registered(clips: pd.DataFrame, off: float = 0.0, variance: float = 0.25) -> pd.DataFrame:
        return pd.DataFrame({"score": by_clip["prediction"].loc[clips.index] + off, "variance": variance})

    assert gate.predicts_the_same(seen, registered).passed
    assert gate.predicts_the_same(seen, lambda clips: registered(clips, off=5e-6)).passed
    assert not gate.predicts_the_same(seen, lambda clips: registered(clips, off=5e-5)).passed
    assert not gate.predicts_the_same(seen, lambda clips: registered(clips, variance=0.3)).passed
    assert not gate.predicts_the_same(seen, lambda clips: registered(clips, off=float("nan"))).passed
    broken = gate.predicts_the_same(seen, unused)
    assert not broken.passed
    assert "cannot be used" in broken.sentence


def config_of_classes(shares: list[float], temperature: float = 1.0) -> dict[str, Any]:
    task = {"kind": "classification", "classes": ["no", "yes"]}
    return {"task": task, "class_shares": shares, "calibration": {"temperature": temperature}}


def of_classes(sure: list[float], temperature: float = 1.0, **changed: Any) -> Evidence:
    """Two classes in turn; clip i gives its own class the probability sure[i]."""
    made = evidence([0.0] * len(sure), config=config_of_classes([0.5, 0.5], temperature))

    def told(rows: pd.DataFrame, sure: list[float]) -> pd.DataFrame:
        own = np.array(sure)[rows["clip_id"].str.removeprefix("clip-").astype(int)]
        target = rows["clip_id"].str.removeprefix("clip-").astype(int).to_numpy() % 2
        first = np.where(target == 0, own, 1 - own)
        prediction = np.where(own > 0.5, target, 1 - target).astype(float)
        return rows.assign(target=target.astype(float), prediction=prediction, p_no=first, p_yes=1 - first)

    champion = changed.pop("champion", None)
    return replace(
        made,
        candidate=told(made.candidate, sure),
        champion=None if champion is None else told(made.candidate, champion),
        **changed,
    )


def test_classes_beat_the_training_frequencies() -> None:
    good = gate.beats_the_frequencies(of_classes([0.8] * 6), unused)
    assert good.passed
    assert good.numbers == {"nll": pytest.approx(-np.log(0.8)), "frequencies_nll": pytest.approx(np.log(2))}
    assert not gate.beats_the_frequencies(of_classes([0.5] * 6), unused).passed
    unseen = of_classes([0.5] * 6, config=config_of_classes([1.0, 0.0]))
    floored = gate.beats_the_frequencies(unseen, unused)  # as the model `mean` has it: 1 in 10,000, not never
    assert floored.numbers["frequencies_nll"] == pytest.approx(-np.log(1e-4) / 2, rel=1e-3)
    cooled = gate.beats_the_frequencies(of_classes([0.8] * 6, temperature=2.0), unused)
    assert cooled.numbers["nll"] == pytest.approx(-np.log(2 / 3)), "at its temperature: odds of 4 become 2"


def test_classes_hit_more_than_the_champion_beyond_the_interval() -> None:
    better = gate.beats_champion_accuracy(of_classes([0.8] * 6, champion=[0.8, 0.2] * 3), unused)
    assert better.passed
    assert better.rule == "hits_more", "the name under which earlier versions have it"
    assert better.numbers["difference"] == pytest.approx(0.5)
    assert not gate.beats_champion_accuracy(of_classes([0.8] * 6, champion=[0.8] * 6), unused).passed


def test_classes_are_as_sure_as_they_are_right() -> None:
    assert gate.is_calibrated(of_classes([0.75] * 3 + [0.25]), unused).numbers["calibration_error"] < 1e-9
    over = of_classes([0.99] * 2 + [0.01] * 2, calibration_error=0.2)
    assert gate.is_calibrated(over, unused).numbers["calibration_error"] == pytest.approx(0.49)
    assert not gate.is_calibrated(over, unused).passed


def test_registered_class_probabilities_are_the_calibrated_ones() -> None:
    seen = of_classes([0.8, 0.9], temperature=2.0)
    clean = seen.candidate[seen.candidate["slice"] == "clean"].set_index("clip_id")

    def registered(clips: pd.DataFrame, power: float = 0.5) -> pd.DataFrame:
        shares = clean.loc[clips.index, ["p_no", "p_yes"]] ** power
        return shares.div(shares.sum(axis=1), axis=0)

    assert gate.predicts_the_same(seen, registered).passed
    assert not gate.predicts_the_same(seen, lambda clips: registered(clips, power=1.0)).passed
