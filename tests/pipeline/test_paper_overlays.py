"""The overlays of the paper on made corpora of each layout: paper and paper-public train on its spectrum."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from qamoe.config import params as parameters
from qamoe.config.overlay import experiment_content, overlaid
from qamoe.models import checkpoint
from qamoe.pipeline import evaluate, extract, preprocess, report, train
from qamoe.report.landscape import content

ROOT = Path(__file__).parents[2]
CLIPS = {"train": 40, "valid": 8, "test": 8}
MINTREC = {"train": "train", "valid": "dev", "test": "test"}
SMALL: dict[str, Any] = {
    "train": {"common": {"epochs": 2, "degrade": {"views": 2}}},
    # minilm: a test fetches no weights.
    "models": {"encoders": {"width": 8, "heads": 2, "layers": 0, "text": {"encoder": "minilm"}}},
    "seeds": {"mean": None, "moe": None, "qamoe": None, "concat": [1], "paper": [1], "paper-public": [1]},
    "evaluate": {"slices": ["clean", "landscape"], "landscape": {"levels": [0.0, 0.7]}, "quality_permutations": 0},
}

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def write_mmsa(path: Path) -> None:
    draws = np.random.default_rng(1)
    splits = {}
    for split, count in CLIPS.items():
        audio, vision = (draws.standard_normal((count, 6, size)).astype(np.float32) for size in (74, 35))
        labels = np.linspace(-3, 3, count).round(2)
        splits[split] = {"id": [f"{split}{i}$_$0" for i in range(count)], "regression_labels": labels}
        splits[split] |= {
            "raw_text": [f"clip number {i} was fine" for i in range(count)],
            "audio": audio,
            "vision": vision,
        }
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(splits))


def write_mintrec(folder: Path) -> None:
    draws = np.random.default_rng(1)
    audio, video = {}, {}
    folder.mkdir()
    labels = ["Complain", "Praise", "Apologise", "Thank"]
    for split, name in MINTREC.items():
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        for i in range(CLIPS[split]):
            clip = f"S0{i % 5}_{split}_{i}"
            lines.append(f"S0{i % 5}\t{split}\t{i}\tthis is number {i}\t{labels[i % 4]}")
            audio[clip] = torch.tensor(draws.standard_normal((5, 768)), dtype=torch.float32)
            video[clip] = list(draws.standard_normal((4, 1, 256)).astype(np.float32))
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "audio_feats.pkl").write_bytes(pickle.dumps(audio))
    (folder / "video_feats.pkl").write_bytes(pickle.dumps(video))


@pytest.mark.parametrize(
    ("name", "write", "metric"),
    [
        ("paper-mosi", write_mmsa, "mae"),
        ("paper-mosei", write_mmsa, "mae"),
        ("paper-mintrec", write_mintrec, "accuracy"),
    ],
)
def test_an_overlay_trains_and_measures_the_landscape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None], metric: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # would affect the other tests of this process
    for key, value in {"QAMOE_TRACKING": "off", "QAMOE_DEVICE": "cpu", "QAMOE_WORKERS": "1"}.items():
        monkeypatch.setenv(key, value)
    whole = overlaid(experiment_content(name, ROOT / "params.yaml", ROOT / "experiments"), SMALL)
    write(tmp_path / whole["extract"]["corpus"]["path"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
    params, out = parameters.load(tmp_path / "params.yaml"), tmp_path / "out"
    for stage in (extract, preprocess, train, evaluate, report):
        stage.run(params, out)

    for model, revealed, schedule in (("paper", 0.0, "cosine"), ("paper-public", 1.0, "plateau")):
        common = checkpoint.load(out / f"train/{model}/1").config["train"]
        assert common["degrade"]["spectrum"] == "paper"
        assert common["degrade"]["mask_revealed_share"] == revealed
        assert common["schedule"] == schedule
    rows = pd.read_parquet(out / "evaluate/paper/1/predictions.parquet")
    worst = rows[rows["cell"] == "landscape-0.70-0.70"]
    assert set(worst["kind_audio"]) == {"missing", "paper_noise"}
    cells = pd.concat(
        pd.read_parquet(out / f"evaluate/{model}/1/cells.parquet").assign(model=model, seed=1) for model in params.seeds
    )
    grids = content(cells)
    assert grids is not None
    assert set(grids["models"]) == {"concat", "paper", "paper-public"}
    assert np.shape(grids["models"]["paper"][metric]["grid"]) == (2, 2)
    assert "Questions of the paper" in (out / "report/index.html").read_text()
