"""Define the rules of the promotion gate, which a candidate must pass on the gate split to become champion.

A rule is a function of the measurements, listed in REGRESSION_RULES, CLASSIFICATION_RULES or TRUST_RULES. Its verdict
has the name under which it is recorded (tag qamoe.rule.<name> of a version), which stays the same if the function is
renamed. registry/registry.py applies the verdicts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qamoe.config.task import has_classes
from qamoe.evaluation.auroc import probability_above
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.tracking.mlflow_store import reason

WARNED = 0.6  # trust below it is a warning (docs/guides/scoring.md)
_DAMAGED = 0.5  # severity from which a copy counts as damaged
SAME = 1e-5  # largest difference between registered and evaluated model, in label units or as a probability


@dataclass(frozen=True)
class GateMeasurements:
    """Predictions of candidate and champion on the gate split, and the limits of the rules.

    candidate, champion: rows of predictions.parquet of the slices clean and mixed, and with a champion also missing
    and noise. clips: a few raw clips by clip id, as input of the registered model. copies: rows of the candidate on the
    damaged copies of the gate clips, whose severity is in lost_<modality>; None if there are none.
    """

    config: CheckpointConfig
    candidate: pd.DataFrame
    champion: pd.DataFrame | None
    clips: pd.DataFrame
    split: str
    coverage_90: tuple[float, float]
    calibration_error: float = 1.0
    tolerance: float = 0.0
    copies: pd.DataFrame | None = None
    trust_auroc: float = 0.0
    harmless_warned: float = 1.0

    def mixed(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["slice"] == "mixed"]

    def calibrated(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return rows of the candidate with the temperature applied to the probabilities of its classes or labels."""
        from qamoe.evaluation.metrics import classes_of, labels_of
        from qamoe.models.calibration import tempered, tempered_labels

        names = labels_of(rows) or classes_of(rows)
        change = tempered_labels if labels_of(rows) else tempered
        shares = change(rows[names].to_numpy(float), self.config["calibration"]["temperature"])
        return rows.assign(**dict(zip(names, shares.T, strict=True)))

    @property
    def has_classes(self) -> bool:
        return has_classes(self.config["task"])


@dataclass(frozen=True)
class Verdict:
    """The result of one rule."""

    rule: str
    passed: bool
    numbers: dict[str, float]
    sentence: str


Predict = Callable[[pd.DataFrame], pd.DataFrame]
Rule = Callable[[GateMeasurements, Predict], Verdict]


