"""An experiment as a DVC pipeline: its results and corpus, pushed and pulled, are up to date in another clone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import copy_checkout, git
from tests.end_to_end.services import environment

OVERLAY = """
extract: {corpus: {path: data-tiny}}
train: {common: {epochs: 2, patience: 2}}
seeds: {mean: null}
registry: {name: qa-moe-tiny}
"""
PLAN = "artifacts-tiny/dvc.yaml"


def run(checkout: Path, home: Path, *command: str) -> str:
    """Run a command in a checkout, which must succeed; return its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=checkout, env=environment(checkout, home), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_experiment_is_pushed_and_pulled_with_its_corpus(untouched: Path, tmp_path: Path) -> None:
    first, home = copy_checkout(untouched, tmp_path / "first"), tmp_path / "home"
    (first / "experiments").mkdir()
    (first / "experiments/tiny.yaml").write_text(OVERLAY)
    (first / "data").rename(first / "data-tiny")
    run(first, home, "qamoe", "experiment", "tiny")
    assert "up to date" in run(first, home, "dvc", "status", PLAN)
    run(first, home, "dvc", "remote", "add", "--default", "team", str(tmp_path / "team"))
    run(first, home, "dvc", "push", "--with-deps", PLAN)
    git(first, "add", "--all")
    tracked = git(first, "ls-files", "artifacts-tiny", "data-tiny.dvc").splitlines()
    assert tracked == [
        "artifacts-tiny/dvc.lock",
        PLAN,
        "artifacts-tiny/params.yaml",
        "artifacts-tiny/report/curves.csv",
        "artifacts-tiny/report/metrics.json",
        "data-tiny.dvc",
    ]
    git(first, "commit", "--quiet", "--message", "an experiment")

    second = tmp_path / "second"
    git(tmp_path, "clone", "--quiet", str(first), str(second))
    run(second, home, "dvc", "pull", "--with-deps", PLAN)
    assert (second / "data-tiny/manifest.csv").is_file()
    assert "up to date" in run(second, home, "dvc", "status", PLAN)
    assert "artifacts-tiny/report/metrics.json" in run(second, home, "dvc", "metrics", "show")
    (second / "data").mkdir()  # the pipeline of params.yaml would pull it
    before = (second / "artifacts-tiny/dvc.lock").read_bytes()
    printed = run(second, home, "flows.pipeline", "experiment=tiny")
    assert "decision: " in printed
    assert (second / "artifacts-tiny/dvc.lock").read_bytes() == before
    assert not (second / "artifacts/extract").exists()
