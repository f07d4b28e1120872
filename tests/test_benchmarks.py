"""benchmarks/gpu.py runs where there is no GPU, and on a machine that has the model's own packages alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("prefect", "mlflow", "dvc", "optuna"):
            raise ModuleNotFoundError(f"{name} is not installed here")


sys.meta_path.insert(0, Refusing())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which Prefect, MLflow, DVC and Optuna cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join((str(tmp_path), str(ROOT / "src")))
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    for name in ("prefect", "mlflow", "dvc", "optuna"):
        command = [sys.executable, "-c", f"import {name}"]
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert f"{name} is not installed here" in refused.stderr
    return environment


@pytest.mark.slow
def test_the_gpu_benchmark_tries_itself_out_on_a_cpu(tmp_path: Path, environment: dict[str, str]) -> None:
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results.jsonl"))
    command = [sys.executable, str(tmp_path / "benchmarks/gpu.py"), "--short"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the CPU's bits (1 yes): 1 (at least 1: holds)" in done.stdout
    for part in ("no GPU; ", "QA-MoE, bfloat16: ", "width 256", "a single clip", "seconds of this script: "):
        assert part in done.stdout
    assert not (tmp_path / "benchmarks/results.jsonl").exists(), "what only tries it out is no figure"
