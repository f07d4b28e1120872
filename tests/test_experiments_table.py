"""`python -m scripts.experiments` in a terminal of 120 columns, also next to the folder of an overlay."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import experiments

PIPELINE = """
stages:
  report:
    wdir: {root}
    cmd: cp {folder}/params.yaml {folder}/report/metrics.json
    params: [{{{folder}/params.yaml: [train]}}]
    deps: [src/code-of-the-model.py, artifacts/code/report.json]
    metrics: [{{{folder}/report/metrics.json: {{cache: false}}}}]
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the results of params.yaml and of an overlay, which have the same keys."""
    monkeypatch.chdir(tmp_path)
    for root, folder in ((".", "artifacts"), ("..", "artifacts-mine")):
        plan = Path("dvc.yaml") if root == "." else Path(folder, "dvc.yaml")
        (Path(folder) / "report").mkdir(parents=True)
        text = PIPELINE.format(root=root, folder=folder)
        plan.write_text(text.replace("artifacts/params.yaml", "params.yaml"))
        values = "train: {common: {learning_rate: 0.001}}\n"
        (Path(folder) / "params.yaml" if root == ".." else Path("params.yaml")).write_text(values)
        (Path(folder) / "report/metrics.json").write_text('{"mae": {"best_control": 0.5}}')
    for file in ("src/code-of-the-model.py", "artifacts/code/report.json"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    git("init", "--quiet")
    dvc("init", "--quiet")
    dvc("commit", "--force", "--quiet")
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "first")
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.mark.slow
def test_experiments_fit_120_columns_next_to_an_overlay(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`dvc exp show --only-changed` took 400: each header had a path, each changed file of code a column of digests."""
    for name in ("params.yaml", "artifacts-mine/params.yaml"):
        Path(name).write_text("train: {common: {learning_rate: 0.002}}\n")
    Path("src/code-of-the-model.py").write_text("x = 1\n")
    Path("artifacts/report/metrics.json").write_text('{"mae": {"best_control": 0.4}}')
    dvc("exp", "save", "--name", "brisk-otter")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["experiments"])
    capfd.readouterr()
    experiments.main()
    header, *rows = (line.split() for line in capfd.readouterr().out.splitlines())
    assert header == ["experiment", "created", "mae.best_control", "train.common.learning_rate"]
    (saved,) = (row for row in rows if row[0] == "brisk-otter")
    assert saved[-2:] == ["0.4", "0.002"]


def test_without_experiments_the_table_has_the_workspace_and_the_commit() -> None:
    """DVC then leaves out the column of names."""
    assert experiments.table("rev,Created\nworkspace,\nmain,2026-11-30T18:06:06\n").row_count == 2
