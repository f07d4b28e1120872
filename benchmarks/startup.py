"""How long the commands take to start: `python benchmarks/startup.py [CLONE]`, a minute.

`qamoe --help`; `dvc repro` with nothing to do, in a copy of a clone that has run the pipeline, by default this one; and
`qamoe predict` of a few words by its QA-MoE. Each in processes of their own, the median of several.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import figure

ROOT = Path(__file__).parent.parent
SEED = Path("artifacts/train/qamoe/1")


def main(clone: Path) -> None:
    if not (clone / SEED).is_dir():
        sys.exit(f"There is no {clone / SEED}; run make demo first.")
    taken = [seconds([sys.executable, "-m", "qamoe", "--help"], ROOT) for _ in range(9)]
    figure("startup: qamoe --help", statistics.median(taken), "s", at_most=0.5)
    with tempfile.TemporaryDirectory(prefix="qamoe-startup-") as name:
        copy = Path(name) / "clone"
        shutil.copytree(clone, copy, symlinks=True, ignore=shutil.ignore_patterns(".venv", "mlartifacts", "mlflow.db"))
        command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
        subprocess.run(command, cwd=copy, check=True, env=environment())  # sees each file for the first time
        taken = [seconds(command, copy) for _ in range(5)]
        figure("startup: dvc repro with nothing to do", statistics.median(taken), "s", at_most=3)
    words = [sys.executable, "-m", "qamoe", "predict", "--folder", str(clone / SEED), "--text", "a fine film"]
    taken = [seconds(words, ROOT) for _ in range(5)]
    figure("startup: first prediction, of words", statistics.median(taken), "s")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "src", "DVC_NO_ANALYTICS": "1"}


def seconds(command: list[str], folder: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(Path(*(sys.argv[1:] or [ROOT])).resolve())
