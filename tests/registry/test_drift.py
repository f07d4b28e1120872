"""Test that drift raises an alarm for degraded clips, but not for usual clips of new sources."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.registry.drift import LEAST, SOURCE, columns, describe, drift, with_reliability

TEXT = {"unk": 100, "special": [0, 101, 102], "vocabulary": 200, "frequencies": [[150, 7], [151, 1]]}


def sources(count: int, random: np.random.Generator, clips: int = 8, shift: float = 0.0) -> pd.DataFrame:
    """Return clips whose variance between speakers equals the variance within a speaker."""
    speaker = random.standard_normal((count, 1, 4))
    values = (speaker + random.standard_normal((count, clips, 4)) + shift).reshape(-1, 4)
    described = pd.DataFrame(values, columns=["audio.level", "audio.change", "vision.level", "text.rarity"])
    return described.assign(**{SOURCE: np.repeat([f"s{i}" for i in range(count)], clips)})


def test_describe_computes_the_documented_features() -> None:
    stats = {"modalities": ["text", "audio"], "text": TEXT}
    x = np.array([[1.0, -1.0], [0.0, 2.0]], np.float32)
    clips: list[dict[str, np.ndarray]] = [
        {"text": np.array([101, 150, 100, 150, 102]), "audio": x},
        {"text": np.zeros(0, np.int64), "audio": x[:1]},
        {"text": np.array([101, 102]), "audio": x[:0]},
    ]
    described = describe(clips, stats)
    assert list(described) == columns(["text", "audio"])
    first, second, third = (described.iloc[i].to_dict() for i in range(3))
    common, rare = -np.log(8 / 208), -np.log(1 / 208)
    assert first["text.rarity"] == pytest.approx((2 * common + rare) / 3)
    assert first["text.unknown"] == pytest.approx(1 / 3)
    assert first["text.length"] == pytest.approx(np.log(4))
    assert (first["audio.level"], first["audio.change"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert first["audio.absent"] == 0
    assert (second["text.absent"], third["audio.absent"]) == (1, 1)
    assert np.isnan([second["text.length"], second["audio.change"], third["audio.level"], third["text.rarity"]]).all()
    assert third["text.length"] == 0, "CLS and SEP do not count"


def test_reliability_of_an_absent_modality_is_left_out() -> None:
    described = pd.DataFrame({"audio.absent": [0.0, 1.0], "text.absent": [0.0, 0.0]})
    extended = with_reliability(described, pd.DataFrame({"r_audio": [0.7, 0.9], "r_text": [np.nan, np.nan]}))
    assert extended["audio.r"].tolist() == [0.7, pytest.approx(np.nan, nan_ok=True)]
    assert "text.r" not in extended, "the model has no r for text"


@pytest.mark.integration
def test_new_sources_of_the_same_distribution_raise_no_alarm() -> None:
    """A test that treats clips as independent raises many alarms here, as `naive` counts."""
    from scipy.stats import ks_2samp

    alarms = naive = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        reference, new = sources(24, random), sources(6, random)
        alarms += drift(reference, new).alarm
        features = [column for column in reference if column != SOURCE]
        naive += min(ks_2samp(reference[f], new[f]).pvalue for f in features) < 0.01 / len(features)
    assert alarms <= 1
    assert naive >= 8


@pytest.mark.parametrize("count", [4, 40])
def test_degradation_raises_an_alarm_that_names_the_feature(count: int) -> None:
    random = np.random.default_rng(1)
    reference, new = sources(24, random), sources(count, random)
    new["audio.change"] += 6
    result = drift(reference, new)
    assert result.alarm
    assert result.p == pytest.approx(0.002)
    assert re.match(rf"drift: ALARM .*\b{8 * count} clips.*p 0\.002.*audio\.change ", result.sentence)
    assert "text.rarity" not in result.sentence
    assert result.features.set_index("feature")["p"].drop("audio.change").min() > 0.01


def test_a_missing_modality_is_drift() -> None:
    random = np.random.default_rng(2)
    reference, new = (sources(n, random).assign(**{"vision.absent": 0.0}) for n in (24, 5))
    new["vision.absent"], new["vision.level"] = 1.0, np.nan
    features: Any = drift(reference, new).features.set_index("feature")
    assert features.loc["vision.absent", "p"] < 0.01


def few_clips(reference: pd.DataFrame, new: pd.DataFrame) -> Any:
    return reference, new.head(LEAST - 1)


def few_sources(reference: pd.DataFrame, new: pd.DataFrame) -> Any:
    return reference[reference[SOURCE].isin(["s0", "s1", "s2"])], new


def none(reference: pd.DataFrame, new: pd.DataFrame) -> Any:
    return reference, new.head(0)


@pytest.mark.parametrize("reduce", [few_clips, few_sources, none])
def test_too_few_clips_or_sources_are_not_tested(reduce: Any) -> None:
    random = np.random.default_rng(3)
    reference, new = reduce(sources(24, random), sources(6, random, shift=9.0))
    result = drift(reference, new)
    assert (result.p, result.alarm) == (None, False)
    assert f"not tested, {len(new)} new clips" in result.sentence
