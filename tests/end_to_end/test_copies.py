"""The score of a clip does not depend on the file that it comes in: copies in ten containers against the originals."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from qamoe.config.overlay import overlaid
from qamoe.data.synthetic.corpus import generate
from qamoe.inference.extraction_worker import extract_file
from qamoe.inference.predict import MODALITIES, json_answers, predict
from qamoe.serving.model_loader import open_model
from tests.fixtures.copies import encode, move

ROOT = Path(__file__).parents[2]
CLIPS = 60
SHORT = {
    "extract": {"corpus": {"kind": "sample", "path": "data"}},
    "train": {
        "common": {
            "epochs": 15,
            "patience": 15,
            "degrade": {"views": 3},
            "selection": {"severities": {"missing": [0.0, 0.5], "noise": [0.5]}, "draws": 1},
        }
    },
}
GOOD = {"qmin": "2", "qmax": "4"}
# ending -> how a copy is made
MOVED: dict[str, Callable[[Path, Path], Path]] = {
    "mkv": move,
    "flv": move,
    "ts": move,
    "avi": lambda source, target: move(source, target, bitstream="h264_mp4toannexb"),
    "m4v": lambda source, target: move(source, target, format="mp4", options={"movflags": "+frag_keyframe+empty_moov"}),
}
ENCODED: dict[str, Callable[[Path, Path], Path]] = {
    "mp4": lambda source, target: encode(source, target, "libx264", "aac", bits=64_000),
    "webm": lambda source, target: encode(
        source, target, "libvpx", "libopus", 48_000, 64_000, options={"crf": "10", "b": "1000000"}
    ),
    "mpg": lambda source, target: encode(
        source, target, "mpeg2video", "mp2", 48_000, 96_000, options=GOOD, frames=25, layout="stereo"
    ),
    "wmv": lambda source, target: encode(source, target, "wmv2", "wmav2", 44_100, 96_000, options=GOOD),
    "mov": lambda source, target: encode(source, target, "mjpeg", "libmp3lame", 44_100, 64_000, "yuvj420p", GOOD),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sixty generated clips and a model that was trained on them for a short time."""
    folder = tmp_path_factory.mktemp("copies")
    generate(folder / "data", CLIPS, 5, "regression", 2)
    content = overlaid(yaml.safe_load((ROOT / "params.yaml").read_text()), SHORT)
    content["seeds"] = {"qamoe": [1]}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QAMOE_", "MLFLOW_"))}
    for stage in ("extract", "preprocess", "train"):
        command = [sys.executable, "-m", "qamoe", "run", stage, "--quiet"]
        done = subprocess.run(
            command,
            cwd=folder,
            env=kept | {"QAMOE_TRACKING": "off", "QAMOE_DEVICE": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{stage}: {done.stderr}"
    return folder


def answered(served: Any, path: Path, text: str) -> tuple[float, np.ndarray]:
    """Return the score of a clip, and its trust in each modality."""
    row = {"text": text, **extract_file(path, served.extractors).frames}
    columns = {name: pd.Series([value], dtype=object) for name, value in row.items()}
    (answer,) = json_answers(predict(served.trained, pd.DataFrame(columns), served.device))
    return answer["score"], np.array([answer["trust"][modality] for modality in MODALITIES], float)


@pytest.mark.slow
def test_a_copy_in_another_container_or_codec_has_the_score_of_the_original(trained: Path) -> None:
    """Sixty clips, each copied into one of ten containers. About two minutes on two cores."""
    served = open_model("", trained / "artifacts/train/qamoe/1")
    with (trained / "data/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == CLIPS
    table = []
    for number, row in enumerate(rows):
        ending = [*MOVED, *ENCODED][number % 10]
        source = trained / "data" / row["path"]
        copy = (MOVED | ENCODED)[ending](source, trained / f"{number}.{ending}")
        (score, trust), (other, of_other) = (answered(served, path, row["text"]) for path in (source, copy))
        table.append((ending, abs(other - score), np.nanmax(np.abs(of_other - trust))))
    frame = pd.DataFrame(table, columns=["copy", "score", "trust"])
    figures = frame.groupby("copy")[["score", "trust"]].agg(["mean", "max"])
    print(figures.round(4).to_string())
    moved = frame["copy"].isin(list(MOVED))
    assert moved.sum() == CLIPS / 2
    assert frame.loc[moved, "score"].max() <= 0.001, figures
    assert frame.loc[~moved, "score"].mean() <= 0.1, figures
    assert frame.loc[~moved, "score"].max() <= 0.5, figures
    moves = frame.loc[~moved, "trust"].max()
    if moves > 0.05:  # the goal
        pytest.xfail(f"trust moves by up to {moves:.2f} under lossy codecs: it was not trained on them")
