"""Recognise emotions of unseen actors by voice alone: `python benchmarks/ravdess.py whisper egemaps logmel`.

Reads RAVDESS' speech from ../shared/data/ravdess (or QAMOE_SHARED_DATA): actors 01 to 18, of its eight emotions the six
of EMOTIONS. Calm is left out because it was made to resemble neutral, surprised because it can be happy or fearful. Its
licence does not allow a copy here, so the numbers cannot be reproduced from the repository alone.

Six folds hold out three actors each; of the others, the three of the next fold are the validation split, which chooses
the checkpoint. The pipeline's own stages extract, preprocess and train the model `concat` with five seeds a fold. The
held-out clips are predicted as they are, and after a gain of -12 and +12 dB in floating point. Prints for each
extractor the recall, averaged over the emotions, then seeds; and the differences from `egemaps` with intervals from
10,000 bootstrap samples of actors.

Takes 20 to 46 minutes of processor time per extractor. Results go to artifacts/ravdess/results.jsonl, one line per fold
and seed; a run continues after the last complete fold.
"""

import argparse
import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from figures import figure
from level import with_gain

from qamoe.config import params as parameters
from qamoe.config.params import Params
from qamoe.data.clip import MediaSpan
from qamoe.errors import UserError, exit_on_user_error
from qamoe.inference.predict import predict
from qamoe.models import checkpoint
from qamoe.pipeline import extract, preprocess, train

EMOTIONS = {"01": "neutral", "03": "happy", "04": "sad", "05": "angry", "06": "fearful", "07": "disgust"}
EXTRACTORS: dict[str, dict[str, Any]] = {
    "whisper": {"extractor": "whisper", "rate": 10.0, "model": "whisper-tiny.en", "layer": 2},
    "egemaps": {"extractor": "egemaps", "rate": 20.0},
    "logmel": {"extractor": "logmel", "rate": 20.0},
}
# Learning rate and settings of the encoders, chosen on validation (V01); logmel has those of egemaps.
_ATTENTION = (0.001, {"pooling": "attention", "dropout": 0.4})
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {
    "whisper": (0.003, {"pooling": "statistics", "dropout": 0.6}),
    "egemaps": _ATTENTION,
    "logmel": _ATTENTION,
}
ACTORS = [f"{number:02d}" for number in range(1, 19)]
FOLDS = [ACTORS[fold::6] for fold in range(6)]  # of both sexes: odd numbers are men
SEEDS = (1, 2, 3, 4, 5)
GAINS_DB = (-12, 12)
OUT = Path("artifacts/ravdess")
RESULTS = OUT / "results.jsonl"
COLUMNS = ("clip_id", "source", "path", "start_s", "end_s", "text", "label", "split")


def main(names: list[str]) -> None:
    source = Path(os.environ.get("QAMOE_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data") / "ravdess"
    clips = sorted(path for path in source.glob("*.flac") if emotion(path))
    if not clips:
        raise UserError(f"{source} has no clip of RAVDESS (03-01-*.flac); QAMOE_SHARED_DATA names the folder above it.")
    os.environ.setdefault("QAMOE_TRACKING", "off")
    for name in names:
        for fold in range(len(FOLDS)):
            if len(lines(name, fold)) < len(SEEDS):
                measure(name, fold, clips)
    report(names)


def emotion(path: Path) -> str | None:
    return EMOTIONS.get(path.stem.split("-")[2])


def actor(path: Path) -> str:
    return path.stem.split("-")[6]


def lines(name: str, fold: int | None = None) -> list[dict[str, Any]]:
    """Return the stored results of an extractor, of one fold or of all."""
    stored = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return [line for line in stored if line["extractor"] == name and fold in (None, line["fold"])]


def measure(name: str, fold: int, clips: list[Path]) -> None:
    """Train the seeds of a fold and append their results."""
    out = OUT / name
    data = out / "data"
    (data / "media").mkdir(parents=True, exist_ok=True)
    for path in clips:
        if not (data / "media" / path.name).exists():
            shutil.copyfile(path, data / "media" / path.name)
    with (data / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for path in clips:
            row = (path.stem, actor(path), f"media/{path.name}", "", "", "", emotion(path), split(actor(path), fold))
            writer.writerow(row)
    params = params_of(name, data)
    extract.run(params, out)
    preprocess.run(params, out)
    train.run(params, out)
    held_out = [path for path in clips if actor(path) in FOLDS[fold]]
    frames = {gain: features(params, held_out, gain) for gain in (0, *GAINS_DB)}
    for seed in SEEDS:
        trained = checkpoint.load(out / "train" / "concat" / str(seed))
        answers = {gain: predict(trained, rows)["class"].tolist() for gain, rows in frames.items()}
        line = {"extractor": name, "fold": fold, "seed": seed}
        hits = {str(gain): counts(held_out, classes) for gain, classes in answers.items()}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line | {"settings": EXTRACTORS[name], "hits": hits}) + "\n")


