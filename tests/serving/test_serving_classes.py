"""Test serving a classification model: the class and calibrated probabilities instead of a score."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.cli import predict as terminal
from qamoe.inference.model_package import signature
from qamoe.inference.predict import predict
from qamoe.models import checkpoint
from qamoe.serving.model_loader import open_model
from tests.fixtures.served import Server, running, written

CLASSES = ["angry", "sad", "neutral", "happy"]
CLIPS = pd.DataFrame({"text": ["a lovely video", None, "I could not stay awake"]}, index=["x", "y", "z"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_params: Any, tiny_stats: Any) -> Path:
    task = {"kind": "classification", "low": -3.0, "high": 3.0, "classes": CLASSES}
    stats: Any = {key: value for key, value in tiny_stats.items() if not key.startswith("target_")}
    stats |= {"task": task, "class_shares": [0.4, 0.1, 0.2, 0.3]}
    inputs = {"text": 384, "audio": 2, "vision": 2}
    config: Any = checkpoint.untrained_config(
        tiny_params, "qamoe", 1, stats, inputs, {"params": "p", "data": "d", "code": "c"}
    )
    anchors = {m: {"clean": 0.8, "fully_degraded": 0.4, "rescaled": True} for m in inputs}
    config |= {"selection": 1.0, "best_epoch": 1, "calibration": {"temperature": 2.0}, "trust": anchors}
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("classes") / "qamoe" / "1"
    checkpoint.save(folder, checkpoint.make("qamoe", config).state_dict(), config, [])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(lambda: open_model("", folder)) as server:
        yield server


def test_probabilities_are_at_the_temperature(folder: Path) -> None:
    trained = checkpoint.load(folder)
    predictions = predict(trained, CLIPS)
    columns = [f"p_{name}" for name in CLASSES]
    assert list(predictions)[:5] == ["class", *columns]
    probabilities = predictions[columns].to_numpy()
    assert probabilities.sum(1) == pytest.approx(1)
    assert list(predictions["class"]) == [CLASSES[index] for index in probabilities.argmax(1)]
    trained.config["calibration"]["temperature"] = 1.0
    powers = predict(trained, CLIPS)[columns].to_numpy() ** 0.5
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-7)
    assert predict(trained, CLIPS.iloc[:0]).shape == (0, predictions.shape[1])


def test_the_signature_names_the_classes(folder: Path) -> None:
    outputs = signature(checkpoint.load(folder).config["task"]).outputs
    assert outputs.input_names() == [*predict(checkpoint.load(folder), CLIPS)]


def test_the_server_answers_with_classes(server: Server) -> None:
    _, about = server.ask("GET", "/model")
    assert (about["classes"], about["low"], about["high"]) == (CLASSES, None, None)
    status, answer = server.ask("POST", "/predict", {"clips": [{"text": "a lovely video"}]})
    assert status == 200
    clip = answer["clips"][0]
    assert list(clip["probabilities"]) == CLASSES
    assert clip["label"] == max(CLASSES, key=clip["probabilities"].__getitem__)
    assert "score" not in clip
    assert clip["trust"]["audio"] == 0


def test_the_terminal_shows_the_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.predict([], "a lovely video", None, "", folder, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert list(answer)[:6] == ["clip", "class", "interval", "trust", "reasons", "probabilities"]
    assert answer["interval"] is None
    terminal.predict([], "a lovely video", None, "", folder, as_json=False)
    shown = capsys.readouterr().out
    assert re.search(rf"class\W+{answer['class']}", shown)
    assert f"{answer['class']} {answer['probabilities'][answer['class']]:.0%}" in shown


@pytest.mark.slow
def test_a_table_of_classes_shows_the_probability(
    folder: Path, voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.wav", "b.wav"):
        written(tmp_path / name, voice)
    assert terminal.predict([tmp_path / "a.wav", tmp_path / "b.wav"], None, None, "", folder, as_json=True)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    terminal.predict([tmp_path / "a.wav", tmp_path / "b.wav"], None, None, "", folder, as_json=False)
    shown = capsys.readouterr().out
    assert "probability" in shown
    assert shown.count(answers[0]["class"]) == 2
    assert f"{answers[0]['probabilities'][answers[0]['class']]:.0%}" in shown


def test_a_folder_of_clips_gets_classes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qamoe.pipeline import score
    from qamoe.serving import model_loader

    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    (tmp_path / "manifest.csv").write_text("clip_id,path,text\na,clip.mp4,a lovely video\nb,clip.mp4,\n")
    monkeypatch.setattr(model_loader, "open_model", lambda model, _: open_model("", folder))
    for _ in range(2):  # the second run reads the kept scores
        score.run(tmp_path, tmp_path / "out", "models:/qa-moe@champion")
        rows: Any = pd.read_parquet(tmp_path / "out/scores.parquet").set_index("clip_id")
        probabilities = rows.loc["a", [f"p_{name}" for name in CLASSES]]
        assert rows.loc["a", "class"] == CLASSES[int(np.argmax(probabilities))]
        assert probabilities.sum() == pytest.approx(1)
        assert rows.loc["b", [f"p_{name}" for name in CLASSES]].isna().all(), "no modality of clip b can be used"
        assert pd.isna(rows.loc["b", "class"])
        assert rows.loc["a", "text.length"] == pytest.approx(np.log1p(3))
        assert rows.loc["b", "text.absent"] == 1


def test_the_server_answers_with_labels(
    server: Server, tiny_multilabel: Callable[[Path], Path], tmp_path: Path
) -> None:
    assert not server.ask("GET", "/model")[1]["multilabel"]
    folder = tiny_multilabel(tmp_path / "qamoe" / "1")
    with running(lambda: open_model("", folder)) as labels:
        assert labels.ask("GET", "/model")[1]["multilabel"]
        status, answer = labels.ask("POST", "/predict", {"clips": [{"text": "a lovely video"}]})
    assert status == 200
    assert answer["clips"][0]["labels"] == ["happy", "sad", "fear"]
    assert "label" not in answer["clips"][0]


def test_a_folder_of_clips_gets_labels(
    tiny_multilabel: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qamoe.pipeline import score
    from qamoe.serving import model_loader

    folder = tiny_multilabel(tmp_path / "qamoe" / "1")
    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    (tmp_path / "manifest.csv").write_text("clip_id,path,text\na,clip.mp4,a lovely video\nb,clip.mp4,\n")
    monkeypatch.setattr(model_loader, "open_model", lambda model, _: open_model("", folder))
    for _ in range(2):  # the second run reads the kept scores
        score.run(tmp_path, tmp_path / "out", "models:/qa-moe@champion", transcribe=False)
        rows: Any = pd.read_parquet(tmp_path / "out/scores.parquet").set_index("clip_id")
        assert rows.loc["a", "labels"] == "happy;sad;fear"
        assert (rows.loc["a", ["has_happy", "has_sad", "has_fear"]] > 0.5).all()
        assert pd.isna(rows.loc["b", "labels"]), "no modality of clip b can be used"
        assert rows.loc["b", ["has_happy", "has_sad", "has_fear"]].isna().all()
