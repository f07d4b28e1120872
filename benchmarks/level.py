"""Measure how much the gain of a recording moves the error: `python benchmarks/level.py artifacts/train/qamoe/1 data`.

Predicts the test clips of a corpus of raw clips with a checkpoint: as they are, and with audio after a gain of -12 and
+12 dB in floating point, which nothing clips. Text and frames stay. Takes a minute on two cores.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from figures import figure
from scipy.io import wavfile

from qamoe.config import params as parameters
from qamoe.config.block import Block
from qamoe.data.clip import MediaSpan
from qamoe.data.readers import READERS
from qamoe.errors import UserError, exit_on_user_error
from qamoe.extractors.registry import extractor, extractors_of
from qamoe.inference.extraction_worker import extract_file
from qamoe.inference.predict import predict
from qamoe.media.decode import read_audio
from qamoe.models import checkpoint

GAINS_DB = (-12, 12)
RATE = 44_100  # Hz


def main(folder: Path, data: Path) -> None:
    trained = checkpoint.load(folder)
    extractors = extractors_of(trained.config)
    task = parameters.load(Path("params.yaml")).extract.task
    clips = [clip for clip in READERS["clips"](data, task).clips if clip.split == "test"]
    spans = [clip.media for clip in clips if clip.media is not None]
    if "audio" not in extractors or not spans:
        raise UserError(f"{folder} must read audio from media, and {data} must have clips in split test.")
    rows = [
        {"text": span.text, **extract_file(span.path, extractors, span.start_s, span.end_s).frames} for span in spans
    ]
    labels = np.array([clip.label for clip in clips])
    errors = {}
    for gain in (0, *GAINS_DB):
        for row, span in zip(rows, spans, strict=True):
            row["audio"] = with_gain(extractors["audio"], span, gain)
        scores = predict(trained, pd.DataFrame(rows))["score"].to_numpy()
        errors[gain] = np.abs(scores - labels).mean()
    figure(f"level: MAE on {len(spans)} test clips", errors[0])
    for gain in GAINS_DB:
        figure(f"level: MAE moved by {gain} dB", 100 * abs(errors[gain] / errors[0] - 1), "%", at_most=2)


def with_gain(chosen: Block, span: MediaSpan, gain_db: int) -> np.ndarray:
    """Return the frames of a span's audio after a gain; the copy that is read holds floating-point samples."""
    with tempfile.TemporaryDirectory(prefix="qamoe-level-") as folder:
        copy = Path(folder) / "copy.wav"
        audio = read_audio(span.path, RATE, span.start_s, span.end_s)
        wavfile.write(copy, RATE, audio * np.float32(10 ** (gain_db / 20)))
        frames: np.ndarray = extractor(chosen).extract(copy)
    return frames


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a training folder, such as artifacts/train/qamoe/1")
    parser.add_argument("data", type=Path, help="a folder of raw clips with a manifest.csv, such as data")
    options = parser.parse_args()
    with exit_on_user_error("level.py"):
        main(options.checkpoint, options.data)
