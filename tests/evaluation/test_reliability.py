"""Evidence on reliability, on predictions with a known rule."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from qamoe.errors import UserError
from qamoe.evaluation.reliability import (
    auroc,
    coverage,
    covered_share,
    curves,
    permuted_quality,
    spearman,
    spread_when_all_is_lost,
)

CLIPS = 12
SEVERITIES = np.round(np.arange(11) / 10, 1)


def graded(
    name: str, prefix: str, r_of: Callable[..., Any], frames: np.ndarray, draws: int = 3, seed: int = 1
) -> pd.DataFrame:
    """Return slice `name` with audio's r from r_of(severity, lost, rng) and no r of text; frames are lost by chance."""
    rng = np.random.default_rng(seed)
    parts = []
    for severity in SEVERITIES:
        for draw in range(draws if severity else 1):
            lost = rng.binomial(np.maximum(frames, 1), severity) / np.maximum(frames, 1)
            parts.append(
                pd.DataFrame({
                    "clip_id": [f"c{i:02d}" for i in range(CLIPS)], "source": [f"s{i // 2}" for i in range(CLIPS)],
                    "slice": name, "cell": f"{prefix}-{severity:.1f}", "draw": draw, "seed": seed, "target": 0.0,
                    "prediction": 0.0, "r_text": np.nan, "frames_audio": frames,
                    "severity_audio": np.float32(severity), "lost_audio": np.float32(lost),
                    "r_audio": np.float32(r_of(severity, lost, rng)),
                })
            )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def only(result: pd.DataFrame) -> pd.Series:
    assert len(result) == 1
    return result.iloc[0]


def test_r_that_falls_with_the_lost_share_has_correlation_1() -> None:
    rows = graded("missing", "missing", lambda s, lost, rng: 0.9 - 0.4 * lost, np.full(CLIPS, 40))
    result = spearman(rows)
    assert list(result["modality"].unique()) == ["audio"]
    assert result["spearman"].to_numpy() == pytest.approx(1)
    rising = rows.assign(r_audio=1 - rows["r_audio"])
    assert spearman(rising)["spearman"].to_numpy() == pytest.approx(-1)


def test_spearman_is_scipys_over_means_of_draws() -> None:
    rows = graded("noise", "noise", lambda s, lost, rng: 0.9 - 0.3 * s + rng.normal(0, 0.1, CLIPS), np.full(CLIPS, 20))
    expected = []
    for _, clip in rows.groupby("clip_id"):
        mean = clip.groupby("severity_audio")[["r_audio", "lost_audio"]].mean().round(6)
        expected.append(spearmanr(mean["r_audio"], -mean["lost_audio"]).statistic)
    result = spearman(rows)
    assert result["spearman"].to_numpy() == pytest.approx(np.mean(expected), abs=1e-6)
    whole = only(result[result["seed"] == "all"])
    assert whole["low"] < whole["spearman"] < whole["high"]


def test_short_clips_and_a_constant_r() -> None:
    frames = np.array([7] * 4 + [8] * 8)
    rows = graded("burst", "burst", lambda s, lost, rng: 0.9 - 0.4 * lost, frames)
    short = rows["frames_audio"] < 8
    rows.loc[short, "r_audio"] = rows.loc[short, "lost_audio"]  # would count as -1
    result = only(spearman(rows).query("seed == 'all'"))
    assert (result["clips"], result["spearman"]) == (8, pytest.approx(1))
    assert spearman(rows.assign(r_audio=0.5))["spearman"].tolist() == [0, 0]


def test_seeds_are_averaged_and_named() -> None:
    frames = np.full(CLIPS, 30)
    falls = graded("missing", "missing", lambda s, lost, rng: 1 - lost, frames, seed=1)
    rises = graded("missing", "missing", lambda s, lost, rng: lost, frames, seed=2)
    result = spearman(pd.concat([falls, rises], ignore_index=True)).set_index("seed")["spearman"]
    assert result.to_dict() == pytest.approx({1: 1.0, 2: -1.0, "all": 0.0})


