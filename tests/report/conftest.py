"""Write the results of a small evaluation in the format of the stages, with predictions from a known rule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qamoe.config import params
from qamoe.evaluation import protocol

SLICES = ("clean", "missing", "noise", "mixed")
SIGMAS = {"0.5": 0.67, "0.9": 1.645}
SOURCES, CLIPS, EXPERTS = 24, 62, 8
# model -> error at severity 0, and increase of the error per unit of severity
RULES = {
    "mean": (1.3, 0.0),
    "concat": (0.55, 0.80),
    "moe": (0.52, 0.60),
    "qamoe": (0.50, 0.55),
    "oracle": (0.48, 0.40),
    "ablation-gate": (0.55, 0.70),
    "specialist-clean": (0.45, 1.50),
    "specialist-missing-03": (0.50, 0.56),
}
WITH_QUALITY = ("qamoe", "ablation-gate")
# model -> intervention on r -> the error of mixed, as a multiple of the native one
EXCHANGED = {
    "qamoe": {"native": 1.0, "permuted": 1.5, "corruption": 0.99, "correctness": 0.5},
    "ablation-gate": {"native": 1.0, "permuted": 1.0, "corruption": 1.0, "correctness": 1.0},
}
MODALITIES = ("text", "audio", "vision")


def clips(odd_source: str | None = None) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    sources = [f"source-{i % SOURCES:02d}" for i in range(CLIPS)]
    if odd_source is not None:
        sources = [odd_source if s == "source-05" else s for s in sources]
    target = np.clip(rng.normal(0, 1.4, CLIPS), -3, 3).round(1)
    return pd.DataFrame({"clip_id": [f"clip-{i:03d}" for i in range(CLIPS)], "source": sources, "target": target})


def predictions(
    model: str, seed: int, cells: list[protocol.Cell], present: tuple[str, ...] = MODALITIES, odd: str | None = None
) -> pd.DataFrame:
    """Return rows of predictions.parquet: error = best + slope * mean severity, and r falls with severity."""
    rng = np.random.default_rng([*model.encode(), seed])
    clip_rows = clips(odd)
    hard = np.random.default_rng(9).normal(0, 0.4, CLIPS)  # the same clips are hard for every model
    best, slope = RULES[model]
    parts = []
    for cell in cells:
        for view in cell.views:
            rows = clip_rows.assign(slice=cell.slice, cell=cell.name, draw=view.number)
            severities = np.full((CLIPS, 3), cell.severity)
            if cell.slice == "landscape":
                lost = np.random.default_rng([8, view.number]).uniform(size=(CLIPS, 3)) < cell.severity_missing
                severities = np.where(lost, 1.0, cell.severity_noise)
            if cell.slice == "mixed":
                severities = np.random.default_rng([7, view.number]).uniform(size=(CLIPS, 3))
            for column, modality in enumerate(MODALITIES):
                is_present = modality in present
                rows[f"kind_{modality}"] = cell.kind if is_present else "absent"
                rows[f"severity_{modality}"] = severities[:, column] if is_present else np.nan
                rows[f"lost_{modality}"] = severities[:, column] if is_present else np.nan
                rows[f"frames_{modality}"] = 20 if is_present else 0
                r = 0.9 - 0.4 * severities[:, column] + rng.normal(0, 0.02, CLIPS)
                rows[f"r_{modality}"] = r if is_present and model in WITH_QUALITY else np.nan
                rows[f"trust_{modality}"] = (
                    np.clip((r - 0.5) / 0.4, 0, 1) if is_present and model in WITH_QUALITY else np.nan
                )
            level = np.nanmean(severities, axis=1)
            error = (best + slope * level) * (rng.normal(0, 0.6, CLIPS) + hard) + 0.02 * seed
            rows["prediction"] = 0.1 if model == "mean" else rows["target"] + error
            rows["variance"] = (0.3 + best + slope * level) ** 2
            rows["routing"] = None
            if model in WITH_QUALITY:
                logits = np.linspace(0, 2, EXPERTS) * level[:, None] + rng.normal(0, 0.3, (CLIPS, EXPERTS))
                usage = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                rows["routing"] = list(usage.astype(np.float32))
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def write_run(
    root: Path,
    model: str,
    seed: int,
    present: tuple[str, ...] = MODALITIES,
    odd: str | None = None,
    slices: tuple[str, ...] = SLICES,
    **config: Any,
) -> None:
    settings = params.load(Path(__file__).parents[2] / "params.yaml").evaluate
    cells = protocol.plan(slices, settings.model_copy(update={"draws": 2, "mixed_draws": 6}))
    rows = predictions(model, seed, cells, present, odd)
    folder, record = root / "evaluate" / model / str(seed), root / "train" / model / str(seed)
    folder.mkdir(parents=True)
    record.mkdir(parents=True)
    with protocol.predictions_file(folder / "predictions.parquet") as append:
        append(rows)
    protocol.aggregate(rows, cells, SIGMAS).to_parquet(folder / "cells.parquet", index=False)
    trust = (
        {m: {"clean": 0.9, "fully_degraded": 0.5, "rescaled": True} for m in present} if model in WITH_QUALITY else {}
    )
    model_json = {
        "model": model,
        "seed": seed,
        "task": {"kind": "regression", "low": -3.0, "high": 3.0, "classes": []},
        "modalities": list(present),
        "selection": 0.8 - 0.01 * seed,
        "calibration": {"sigmas": SIGMAS},
        "train": {"selection": {"severities": {"missing": [0.0, 0.5], "noise": [1.0]}, "draws": 1, "seed": 1}},
        "best_epoch": 2,
        "trust": trust,
        "digests": {"data": "d1f2" * 16},
        "trained_on_generated": True,
    }
    (record / "model.json").write_text(json.dumps(model_json | config))
    if model == "qamoe":
        write_permuted_quality(folder / "broken.parquet", rows)
    if model in EXCHANGED:
        write_diagnostic(folder / "diagnostic.parquet", rows, EXCHANGED[model])
    lines = [{"epoch": e, "loss": 1 / e, "losses.task": 1 / e, "valid": 0.9, "seconds": 1.5} for e in (1, 2, 3)]
    (record / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_permuted_quality(path: Path, rows: pd.DataFrame) -> None:
    """Write slice mixed with permuted r: errors grow by 20 % across draws and by 10 % within a draw."""
    mixed = rows[rows["slice"] == "mixed"]
    error = mixed["prediction"] - mixed["target"]
    parts = [
        mixed.assign(prediction=mixed["target"] + growth * error, within=within)
        for within, growth in ((False, 1.2), (True, 1.1))
    ]
    pd.concat(parts, ignore_index=True).to_parquet(path, index=False)


def write_diagnostic(path: Path, rows: pd.DataFrame, growths: dict[str, float]) -> None:
    """Write slice mixed under interventions on r, each of which multiplies the errors."""
    mixed = rows.loc[rows["slice"] == "mixed", ["clip_id", "source", "slice", "cell", "draw", "target", "prediction"]]
    parts = [
        mixed.assign(
            prediction=mixed["target"] + growth * (mixed["prediction"] - mixed["target"]),
            intervention=name,
            permutation=number,
        )
        for name, growth in growths.items()
        for number in range(2 if name == "permuted" else 1)
    ]
    pd.concat(parts, ignore_index=True).to_parquet(path, index=False)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every type of model, one seed each; read only."""
    root = tmp_path_factory.mktemp("many")
    for model in RULES:
        write_run(root, model, 1)
    return root


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with evaluate/ and train/ of mean (seed 1), concat and qamoe (seeds 1, 2, 3); read only."""
    root = tmp_path_factory.mktemp("results")
    for model, seeds in (("mean", (1,)), ("concat", (1, 2, 3)), ("qamoe", (1, 2, 3))):
        for seed in seeds:
            write_run(root, model, seed)
    return root


@pytest.fixture(scope="session")
def make_run() -> Callable[..., None]:
    return write_run
