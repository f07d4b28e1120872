"""The rules of the gate: what a candidate must show on the gate split before it becomes champion.

A rule is one function of the evidence, named in NUMBERS or CLASSES, by the task that it judges. Its verdict says the
name under which it is recorded (the tag qamoe.rule.<name> of a version), which stays when a function is renamed. What
is done with the verdicts is in registry/registry.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qamoe.config.task import is_classification
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.tracking.mlflow_store import reason

SAME = 1e-5  # label units, or probability: how far the registered model may be from the evaluated one


@dataclass(frozen=True)
class Evidence:
    """What was measured on the gate split, rows as in predictions.parquet: slices clean and mixed, and beside a
    champion missing and noise too.

    `clips` are a few raw clips by clip id, as the registered model takes them.
    """

    config: CheckpointConfig
    candidate: pd.DataFrame
    champion: pd.DataFrame | None
    clips: pd.DataFrame
    split: str
    coverage_90: tuple[float, float]
    calibration_error: float = 1.0
    tolerance: float = 0.0

    def mixed(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["slice"] == "mixed"]

    def calibrated(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The candidate's rows with its class probabilities at its temperature."""
        from qamoe.evaluation.metrics import classes_of
        from qamoe.models.calibration import tempered

        names = classes_of(rows)
        shares = tempered(rows[names].to_numpy(float), self.config["calibration"]["temperature"])
        return rows.assign(**dict(zip(names, shares.T, strict=True)))

    @property
    def of_classes(self) -> bool:
        return is_classification(self.config["task"])


@dataclass(frozen=True)
class Verdict:
    """What one rule found."""

    rule: str
    passed: bool
    numbers: dict[str, float]
    sentence: str


Predict = Callable[[pd.DataFrame], pd.DataFrame]
Rule = Callable[[Evidence, Predict], Verdict]


def predicts_the_same(evidence: Evidence, registered: Predict) -> Verdict:
    """The registered model predicts what the evaluated checkpoint predicted."""
    clean = evidence.candidate[evidence.candidate["slice"] == "clean"].set_index("clip_id")
    expected = clean.loc[evidence.clips.index]
    columns = {"score": "prediction", "variance": "variance"}  # theirs: ours
    if evidence.of_classes:
        expected = evidence.calibrated(expected)
        columns = {name: name for name in map(str, expected) if name.startswith("p_")}
    try:
        answers = registered(evidence.clips)
    except Exception as error:  # whatever the matter is, such a model serves nobody
        return Verdict("predicts_the_same", False, {}, f"the registered model cannot be used: {reason(error)}")
    apart = max(
        float(np.abs(answers[theirs].to_numpy() - expected[ours].to_numpy()).max()) for theirs, ours in columns.items()
    )
    passed = apart <= SAME  # False for NaN too
    sentence = f"on {len(expected)} clips the registered model is {apart:.1e} from the evaluated one, at most {SAME:g}"
    return Verdict("predicts_the_same", passed, {"difference": apart, "clips": len(expected)}, sentence)


def beats_the_mean(evidence: Evidence, registered: Predict) -> Verdict:
    """Without a champion: a lower error on slice mixed than always answering the training mean."""
    rows = evidence.mixed(evidence.candidate)
    mae = float((rows["prediction"] - rows["target"]).abs().mean())
    mean = float((evidence.config["target_mean"] - rows["target"]).abs().mean())
    sentence = f"MAE {mae:.4f} on mixed, {mean:.4f} by always answering the training mean"
    return Verdict("beats_the_mean", mae < mean, {"mae": mae, "mean_mae": mean}, sentence)


def beats_the_champion(evidence: Evidence, registered: Predict) -> Verdict:
    """A lower error on slice mixed than the champion's, beyond the paired 95 % interval over sources."""
    from qamoe.evaluation.bootstrap import paired_bootstrap

    assert evidence.champion is not None
    ours, theirs = evidence.mixed(evidence.candidate), evidence.mixed(evidence.champion)
    maes = [float((rows["prediction"] - rows["target"]).abs().mean()) for rows in (ours, theirs)]
    difference, low, high = paired_bootstrap(ours, theirs)
    numbers = {"mae": maes[0], "champion_mae": maes[1], "difference": difference, "low": low, "high": high}
    numbers["sources"] = ours["source"].nunique()
    sentence = (
        f"MAE {maes[0]:.4f} on mixed, the champion's {maes[1]:.4f}: difference {difference:+.4f}, "
        f"95 % interval {low:+.4f} to {high:+.4f} over {numbers['sources']} sources; it must lie below 0"
    )
    return Verdict("beats_the_champion", high < 0, numbers, sentence)