def test_slice_alone_has_a_curve_per_kind_of_the_degraded_modality() -> None:
    frames = np.full(CLIPS, 30)
    noise = graded("alone", "alone-audio-noise", lambda s, lost, rng: np.full(CLIPS, 1 - s), frames)
    burst = graded("alone", "alone-audio-burst", lambda s, lost, rng: lost, frames)
    text = graded("alone", "alone-text-burst", lambda s, lost, rng: lost, frames)
    rows = pd.concat([noise, burst, text], ignore_index=True)
    assert {(where["kind"], where["modality"]) for where, _ in curves(rows)} == {("noise", "audio"), ("burst", "audio")}
    result = spearman(rows).query("seed == 'all'").set_index("kind")["spearman"]
    assert result["burst"] == pytest.approx(-1)
    assert auroc(rows).query("kind == 'noise'")["auroc"].tolist() == [1.0] * 4


def test_a_severity_that_a_clip_lacks_is_refused() -> None:
    rows = graded("missing", "missing", lambda s, lost, rng: 1 - lost, np.full(CLIPS, 30))
    with pytest.raises(UserError, match="missing, audio"):
        spearman(rows[~((rows["clip_id"] == "c03") & (rows["cell"] == "missing-0.4"))])


def test_auroc_has_clean_as_its_positive_class() -> None:
    frames = np.array([0] * 2 + [20] * 10)
    rows = graded("noise", "noise", lambda s, lost, rng: 0.8 - 0.1 * s + rng.normal(0, 0.1, CLIPS), frames)
    result = auroc(rows).set_index("severity")["auroc"]
    assert list(result.index) == [0.3, 0.5, 0.7, 1.0]
    selected = rows[(rows["frames_audio"] > 0) & rows["cell"].isin(["noise-0.0", "noise-0.7"])]
    assert result[0.7] == pytest.approx(roc_auc_score(selected["cell"] == "noise-0.0", selected["r_audio"]))
    tied = auroc(rows.assign(r_audio=0.5))["auroc"]
    assert tied.tolist() == [0.5] * 4


def mixed(error: float, draws: int, source_effect: float = 0.0) -> pd.DataFrame:
    clips = pd.DataFrame(
        {"clip_id": [f"c{i:02d}" for i in range(CLIPS)], "source": [f"s{i // 2}" for i in range(CLIPS)]}
    )
    extra = source_effect * np.repeat(np.arange(CLIPS // 2), 2)
    return pd.concat(
        [
            clips.assign(slice="mixed", cell="mixed", draw=d, seed=s, target=1.0, prediction=1.0 + error + extra)
            for d in range(draws)
            for s in (1, 2)
        ],
        ignore_index=True,
    )


def test_permuted_quality_is_the_relative_rise() -> None:
    result = permuted_quality(mixed(0.5, 10), mixed(0.55, 20))
    assert (result.rise, result.low, result.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (result.mae, result.intact) == pytest.approx((0.55, 0.5))
    unequal = permuted_quality(mixed(0.5, 3), mixed(0.5, 4, source_effect=0.1))
    assert unequal.low < unequal.rise < unequal.high
    assert unequal.rise == pytest.approx(0.25 / 0.5)


def test_permuted_quality_of_other_clips_is_refused() -> None:
    with pytest.raises(UserError, match=r"broken\.parquet.*predictions\.parquet"):
        permuted_quality(mixed(0.5, 3), mixed(0.5, 3).query("clip_id != 'c00'"))


def test_spread_is_that_of_predictions_at_full_loss() -> None:
    target = np.linspace(-2, 2, CLIPS)
    rows = pd.DataFrame({
        "clip_id": [f"c{i:02d}" for i in range(CLIPS)] * 2, "cell": ["missing-1.0"] * CLIPS + ["missing-0.9"] * CLIPS,
        "seed": 3, "target": np.tile(target, 2), "prediction": np.concatenate([0.1 * target + 1, target]),
    })  # fmt: skip
    assert spread_when_all_is_lost(rows).to_dict() == pytest.approx({3: 0.1})


def test_coverage_uses_each_seeds_own_sigmas() -> None:
    rows = pd.concat([mixed(1.0, 2).query("seed == 1"), mixed(1.0, 2).query("seed == 2")]).assign(variance=4.0)
    covered = coverage(rows, {1: {"0.9": 0.6}, 2: {"0.9": 0.4}})
    assert covered.groupby("seed")["covered"].mean().to_dict() == {1: 1.0, 2: 0.0}
    assert covered_share(covered) == (0.5, 0.5, 0.5)
