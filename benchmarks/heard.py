"""Measure trust in recognised words: `python benchmarks/heard.py artifacts/train/qamoe/1`. Takes minutes on two cores.

Each clip of RAVDESS' speech (every third of actors 01 to 18) gets one of the recorded noises at a ratio drawn from
RATIOS_DB, over its whole length. Speech recognition writes its words, and the checkpoint predicts the clip from words
and voice. Prints the word error rate and the mean trust in text at each ratio, and Spearman's correlation of trust and
word error rate over all clips. A clip without a text has trust 0 and an error rate of 1.

Reads ../shared/data (or QAMOE_SHARED_DATA), folders ravdess and noise. Their licences do not allow a copy here, so the
numbers cannot be reproduced from the repository alone.
"""

import argparse
import os
import string
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from figures import figure
from scipy.io import wavfile
from scipy.stats import spearmanr

from qamoe.config.extractor_settings import TranscribeSettings
from qamoe.errors import UserError, exit_on_user_error
from qamoe.extractors.registry import extractors_of
from qamoe.inference.extraction_worker import extract_file
from qamoe.inference.predict import clip_row, predict
from qamoe.media.decode import read_audio
from qamoe.models import checkpoint

RATE = 16_000  # Hz
RATIOS_DB = (20, 15, 10, 5, 0, -5)
STATEMENTS = {"01": "kids are talking by the door", "02": "dogs are sitting by the door"}


def main(folder: Path, every: int, seed: int) -> None:
    shared = Path(os.environ.get("QAMOE_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    clips = sorted((shared / "ravdess").glob("03-01-*.flac"))[::every]
    noises = [read_audio(path, RATE) for path in sorted((shared / "noise").glob("*.flac"))]
    if not clips or not noises:
        raise UserError(
            f"{shared} needs ravdess/03-01-*.flac and noise/*.flac; QAMOE_SHARED_DATA names another folder."
        )
    trained = checkpoint.load(folder)
    extractors = {name: block for name, block in extractors_of(trained.config).items() if name == "audio"}
    extractors["text"] = TranscribeSettings(model="whisper-tiny.en")
    rows, measured = [], []
    with tempfile.TemporaryDirectory(prefix="qamoe-heard-") as scratch:
        copy = Path(scratch) / "copy.wav"
        for number, path in enumerate(clips):
            random = np.random.default_rng([seed, number])
            ratio = int(random.choice(RATIOS_DB))
            audio = read_audio(path, RATE)
            noise = noises[random.integers(len(noises))]
            noise = np.resize(np.roll(noise, -random.integers(len(noise))), len(audio))
            noise = noise * np.sqrt((audio**2).mean() / ((noise**2).mean() + 1e-12) / 10 ** (ratio / 10))
            wavfile.write(copy, RATE, (audio + noise).astype(np.float32))
            features = extract_file(copy, extractors).frames
            heard = features["text"]["word"].tolist() if "text" in features else []
            rows.append(clip_row(trained.config, None, features)[0])
            measured.append((ratio, error_rate(STATEMENTS[path.stem.split("-")[4]], " ".join(heard))))
    answers = predict(trained, pd.DataFrame(rows))
    table = pd.DataFrame(measured, columns=["ratio", "errors"]).assign(
        trust=answers["trust_text"].fillna(0).to_numpy(), clips=1
    )
    by_ratio = table.groupby("ratio", sort=False).agg({"clips": "sum", "errors": "mean", "trust": "mean"})
    print(by_ratio.loc[list(RATIOS_DB)].round(3).to_string())
    correlation = float(spearmanr(table["trust"], table["errors"]).statistic)
    figure(f"heard words: Spearman of trust and word error rate, {len(table)} clips", correlation, at_most=-0.6)


def error_rate(spoken: str, heard: str) -> float:
    """Return the least number of words to change, add and remove, by the number of spoken words (Levenshtein)."""
    right = spoken.split()
    words = heard.lower().translate(str.maketrans("", "", string.punctuation)).split()
    distances = list(range(len(words) + 1))
    for row, word in enumerate(right, 1):
        before, distances[0] = distances[0], row
        for column, other in enumerate(words, 1):
            change = before + (word != other)
            before = distances[column]
            distances[column] = min(change, before + 1, distances[column - 1] + 1)
    return distances[-1] / len(right)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a training folder, such as artifacts/train/qamoe/1")
    parser.add_argument("--every", type=int, default=3, help="of the clips, in order of their names")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with exit_on_user_error("heard.py"):
        main(options.checkpoint, options.every, options.seed)