def keeps_every_slice(evidence: Evidence, registered: Predict) -> Verdict:
    """On no other slice much worse than the champion: error, of classes the share of misses, within the tolerance."""
    assert evidence.champion is not None
    numbers: dict[str, float] = {"tolerance": evidence.tolerance}
    costs, passed = [], True
    for name in evidence.candidate["slice"].unique():
        if name == "mixed":
            continue
        ours, theirs = (
            _cost(evidence, rows[rows["slice"] == name]) for rows in (evidence.candidate, evidence.champion)
        )
        numbers |= {name: ours, f"champion_{name}": theirs}
        most = theirs + evidence.tolerance * (1.0 if evidence.of_classes else theirs)
        passed = passed and ours <= most
        costs.append(f"{name} {ours:.4f}, allowed {most:.4f}")
    what = "misses" if evidence.of_classes else "MAE"
    sentence = f"{what} by slice: {'; '.join(costs)} ({evidence.tolerance:.0%} above the champion's)"
    return Verdict("keeps_every_slice", passed, numbers, sentence)


def _cost(evidence: Evidence, rows: pd.DataFrame) -> float:
    """The error of one slice, its cells weighed as in the slice's summary."""
    from qamoe.evaluation.bootstrap import weights

    gap = (rows["prediction"] - rows["target"]).abs()
    by_cell = ((gap > 0) if evidence.of_classes else gap).groupby(rows["cell"]).mean()
    return float((by_cell * weights(rows)).sum())


def covers_90(evidence: Evidence, registered: Predict) -> Verdict:
    """The calibrated 90 % intervals hold about that share of the targets of slice mixed."""
    rows = evidence.mixed(evidence.candidate)
    reach = evidence.config["calibration"]["sigmas"]["0.9"] * np.sqrt(rows["variance"])
    coverage = float(((rows["prediction"] - rows["target"]).abs() <= reach).mean())
    low, high = evidence.coverage_90
    sentence = f"90 % intervals hold {coverage:.1%} of the targets on mixed, allowed are {low:.0%} to {high:.0%}"
    return Verdict("covers_90", low <= coverage <= high, {"coverage": coverage, "low": low, "high": high}, sentence)


def beats_the_frequencies(evidence: Evidence, registered: Predict) -> Verdict:
    """Of classes, without a champion: a smaller -log likelihood on slice mixed than the training frequencies have."""
    from qamoe.evaluation.metrics import classes_of
    from qamoe.models.heads import LEAST_SHARE

    rows = evidence.calibrated(evidence.mixed(evidence.candidate))
    target = rows["target"].to_numpy(int)
    of_target = rows[classes_of(rows)].to_numpy(float)[np.arange(len(rows)), target]
    shares = np.array(evidence.config["class_shares"]).clip(LEAST_SHARE)
    frequencies = (shares / shares.sum())[target]
    nll, theirs = (float(-np.log(shares.clip(1e-12)).mean()) for shares in (of_target, frequencies))
    sentence = f"NLL {nll:.4f} on mixed, {theirs:.4f} by always answering the training frequencies"
    return Verdict("beats_the_frequencies", nll < theirs, {"nll": nll, "frequencies_nll": theirs}, sentence)


def beats_champion_accuracy(evidence: Evidence, registered: Predict) -> Verdict:
    """Of classes: a higher accuracy on slice mixed than the champion's, beyond the paired interval over sources."""
    from qamoe.evaluation.bootstrap import paired_bootstrap

    assert evidence.champion is not None
    ours, theirs = evidence.mixed(evidence.candidate), evidence.mixed(evidence.champion)
    shares = [float((rows["prediction"] == rows["target"]).mean()) for rows in (ours, theirs)]
    difference, low, high = paired_bootstrap(ours, theirs, "accuracy")
    numbers = {"accuracy": shares[0], "champion_accuracy": shares[1], "difference": difference, "low": low}
    numbers |= {"high": high, "sources": ours["source"].nunique()}
    sentence = (
        f"accuracy {shares[0]:.1%} on mixed, the champion's {shares[1]:.1%}: difference {difference:+.4f}, "
        f"95 % interval {low:+.4f} to {high:+.4f} over {numbers['sources']} sources; it must lie above 0"
    )
    return Verdict("hits_more", low > 0, numbers, sentence)


def is_calibrated(evidence: Evidence, registered: Predict) -> Verdict:
    """Of classes: confidence is about the share of hits on slice mixed."""
    from qamoe.evaluation.metrics import classes_of, classification

    rows = evidence.calibrated(evidence.mixed(evidence.candidate))
    error = classification(rows[classes_of(rows)].to_numpy(float), rows["target"].to_numpy())["calibration_error"]
    most = evidence.calibration_error
    sentence = f"calibration error {error:.4f} on mixed, allowed is at most {most:g}"
    return Verdict("is_calibrated", error <= most, {"calibration_error": error, "most": most}, sentence)


# By whether there is a champion.
NUMBERS = {
    False: (predicts_the_same, beats_the_mean, covers_90),
    True: (predicts_the_same, beats_the_champion, keeps_every_slice, covers_90),
}
CLASSES = {
    False: (predicts_the_same, beats_the_frequencies, is_calibrated),
    True: (predicts_the_same, beats_champion_accuracy, keeps_every_slice, is_calibrated),
}


def rules(evidence: Evidence) -> tuple[Rule, ...]:
    """Those that judge this evidence: by its task, and by whether there is a champion."""
    return (CLASSES if evidence.of_classes else NUMBERS)[evidence.champion is not None]