def split(name: str, fold: int) -> str:
    return "test" if name in FOLDS[fold] else "valid" if name in FOLDS[(fold + 1) % len(FOLDS)] else "train"


def params_of(name: str, data: Path) -> Params:
    """Return params.yaml with this corpus and extractor; the checkpoint is chosen on clean clips, as it is judged."""
    content = parameters.read(Path("params.yaml"))
    content["extract"] |= {
        "corpus": {"kind": "clips", "path": str(data)},
        "task": {"kind": "classification", "classes": sorted(EMOTIONS.values())},
        "audio": EXTRACTORS[name],
    }
    content["train"]["common"]["selection"] |= {"severities": {"missing": [0.0]}, "draws": 1}
    content["train"]["common"]["lr"], encoders = SETTINGS[name]
    content["models"]["encoders"] |= encoders
    content["seeds"] = {"concat": list(SEEDS)}
    return parameters.validate(content, Path("params.yaml"))


def features(params: Params, clips: list[Path], gain_db: int) -> pd.DataFrame:
    spans = [MediaSpan(clip_id=path.stem, path=path) for path in clips]
    frames = [with_gain(params.extract.audio, span, gain_db) for span in spans]
    return pd.DataFrame({"audio": pd.Series(frames, dtype=object)})


def counts(clips: list[Path], classes: list[str]) -> dict[str, dict[str, list[int]]]:
    """Return right answers and clips by actor and emotion."""
    table: dict[str, dict[str, list[int]]] = {}
    for path, answer in zip(clips, classes, strict=True):
        cell = table.setdefault(actor(path), {}).setdefault(str(emotion(path)), [0, 0])
        cell[0] += answer == emotion(path)
        cell[1] += 1
    return table


def hits(name: str, gain: int = 0) -> np.ndarray:
    """Return right answers and clips (seed, actor, emotion, 2) of an extractor."""
    table = np.zeros((len(SEEDS), len(ACTORS), len(EMOTIONS), 2))
    for line in lines(name):
        for who, row in line["hits"][str(gain)].items():
            for number, what in enumerate(EMOTIONS.values()):
                table[SEEDS.index(line["seed"]), ACTORS.index(who), number] = row[what]
    return table


def recall(table: np.ndarray) -> np.ndarray:
    """Return the recall of each seed, averaged over the emotions, of hits (seed, actor, emotion, 2)."""
    right, all_of = table.sum(1)[..., 0], table.sum(1)[..., 1]
    return np.asarray((right / all_of).mean(1))


def report(names: list[str]) -> None:
    samples = np.random.default_rng(0).integers(len(ACTORS), size=(10_000, len(ACTORS)))
    for name in names:
        plain = hits(name)
        bound = 0.68 if name == "whisper" else None
        figure(f"RAVDESS: recall of unseen actors, {name}", recall(plain).mean(), at_least=bound)
        print(f"by seed: {', '.join(f'{value:.3f}' for value in recall(plain))}")
        for gain in GAINS_DB:
            moved = abs(recall(hits(name, gain)).mean() - recall(plain).mean())
            figure(f"RAVDESS: change of recall by a gain of {gain} dB, {name}", moved, at_most=0.02)
        if name != "egemaps" and "egemaps" in names:
            base = hits("egemaps")
            drawn = [recall(plain[:, rows]).mean() - recall(base[:, rows]).mean() for rows in samples]
            low, high = np.percentile(drawn, [2.5, 97.5])
            figure(f"RAVDESS: recall of {name} above egemaps", recall(plain).mean() - recall(base).mean())
            figure(f"RAVDESS: its interval over actors, low, {name}", low)
            figure(f"RAVDESS: its interval over actors, high, {name}", high)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extractors", nargs="+", choices=EXTRACTORS)
    with exit_on_user_error("ravdess.py"):
        main(parser.parse_args().extractors)