def predicts_the_same(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Require that the registered model predicts the same as the evaluated checkpoint."""
    clean = measurements.candidate[measurements.candidate["slice"] == "clean"].set_index("clip_id")
    expected = clean.loc[measurements.clips.index]
    columns = {"score": "prediction", "variance": "variance"}  # column of the registered model: evaluated column
    if measurements.has_classes:
        expected = measurements.calibrated(expected)
        columns = {name: name for name in map(str, expected) if name.startswith(("p_", "has_"))}
    try:
        answers = registered(measurements.clips)
    except Exception as error:  # a model that fails in any way must not be promoted
        return Verdict("predicts_the_same", False, {}, f"the registered model cannot be used: {reason(error)}")
    difference = max(
        float(np.abs(answers[theirs].to_numpy() - expected[ours].to_numpy()).max()) for theirs, ours in columns.items()
    )
    passed = difference <= SAME  # False for NaN too
    sentence = (
        f"registered and evaluated model differ by {difference:.1e} on {len(expected)} clips; the limit is {SAME:g}"
    )
    return Verdict("predicts_the_same", passed, {"difference": difference, "clips": len(expected)}, sentence)


def beats_the_mean(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Without a champion, require a lower MAE on slice mixed than that of predicting the training mean."""
    rows = measurements.mixed(measurements.candidate)
    mae = float((rows["prediction"] - rows["target"]).abs().mean())
    mean = float((measurements.config["target_mean"] - rows["target"]).abs().mean())
    sentence = f"MAE {mae:.4f} on mixed; predicting the training mean gives {mean:.4f}"
    return Verdict("beats_the_mean", mae < mean, {"mae": mae, "mean_mae": mean}, sentence)


def beats_the_champion(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Require a lower MAE on slice mixed than the champion's: the paired 95 % interval over sources is below 0."""
    from qamoe.evaluation.bootstrap import paired_bootstrap

    assert measurements.champion is not None
    ours, theirs = measurements.mixed(measurements.candidate), measurements.mixed(measurements.champion)
    maes = [float((rows["prediction"] - rows["target"]).abs().mean()) for rows in (ours, theirs)]
    difference, low, high = paired_bootstrap(ours, theirs)
    numbers = {"mae": maes[0], "champion_mae": maes[1], "difference": difference, "low": low, "high": high}
    numbers["sources"] = ours["source"].nunique()
    sentence = (
        f"MAE {maes[0]:.4f} on mixed, champion {maes[1]:.4f}: difference {difference:+.4f}, "
        f"95 % interval {low:+.4f} to {high:+.4f} over {numbers['sources']} sources; it must be below 0"
    )
    return Verdict("beats_the_champion", high < 0, numbers, sentence)


def keeps_every_slice(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Require an error close to the champion's on every slice except mixed.

    The error is the MAE with a relative tolerance, or the rate of wrong classes or labels with an absolute one.
    """
    assert measurements.champion is not None
    numbers: dict[str, float] = {"tolerance": measurements.tolerance}
    costs, passed = [], True
    for name in measurements.candidate["slice"].unique():
        if name == "mixed":
            continue
        ours, theirs = (_cost(rows[rows["slice"] == name]) for rows in (measurements.candidate, measurements.champion))
        numbers |= {name: ours, f"champion_{name}": theirs}
        limit = theirs + measurements.tolerance * (1.0 if measurements.has_classes else theirs)
        passed = passed and ours <= limit
        costs.append(f"{name} {ours:.4f}, limit {limit:.4f}")
    metric = "error rate" if measurements.has_classes else "MAE"
    sentence = f"{metric} by slice: {'; '.join(costs)} ({measurements.tolerance:.0%} above the champion's)"
    return Verdict("keeps_every_slice", passed, numbers, sentence)


def _cost(rows: pd.DataFrame) -> float:
    """Return the error of one slice, with its cells weighted as in the slice's summary."""
    from qamoe.evaluation.bootstrap import weights
    from qamoe.evaluation.metrics import errors

    by_cell = pd.Series(errors(rows), rows.index).groupby(rows["cell"]).mean()
    return float((by_cell * weights(rows)).sum())


def covers_90(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Require that the calibrated 90 % intervals cover about 90 % of the targets of slice mixed."""
    rows = measurements.mixed(measurements.candidate)
    reach = measurements.config["calibration"]["sigmas"]["0.9"] * np.sqrt(rows["variance"])
    coverage = float(((rows["prediction"] - rows["target"]).abs() <= reach).mean())
    low, high = measurements.coverage_90
    sentence = f"90 % intervals cover {coverage:.1%} of the targets on mixed; allowed: {low:.0%} to {high:.0%}"
    return Verdict("covers_90", low <= coverage <= high, {"coverage": coverage, "low": low, "high": high}, sentence)


def beats_the_frequencies(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """For classes without a champion, require a lower NLL on slice mixed than that of the training frequencies."""
    from qamoe.evaluation.metrics import classes_of, labels_of
    from qamoe.models.calibration import present_labels
    from qamoe.models.heads import LEAST_SHARE

    rows = measurements.calibrated(measurements.mixed(measurements.candidate))
    target = rows["target"].to_numpy(int)
    if labels := labels_of(rows):
        has = present_labels(target, len(labels))
        odds = np.array(measurements.config["class_shares"]).clip(LEAST_SHARE, 1 - LEAST_SHARE)
        presence = rows[labels].to_numpy(float)
        return _better_likelihood(np.where(has, presence, 1 - presence), np.where(has, odds, 1 - odds))
    predicted = rows[classes_of(rows)].to_numpy(float)[np.arange(len(rows)), target]
    shares = np.array(measurements.config["class_shares"]).clip(LEAST_SHARE)
    return _better_likelihood(predicted, (shares / shares.sum())[target])


def _better_likelihood(predicted: np.ndarray, frequencies: np.ndarray) -> Verdict:
    """Compare the probabilities of the targets under the model and under the training frequencies."""
    nll, frequencies_nll = (float(-np.log(p.clip(1e-12)).mean()) for p in (predicted, frequencies))
    numbers = {"nll": nll, "frequencies_nll": frequencies_nll}
    sentence = f"NLL {nll:.4f} on mixed; predicting the training frequencies gives {frequencies_nll:.4f}"
    return Verdict("beats_the_frequencies", nll < frequencies_nll, numbers, sentence)


def beats_champion_accuracy(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """For classes, require a higher accuracy on slice mixed than the champion's: the paired interval is above 0."""
    from qamoe.evaluation.bootstrap import paired_bootstrap
    from qamoe.evaluation.metrics import errors

    assert measurements.champion is not None
    ours, theirs = measurements.mixed(measurements.candidate), measurements.mixed(measurements.champion)
    shares = [1 - float(errors(rows).mean()) for rows in (ours, theirs)]
    difference, low, high = paired_bootstrap(ours, theirs, "accuracy")
    numbers = {"accuracy": shares[0], "champion_accuracy": shares[1], "difference": difference, "low": low}
    numbers |= {"high": high, "sources": ours["source"].nunique()}
    sentence = (
        f"accuracy {shares[0]:.1%} on mixed, champion {shares[1]:.1%}: difference {difference:+.4f}, "
        f"95 % interval {low:+.4f} to {high:+.4f} over {numbers['sources']} sources; it must be above 0"
    )
    return Verdict("hits_more", low > 0, numbers, sentence)


def is_calibrated(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """For classes, require a low calibration error on slice mixed."""
    from qamoe.evaluation.metrics import of_predictions

    rows = measurements.mixed(measurements.candidate)
    error = of_predictions(rows, {}, measurements.config["calibration"]["temperature"])["calibration_error"]
    limit = measurements.calibration_error
    sentence = f"calibration error {error:.4f} on mixed; the limit is {limit:g}"
    return Verdict("is_calibrated", error <= limit, {"calibration_error": error, "most": limit}, sentence)


def trust_follows_damage(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Require that trust tells damaged recordings from clean ones, in each modality that copies damage.

    The measure is the AUROC of trust, clean clips against copies of severity .5 or more. Without copies, or without an
    estimate of reliability, it is not measured, and the rule is passed.
    """
    rule, limit = "trust_follows_damage", measurements.trust_auroc
    by_modality = _trust_of_copies(measurements)
    areas: dict[str, float] = {}
    for modality, (clean, trust, severity) in by_modality.items():
        damaged = trust[severity >= _DAMAGED]
        if len(clean) and len(damaged):
            areas[modality] = probability_above(clean, damaged)
    if not areas:
        return Verdict(rule, True, {}, "trust on damaged recordings is not measured: no damaged copies, or no r")
    listed = ", ".join(f"{area:.3f} in {modality}" for modality, area in areas.items())
    sentence = f"AUROC of trust, clean against damaged recordings: {listed}; the limit is {limit:g}"
    return Verdict(rule, min(areas.values()) >= limit, {**areas, "least": limit}, sentence)


def harmless_is_harmless(measurements: GateMeasurements, registered: Predict) -> Verdict:
    """Require that few copies under a harmless change have trust below the threshold of a warning.

    Not measured, and passed, without such copies or without an estimate of reliability.
    """
    rule, limit = "harmless_is_harmless", measurements.harmless_warned
    parts = [trust[severity == 0] for _, trust, severity in _trust_of_copies(measurements).values()]
    trust = np.concatenate(parts) if parts else np.zeros(0)
    if not len(trust):
        return Verdict(rule, True, {}, "trust under harmless changes is not measured: no such copies, or no r")
    share = float((trust < WARNED).mean())
    sentence = f"{share:.1%} of {len(trust)} harmless changes have trust below {WARNED:g}; the limit is {limit:.1%}"
    return Verdict(rule, share <= limit, {"warned": share, "copies": len(trust), "most": limit}, sentence)


def _trust_of_copies(measurements: GateMeasurements) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return for each modality that copies damage the trust of clean clips, that of copies, and the copies' severity.

    Clips without the modality are left out. A copy that lost it has severity 1, which no drawn severity reaches, and
    trust 0.
    """
    from qamoe.degradation.features import COPY

    copies, clean = measurements.copies, measurements.candidate
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    if copies is None:
        return found
    clean = clean[clean["slice"] == "clean"]
    for modality, anchors in measurements.config["trust"].items():
        damaged = copies[(copies[f"kind_{modality}"] == COPY) & (copies[f"frames_{modality}"] > 0)]
        r = [rows[f"r_{modality}"].to_numpy(float) for rows in (clean[clean[f"frames_{modality}"] > 0], damaged)]
        if not len(damaged) or np.isnan(r[1]).any():
            continue
        if anchors["rescaled"]:
            low, high = anchors["fully_degraded"], anchors["clean"]
            r = [((of_rows - low) / (high - low)).clip(0, 1) for of_rows in r]
        severity = damaged[f"lost_{modality}"].to_numpy(float)
        found[modality] = (r[0], np.where(severity < 1, r[1], 0.0), severity)
    return found


# Whether a champion exists -> rules.
REGRESSION_RULES: dict[bool, tuple[Rule, ...]] = {
    False: (predicts_the_same, beats_the_mean, covers_90),
    True: (predicts_the_same, beats_the_champion, keeps_every_slice, covers_90),
}
CLASSIFICATION_RULES: dict[bool, tuple[Rule, ...]] = {
    False: (predicts_the_same, beats_the_frequencies, is_calibrated),
    True: (predicts_the_same, beats_champion_accuracy, keeps_every_slice, is_calibrated),
}
TRUST_RULES: tuple[Rule, ...] = (trust_follows_damage, harmless_is_harmless)


def rules(measurements: GateMeasurements) -> tuple[Rule, ...]:
    """Return the rules for the task, with or without a champion."""
    by_champion = CLASSIFICATION_RULES if measurements.has_classes else REGRESSION_RULES
    return (*by_champion[measurements.champion is not None], *TRUST_RULES)
