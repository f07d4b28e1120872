"""Measure how much faster two search workers finish a study than one: `python benchmarks/search.py`.

Needs two idle cores. Runs the stage tune with QAMOE_WORKERS 1 and 2 in alternation, each time with a new study. The
time includes the start of the stage, which is small against minutes of search. The clips are random and all trials
have the same parameters, so no trial is pruned and both runs do the same work. Records are off. Prints the times and
stores their ratio in benchmarks/results.jsonl.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import yaml
from figures import figure

from qamoe.data import arrow_store

BOUND = 1.8
COLUMNS, RATE = {"audio": 25, "vision": 60}, 20.0
VOCABULARY, WORDS = 30_522, (1000, 9000)  # of MiniLM: size of the vocabulary, range of ids that are words
CLIPS = {"train": 240, "valid": 60}
SPACE = {"train.common.lr": {"choices": [0.001]}, "train.common.weight_decay": {"choices": [0.01]}}
STUDY = {"epochs": 8, "space": SPACE}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="trials per study")
    parser.add_argument("--rounds", type=int, default=1, help="studies per number of workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qamoe-search-") as name:
        folder = Path(name)
        write_corpus(folder / "preprocess")
        params = yaml.safe_load(Path("params.yaml").read_text())
        params["tune"] |= STUDY | {"trials": 1}
        params["train"]["common"]["patience"] = STUDY["epochs"]
        run_study(folder, params, 1)  # encodes the text once for all later studies
        params["tune"]["trials"] = options.trials
        taken: dict[int, float] = {1: 0.0, 2: 0.0}
        for round_ in range(options.rounds):
            for workers in taken:
                seconds = run_study(folder, params, workers)
                taken[workers] += seconds
                title = f"round {round_ + 1}, workers: {workers}"
                print(f"{title}: {options.trials} trials in {seconds:.1f} s", flush=True)
    figure("two search workers", taken[1] / taken[2], "times one's rate", at_least=BOUND)


def run_study(folder: Path, params: dict[str, object], workers: int) -> float:
    """Run the stage with a new study; return the seconds that it takes."""
    shutil.rmtree(folder / "tune", ignore_errors=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    command = [
        sys.executable,
        "-m",
        "qamoe",
        "run",
        "tune",
        "--params",
        str(folder / "params.yaml"),
        "--out",
        str(folder),
    ]
    settings = {"QAMOE_WORKERS": str(workers), "QAMOE_DEVICE": "cpu", "QAMOE_TRACKING": "off"}
    begin = monotonic()
    subprocess.run([*command, "-q"], env=os.environ | settings, check=True)
    return monotonic() - begin


def write_corpus(folder: Path) -> None:
    """Write clips of noise in the format of the stage preprocess."""
    schema = pa.schema(
        [("clip_id", pa.string()), ("source", pa.string()), ("label", pa.float64()), ("text", pa.list_(pa.int32()))]
        + [(modality, arrow_store.frames_type(size)) for modality, size in COLUMNS.items()]
    )
    draws = np.random.default_rng(1)
    for split, count in CLIPS.items():
        rows = [
            {
                "clip_id": f"{split}-{i}",
                "source": f"{split}-{i % 8}",
                "label": float(draws.uniform(-3, 3)),
                "text": np.array([101, *draws.integers(*WORDS, 8), 102], np.int32),
                "audio": draws.standard_normal((40, COLUMNS["audio"])).astype(np.float32),
                "vision": draws.standard_normal((10, COLUMNS["vision"])).astype(np.float32),
            }
            for i in range(count)
        ]
        arrow_store.write(folder / f"{split}.arrow", schema, rows, {"split": split})
    words = [[word, 1] for word in range(*WORDS)]
    stats = {
        "task": {"kind": "regression", "low": -3.0, "high": 3.0, "classes": []},
        "modalities": ["text", *COLUMNS],
        "generated": True,
        "about": {"corpus": "made up"},
        "text": {"unk": 100, "special": [0, 101, 102], "vocabulary": VOCABULARY, "frequencies": words},
        "target_mean": 0.0,
        "target_std": 1.7,
    }
    stats |= {modality: {"dimension": size, "rate": RATE} for modality, size in COLUMNS.items()}
    (folder / "stats.json").write_text(json.dumps(stats))


if __name__ == "__main__":
    main()
