"""Test each rule of the promotion gate on small numbers; tests/pipeline/test_promote.py tests a whole promotion."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.registry import gate
from qamoe.registry.gate import GateMeasurements


def rows(errors: list[float], name: str = "mixed", variance: float = 0.25) -> pd.DataFrame:
    """Return rows: clip i has target i % 3 - 1 and error errors[i]; a source has two clips, a clip two draws."""
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


def measure(errors: list[float], champion: list[float] | None = None, **changed: Any) -> GateMeasurements:
    clean = rows(errors, "clean")
    config: Any = {"task": {"kind": "regression"}, "target_mean": 0.0, "calibration": {"sigmas": {"0.9": 1.6}}}
    measurements = GateMeasurements(
        config=config,
        candidate=pd.concat([clean, rows(errors)], ignore_index=True),
        champion=None if champion is None else pd.concat([rows(champion, "clean"), rows(champion)], ignore_index=True),
        clips=pd.DataFrame({"text": ["a", "b"]}, index=["clip-1", "clip-0"]),
        split="gate",
        coverage_90=(0.75, 1.0),
    )
    return replace(measurements, **changed)


def unused(clips: pd.DataFrame) -> pd.DataFrame:
    raise AssertionError("this rule must not call the registered model")


def test_a_first_champion_beats_the_training_mean():
    good = gate.beats_the_mean(measure([0.1, -0.2, 0.1, 0.2, 0.1, -0.1]), unused)
    assert good.passed
    assert good.numbers == {"mae": pytest.approx(0.8 / 6), "mean_mae": pytest.approx(4 / 6)}
    assert not gate.beats_the_mean(measure([0.7] * 6), unused).passed
    assert not gate.beats_the_mean(measure([1.0, 0.0, -1.0] * 2), unused).passed  # equal to the mean predictor


def test_a_new_champion_has_an_interval_below_0():
    worse = [0.5, 0.4, 0.5, 0.6, 0.5, 0.4]
    better = gate.beats_the_champion(measure([0.1] * 6, worse), unused)
    assert better.passed
    assert better.numbers["difference"] == pytest.approx(0.1 - np.mean(worse))
    assert better.numbers["high"] < 0
    assert better.numbers["sources"] == 3
    by_chance = gate.beats_the_champion(measure([0.1, 0.1, 0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.4, 0.4, 0.4, 0.4]), unused)
    assert by_chance.numbers["difference"] < 0 < by_chance.numbers["high"]
    assert not by_chance.passed
    assert not gate.beats_the_champion(measure(worse, worse), unused).passed


def test_no_slice_may_be_much_worse_than_the_champions():
    def slice_rows(slices: dict[str, float]) -> pd.DataFrame:
        return pd.concat([rows([error] * 6, name) for name, error in slices.items()], ignore_index=True)

    champion = {"clean": 0.4, "missing": 0.8, "mixed": 0.7}
    base = measure([0.1] * 6, tolerance=0.05)

    def verdict(**errors: float) -> gate.Verdict:
        measured = replace(base, candidate=slice_rows({**champion, **errors}), champion=slice_rows(champion))
        return gate.keeps_every_slice(measured, unused)

    assert verdict().passed
    assert verdict(clean=0.41, missing=0.83, mixed=9.0).passed, "another rule checks mixed"
    worse = verdict(clean=0.1, missing=0.85)
    assert not worse.passed
    assert worse.numbers["missing"] == pytest.approx(0.85)
    assert re.search(r"missing 0\.8500\D*0\.8400", worse.sentence)
    assert not verdict(clean=0.43).passed


def test_cells_are_weighted_as_in_the_summary_of_the_slice():
    """The end points of a curve have half the weight, independent of their number of draws."""

    def curve(*errors: float) -> pd.DataFrame:
        cells = []
        for severity, error in zip((0.0, 0.5, 1.0), errors, strict=True):
            cell = rows([error] * 6, "missing").assign(cell=f"missing-{severity}", severity_text=np.float32(severity))
            cells.append(cell[cell["draw"] == 0] if severity == 0 else cell)
        return pd.concat(cells, ignore_index=True)

    base = measure([0.1] * 6, tolerance=0.05)
    measured = replace(base, candidate=curve(0.4, 0.5, 0.6), champion=curve(0.2, 0.5, 0.8))
    verdict = gate.keeps_every_slice(measured, unused)
    assert verdict.numbers["missing"] == pytest.approx(0.5)
    assert verdict.numbers["champion_missing"] == pytest.approx(0.5)


def test_the_tolerance_of_an_error_rate_is_absolute():
    equal = measure_classes([0.8] * 6, champion=[0.8] * 6, tolerance=0.2)
    assert gate.keeps_every_slice(equal, unused).passed
    one_error = measure_classes([0.2] + [0.8] * 5, champion=[0.8] * 6, tolerance=0.2)
    assert gate.keeps_every_slice(one_error, unused).passed, "1/6 is below 0.2"
    two_errors = measure_classes([0.2] * 2 + [0.8] * 4, champion=[0.8] * 6, tolerance=0.2)
    assert not gate.keeps_every_slice(two_errors, unused).passed


def test_coverage_must_be_within_its_limits():
    assert gate.covers_90(
        measure([0.7, 0.7, 0.7, 0.9]), unused
    ).passed  # half-width 0.8: three of four, the lower limit
    few = gate.covers_90(measure([0.7, 0.7, 0.9, 0.9]), unused)
    assert (few.passed, few.numbers["coverage"]) == (False, 0.5)
    assert not gate.covers_90(
        measure([0.1] * 4, coverage_90=(0.8, 0.99)), unused
    ).passed  # intervals that are too wide fail as well


def test_the_registered_model_predicts_the_same_as_the_evaluated_one():
    measured = measure([0.1, 0.2, 0.3])
    by_clip = measured.candidate[measured.candidate["slice"] == "clean"].set_index("clip_id")

    def registered(clips: pd.DataFrame, off: float = 0.0, variance: float = 0.25) -> pd.DataFrame:
        return pd.DataFrame({"score": by_clip["prediction"].loc[clips.index] + off, "variance": variance})

    assert gate.predicts_the_same(measured, registered).passed
    assert gate.predicts_the_same(measured, lambda clips: registered(clips, off=5e-6)).passed
    assert not gate.predicts_the_same(measured, lambda clips: registered(clips, off=5e-5)).passed
    assert not gate.predicts_the_same(measured, lambda clips: registered(clips, variance=0.3)).passed
    assert not gate.predicts_the_same(measured, lambda clips: registered(clips, off=float("nan"))).passed
    broken = gate.predicts_the_same(measured, unused)
    assert not broken.passed
    assert "must not call the registered model" in broken.sentence


def class_config(shares: list[float], temperature: float = 1.0) -> dict[str, Any]:
    task = {"kind": "classification", "classes": ["no", "yes"]}
    return {"task": task, "class_shares": shares, "calibration": {"temperature": temperature}}


def measure_classes(true_class: list[float], temperature: float = 1.0, **changed: Any) -> GateMeasurements:
    """Return measurements of two alternating classes; true_class[i] is the probability of the true class of clip i."""
    measured = measure([0.0] * len(true_class), config=class_config([0.5, 0.5], temperature))

    def with_classes(rows: pd.DataFrame, true_class: list[float]) -> pd.DataFrame:
        p_true = np.array(true_class)[rows["clip_id"].str.removeprefix("clip-").astype(int)]
        target = rows["clip_id"].str.removeprefix("clip-").astype(int).to_numpy() % 2
        p_no = np.where(target == 0, p_true, 1 - p_true)
        prediction = np.where(p_true > 0.5, target, 1 - target).astype(float)
        return rows.assign(target=target.astype(float), prediction=prediction, p_no=p_no, p_yes=1 - p_no)

    champion = changed.pop("champion", None)
    return replace(
        measured,
        candidate=with_classes(measured.candidate, true_class),
        champion=None if champion is None else with_classes(measured.candidate, champion),
        **changed,
    )


def test_classes_beat_the_training_frequencies() -> None:
    good = gate.beats_the_frequencies(measure_classes([0.8] * 6), unused)
    assert good.passed
    assert good.numbers == {"nll": pytest.approx(-np.log(0.8)), "frequencies_nll": pytest.approx(np.log(2))}
    assert not gate.beats_the_frequencies(measure_classes([0.5] * 6), unused).passed
    unseen = measure_classes([0.5] * 6, config=class_config([1.0, 0.0]))
    floored = gate.beats_the_frequencies(unseen, unused)  # floored at 1e-4, as in the model `mean`
    assert floored.numbers["frequencies_nll"] == pytest.approx(-np.log(1e-4) / 2, rel=1e-3)
    cooled = gate.beats_the_frequencies(measure_classes([0.8] * 6, temperature=2.0), unused)
    assert cooled.numbers["nll"] == pytest.approx(-np.log(2 / 3)), "temperature 2 turns odds of 4 into odds of 2"


def test_classes_need_an_accuracy_above_the_champions_interval() -> None:
    better = gate.beats_champion_accuracy(measure_classes([0.8] * 6, champion=[0.8, 0.2] * 3), unused)
    assert better.passed
    assert better.rule == "hits_more", "earlier versions are tagged with this name"
    assert better.numbers["difference"] == pytest.approx(0.5)
    assert not gate.beats_champion_accuracy(measure_classes([0.8] * 6, champion=[0.8] * 6), unused).passed


def test_classes_need_a_low_calibration_error() -> None:
    assert gate.is_calibrated(measure_classes([0.75] * 3 + [0.25]), unused).numbers["calibration_error"] < 1e-9
    overconfident = measure_classes([0.99] * 2 + [0.01] * 2, calibration_error=0.2)
    assert gate.is_calibrated(overconfident, unused).numbers["calibration_error"] == pytest.approx(0.49)
    assert not gate.is_calibrated(overconfident, unused).passed


def test_registered_class_probabilities_are_the_calibrated_ones() -> None:
    measured = measure_classes([0.8, 0.9], temperature=2.0)
    clean = measured.candidate[measured.candidate["slice"] == "clean"].set_index("clip_id")

    def registered(clips: pd.DataFrame, power: float = 0.5) -> pd.DataFrame:
        shares = clean.loc[clips.index, ["p_no", "p_yes"]] ** power
        return shares.div(shares.sum(axis=1), axis=0)

    assert gate.predicts_the_same(measured, registered).passed
    assert not gate.predicts_the_same(measured, lambda clips: registered(clips, power=1.0)).passed


def measure_labels(presence: list[list[float]], target: list[float], **changed: Any) -> GateMeasurements:
    """Return measurements of two labels, with their probabilities and the numbers of those that clips have."""
    measured = measure([0.0] * len(target))

    def with_labels(rows: pd.DataFrame, presence: list[list[float]]) -> pd.DataFrame:
        number = rows["clip_id"].str.removeprefix("clip-").astype(int).to_numpy()
        both = np.array(presence)[number]
        prediction = (both >= 0.5) @ np.array([1.0, 2.0])
        rows = rows.assign(target=np.array(target)[number], prediction=prediction)
        return rows.assign(has_a=both[:, 0], has_b=both[:, 1])

    champion = changed.pop("champion", None)
    task: Any = {"kind": "multilabel", "classes": ["a", "b"]}
    config: Any = {"task": task, "class_shares": [0.5, 0.25], "calibration": {"temperature": 1.0}}
    return replace(
        measured,
        config=config,
        candidate=with_labels(measured.candidate, presence),
        champion=None if champion is None else with_labels(measured.candidate, champion),
        **changed,
    )


def test_labels_pass_the_rules_of_classes() -> None:
    target = [0.0, 1.0, 2.0, 3.0]
    good = [[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8]]
    half = [[0.8, 0.2], [0.2, 0.2], [0.8, 0.8], [0.2, 0.8]]  # the first label is always wrong
    frequencies = gate.beats_the_frequencies(measure_labels(good, target), unused)
    assert frequencies.passed
    by_share = -(np.log(0.5) + np.log(0.75) / 2 + np.log(0.25) / 2) / 2
    assert frequencies.numbers == {"nll": pytest.approx(-np.log(0.8)), "frequencies_nll": pytest.approx(by_share)}
    better = gate.beats_champion_accuracy(measure_labels(good, target, champion=half), unused)
    assert better.numbers["champion_accuracy"] == pytest.approx(0.5)
    assert better.numbers["difference"] == pytest.approx(0.5)
    kept = gate.keeps_every_slice(measure_labels(half, target, champion=good, tolerance=0.4), unused)
    assert kept.numbers["clean"] == pytest.approx(0.5)
    assert not kept.passed
    assert gate.is_calibrated(measure_labels(good, target), unused).numbers["calibration_error"] == pytest.approx(0.2)
    rules = gate.rules(measure_labels(good, target))
    assert rules[:3] == (gate.predicts_the_same, gate.beats_the_frequencies, gate.is_calibrated)


def test_registered_label_probabilities_are_the_calibrated_ones() -> None:
    measured = measure_labels([[0.8, 0.2], [0.3, 0.6]], [1.0, 2.0])
    clean = measured.candidate[measured.candidate["slice"] == "clean"].set_index("clip_id")
    same = gate.predicts_the_same(measured, lambda clips: clean.loc[clips.index, ["has_a", "has_b"]])
    assert same.passed
    assert not gate.predicts_the_same(measured, lambda clips: clean.loc[clips.index, ["has_a", "has_b"]] + 0.1).passed


def measure_copies(
    clean: list[float], copies: list[tuple[float, float]], frames: int = 9, **changed: Any
) -> GateMeasurements:
    """Measurements of clean clips with these r in audio, and of copies with r and severity; anchors .2 and .8."""
    base = measure([0.1] * len(clean))
    anchors = {"clean": 0.8, "fully_degraded": 0.2, "rescaled": True}
    candidate = rows([0.1] * len(clean), "clean").assign(r_audio=clean, frames_audio=frames, kind_audio="clean")
    r, severity = np.array(copies).T
    damaged = rows([0.1] * len(copies), "clean").assign(slice="copies", r_audio=r, lost_audio=severity)
    damaged = damaged.assign(frames_audio=frames, kind_audio="copy")
    config: Any = {**base.config, "trust": {"audio": anchors}}
    return replace(base, config=config, candidate=candidate, copies=damaged, **changed)


def test_trust_tells_damaged_copies_from_clean_clips():
    copies = [(0.7, 0.0), (0.6, 0.4), (0.75, 0.5), (0.3, 0.9), (0.9, 1.0)]  # at severity 1 the modality is gone
    measured = measure_copies([0.8, 0.7], copies, trust_auroc=0.8)
    verdict = gate.trust_follows_damage(measured, unused)
    assert verdict.numbers == {"audio": pytest.approx(5 / 6), "least": 0.8}
    assert verdict.passed
    assert not gate.trust_follows_damage(replace(measured, trust_auroc=0.84), unused).passed


def test_harmless_copies_get_no_warning():
    copies = [(0.7, 0.0), (0.56, 0.0), (0.55, 0.0), (0.3, 0.9)]  # trust .6 is r .56
    measured = measure_copies([0.8], copies, harmless_warned=0.34)
    verdict = gate.harmless_is_harmless(measured, unused)
    assert verdict.numbers == {"warned": pytest.approx(1 / 3), "copies": 3, "most": 0.34}
    assert verdict.passed
    assert not gate.harmless_is_harmless(replace(measured, harmless_warned=0.3), unused).passed


@pytest.mark.parametrize("rule", gate.TRUST_RULES)
@pytest.mark.parametrize("why", ["no copies", "no r", "no frames", "not damaged"])
def test_trust_that_cannot_be_measured_is_no_refusal(rule: Any, why: str):
    measured = measure_copies([0.8], [(0.1, 0.9), (0.1, 0.0)], frames=0 if why == "no frames" else 9, trust_auroc=1.0)
    copies: Any = measured.copies
    if why == "no copies":
        measured = replace(measured, copies=None)
    elif why == "no r":
        measured = replace(measured, copies=copies.assign(r_audio=np.nan))
    elif why == "not damaged":
        measured = replace(measured, copies=copies.assign(kind_audio="clean"))
    verdict = rule(measured, unused)
    assert verdict.passed
    assert verdict.numbers == {}
    assert "not measured" in verdict.sentence
