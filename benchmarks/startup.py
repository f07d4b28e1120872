"""Measure the start-up time of commands: `python benchmarks/startup.py [CLONE]`.

Takes a minute. Measures `qamoe --help`, `dvc repro` with nothing to do, and `qamoe predict` of a short text. CLONE is a
clone that has run the pipeline, this one by default; dvc runs in a copy of it. Each figure is the median of several
processes.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import figure

from qamoe.errors import UserError, exit_on_user_error

ROOT = Path(__file__).parent.parent
SEED = Path("artifacts/train/qamoe/1")


def main(clone: Path) -> None:
    if not (clone / SEED).is_dir():
        raise UserError(f"{clone / SEED} does not exist; run make demo first")
    taken = [seconds([sys.executable, "-m", "qamoe", "--help"], ROOT) for _ in range(9)]
    figure("startup: qamoe --help", statistics.median(taken), "s", at_most=0.5)
    with tempfile.TemporaryDirectory(prefix="qamoe-startup-") as name:
        copy = Path(name) / "clone"
        shutil.copytree(clone, copy, symlinks=True, ignore=shutil.ignore_patterns(".venv", "mlartifacts", "mlflow.db"))
        command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
        subprocess.run(command, cwd=copy, check=True, env=environment())  # hashes each file once
        taken = [seconds(command, copy) for _ in range(5)]
        figure("startup: dvc repro with nothing to do", statistics.median(taken), "s", at_most=3)
    predict = [sys.executable, "-m", "qamoe", "predict", "--folder", str(clone / SEED), "--text", "a fine day"]
    taken = [seconds(predict, ROOT) for _ in range(5)]
    figure("startup: first prediction, of words", statistics.median(taken), "s")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "src", "DVC_NO_ANALYTICS": "1"}


def seconds(command: list[str], folder: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", nargs="?", type=Path, default=ROOT, help="a clone that has run the pipeline")
    options = parser.parse_args()
    with exit_on_user_error("startup.py"):
        main(options.clone.resolve())
