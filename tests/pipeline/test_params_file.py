"""params.yaml is written as DVC writes it, so that an experiment changes only the lines of its parameters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("train.common.lr=0.002", {"-    lr: 0.001", "+    lr: 0.002"}),
        pytest.param("registry.name=qa-moe-team", {"-  name: qa-moe", "+  name: qa-moe-team"}, marks=pytest.mark.slow),
        pytest.param("evaluate.slices=[clean,missing,noise,burst,mixed]", {"-  - landscape"}, marks=pytest.mark.slow),
    ],
)
def test_a_queued_experiment_changes_the_line_of_its_parameter(tmp_path: Path, setting: str, changed: set[str]) -> None:
    home = {**os.environ, "HOME": str(tmp_path / "home"), "GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=repository, env=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    repository = tmp_path / "repository"
    (repository / "home").mkdir(parents=True)
    (repository / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (repository / "dvc.yaml").write_text("stages: {train: {cmd: 'true', params: [train, registry, evaluate]}}\n")
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run("git", "add", ".")
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "Start")
    run("git", "config", "user.name", "test")
    run("git", "config", "user.email", "test@localhost")
    run(sys.executable, "-m", "dvc", "exp", "run", "--queue", "-S", setting)
    difference = run("git", "diff", "-U0", "HEAD", "refs/exps/celery/stash", "--", "params.yaml")
    lines = [line for line in difference.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert set(lines) == changed
