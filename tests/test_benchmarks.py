"""Test that benchmarks/gpu.py runs without a GPU and with only the packages of the model, and the --help of others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys


class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("prefect", "mlflow", "dvc", "optuna"):
            raise ModuleNotFoundError(f"{name} is not installed here")


sys.meta_path.insert(0, Uninstalled())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which Prefect, MLflow, DVC and Optuna cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join((str(tmp_path), str(ROOT / "src")))
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    for name in ("prefect", "mlflow", "dvc", "optuna"):
        command = [sys.executable, "-c", f"import {name}"]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert f"{name} is not installed here" in process.stderr
    return environment


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["benchmarks/serve.py", "benchmarks/rollback.py", "scripts/pictures.py"])
def test_scripts_print_their_help_and_refuse_wrong_arguments(script: str) -> None:
    for arguments, code in ((["--help"], 0), (["one", "two", "three"], 2), (["--unknown"], 2)):
        process = run(script, *arguments)
        assert process.returncode == code, process.stderr
        assert "Traceback" not in process.stderr
        assert "usage: " in process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("benchmarks/serve.py", ["absent", "data"]),
        ("benchmarks/rollback.py", ["absent"]),
        ("scripts/pictures.py", ["absent"]),
    ],
)
def test_a_missing_folder_is_one_sentence_with_exit_code_2(script: str, arguments: list[str]) -> None:
    process = run(script, *arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "absent" in line


@pytest.mark.slow
def test_the_gpu_benchmark_can_be_tested_on_a_cpu(tmp_path: Path, environment: dict[str, str]) -> None:
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results.jsonl"))
    command = [sys.executable, str(tmp_path / "benchmarks/gpu.py"), "--short"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "the CPU's bits (1 yes): 1 (at least 1: holds)" in process.stdout
    for part in ("no GPU; ", "QA-MoE, bfloat16: ", "width 256", "a single clip", "seconds of this script: "):
        assert part in process.stdout
    assert not (tmp_path / "benchmarks/results.jsonl").exists(), "--short stores no figure"
