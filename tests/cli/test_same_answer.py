"""`qamoe predict` on a single clip gives the same prediction as the stages extract, preprocess and evaluate."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.cli import predict
from qamoe.cli.inputs import InputOptions, inputs_of
from qamoe.data.arrow_store import Store
from qamoe.data.clip import MediaSpan
from qamoe.data.synthetic.corpus import generate
from qamoe.inference.extraction_worker import extract_file
from qamoe.models import checkpoint
from qamoe.pipeline import evaluate, extract, preprocess


@pytest.mark.slow
def test_a_video_without_a_span_has_the_same_frames_as_in_extract(
    corpus: Path, tiny_params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAMOE_WORKERS", "1")
    content = tiny_params.model_dump(mode="json")
    content["extract"]["corpus"] = {"kind": "clips", "path": str(corpus)}
    params = type(tiny_params).model_validate(content)
    extract.run(params, tmp_path)
    (clip,) = inputs_of(MediaSpan(clip_id="a", path=corpus / "film.mp4"), InputOptions())
    assert clip.span is not None
    extractors = {m: getattr(params.extract, m) for m in ("audio", "vision")}
    extracted = extract_file(clip.span.path, extractors, clip.span.start_s, clip.span.end_s)
    for modality, frames in extracted.frames.items():
        store = Store(tmp_path / "extract" / f"{modality}.arrow")
        np.testing.assert_array_equal(frames, store.sequence("frames", store.clip_ids.index("a")))
    assert {modality: len(frames) for modality, frames in extracted.frames.items()} == {"audio": 29, "vision": 8}


@pytest.mark.slow
def test_a_clip_has_the_same_prediction_as_in_evaluate(
    tmp_path: Path, tiny_params: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"QAMOE_TRACKING": "off", "QAMOE_DEVICE": "cpu", "QAMOE_WORKERS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        torch, "set_num_threads", lambda _: None
    )  # it would also affect the other tests of this process
    data, out = tmp_path / "data", tmp_path / "artifacts"
    generate(data, clips=6, seed=3, task="regression")
    content = tiny_params.model_dump(mode="json")
    content["extract"]["corpus"] = {"kind": "sample", "path": str(data)}
    content["evaluate"] |= {"slices": ["clean"]}
    content["seeds"] = {"qamoe": [1]}
    params = type(tiny_params).model_validate(content)
    extract.run(params, out)
    preprocess.run(params, out)
    stats = json.loads((out / "preprocess" / "stats.json").read_text())
    inputs = {"text": 384} | {m: len(stats[m]["kept"]) for m in ("audio", "vision")}
    config: Any = checkpoint.untrained_config(
        params, "qamoe", 1, stats, inputs, {"params": "p", "data": "d", "code": "c"}
    )
    anchors = {m: {"clean": 0.8, "fully_degraded": 0.4, "rescaled": True} for m in inputs}
    sigmas = {"sigmas": {"0.5": 0.7, "0.8": 1.3, "0.9": 1.7, "0.95": 2.0}}
    config |= {"selection": 1.0, "best_epoch": 1, "calibration": sigmas, "trust": anchors}
    torch.manual_seed(2)
    folder = out / "train" / "qamoe" / "1"
    checkpoint.save(folder, checkpoint.make("qamoe", config).state_dict(), config, [])
    evaluate.run(params, out)
    batch = pd.read_parquet(out / "evaluate/qamoe/1/predictions.parquet").set_index("clip_id")
    with (data / "manifest.csv").open(newline="") as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}

    def assert_same(line: dict[str, Any], clip_id: str) -> None:
        expected = batch.loc[clip_id]
        assert line["score"] == pytest.approx(expected["prediction"], abs=1e-5)
        assert line["variance"] == pytest.approx(expected["variance"], abs=1e-5)
        for modality in inputs:
            assert line["r"][modality] == pytest.approx(expected[f"r_{modality}"], abs=1e-5)
            assert line["trust"][modality] == pytest.approx(expected[f"trust_{modality}"], abs=1e-5)

    assert len(batch)
    for clip_id in batch.index:
        media, text = data / rows[clip_id]["path"], rows[clip_id]["text"]
        capsys.readouterr()
        assert predict.predict([media], text, None, "", folder, as_json=True)
        assert_same(json.loads(capsys.readouterr().out), clip_id)
    assert predict.predict([data], None, None, "", folder, as_json=True)
    answers = {line["clip"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(answers) == set(rows)
    assert len({line["score"] for line in answers.values()}) == len(rows)
    for clip_id in batch.index:
        assert_same(answers[clip_id], clip_id)
