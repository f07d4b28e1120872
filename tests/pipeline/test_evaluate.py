"""The stage evaluate: complete files for every seed, permuted quality for models that have one, no repeated work."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qamoe.config.params import Params
from qamoe.pipeline import evaluate

MODALITIES = ("text", "audio", "vision")
SLICES = ["clean", "mixed", "subsets", "swap"]


@pytest.fixture
def evaluated(
    preprocessed: Path, tiny_params: Any, tiny_checkpoint: Any, environment: dict[str, str]
) -> Callable[..., Path]:
    """Evaluate checkpoints of qamoe and mean on six clips: evaluated(quality_permutations=2)."""
    shutil.copy(preprocessed / "preprocess/valid.arrow", preprocessed / "preprocess/test.arrow")
    for model, seeds in (("qamoe", (1, 2)), ("mean", (1,))):
        for seed in seeds:
            tiny_checkpoint(preprocessed / "train" / model / str(seed), model=model, seed=seed)

    def run(**changes: Any) -> Path:
        content = tiny_params.model_dump(mode="json")
        content["seeds"] = {"mean": [1], "qamoe": [1, 2]}
        content["evaluate"] |= {"draws": 2, "mixed_draws": 2, "slices": SLICES, "quality_permutations": 2} | changes
        evaluate.run(Params.model_validate(content), preprocessed)
        return preprocessed / "evaluate"

    return run


def test_every_seed_gets_its_predictions_cells_and_permuted_quality(evaluated: Any) -> None:
    folder = evaluated()
    for seed in ("1", "2"):
        rows = pd.read_parquet(folder / "qamoe" / seed / "predictions.parquet")
        assert len(rows) == 6 * (1 + 2 + 13 + 2 * 12)
        cells = pd.read_parquet(folder / "qamoe" / seed / "cells.parquet")
        assert list(cells["slice"].unique()) == SLICES
        assert cells.groupby("metric").size().nunique() == 1
        permuted_quality = pd.read_parquet(folder / "qamoe" / seed / "broken.parquet")
        assert len(permuted_quality) == 2 * 2 * 2 * 6
        assert set(permuted_quality["slice"]) == {"mixed"}
        diagnostic = pd.read_parquet(folder / "qamoe" / seed / "diagnostic.parquet")
        counts = {"native": 12, "permuted": 2 * 12, "corruption": 12, "correctness": 12}
        assert diagnostic.groupby("intervention").size().to_dict() == counts
        mixed, native = rows[rows["slice"] == "mixed"], diagnostic[diagnostic["intervention"] == "native"]
        for column in ("clip_id", "draw", "target", *(f"r_{m}" for m in MODALITIES)):
            assert list(native[column]) == list(mixed[column])
        assert list(native["prediction"]) == pytest.approx(list(mixed["prediction"]), abs=1e-6)
    assert sorted(p.name for p in (folder / "mean/1").iterdir()) == ["cells.parquet", "digest", "predictions.parquet"]
    same = ["clip_id", "cell", "draw", *(f"lost_{m}" for m in MODALITIES)]
    mean = pd.read_parquet(folder / "mean/1/predictions.parquet")
    pd.testing.assert_frame_equal(mean[same], rows[same])


def test_current_results_are_kept_and_models_share_encoded_text(
    evaluated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qamoe")
    folder = evaluated()
    assert "evaluate qamoe: seeds 1, 2" in caplog.text
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert len(list((folder.parent / "states/evaluate").iterdir())) == 2, "encoded once for both"
    caplog.clear()
    evaluated()
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    assert "evaluate" not in caplog.text


@pytest.mark.parametrize("changes", [{"quality_permutations": 0}, {"slices": ["clean"]}])
def test_permuted_quality_is_deleted_with_its_slice_or_setting(evaluated: Any, changes: dict[str, Any]) -> None:
    folder = evaluated()
    files = [folder / "qamoe/1" / name for name in ("broken.parquet", "diagnostic.parquet")]
    assert [file.exists() for file in files] == [True, True]
    evaluated(**changes)
    assert [file.exists() for file in files] == [False, False]
