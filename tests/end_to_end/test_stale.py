"""Changes that make a stage of the real pipeline stale or leave it current, and scheduled runs without commits."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Run, copy_checkout, git
from tests.end_to_end.services import environment

pytestmark = pytest.mark.slow

MOE = "src/qamoe/models/moe.py"
NAMES = "src/qamoe/config/model_names.py"
SCHEDULED = """
from flows.pipeline import pipeline
state = pipeline(scheduled=True, ingest_from="data-incoming", return_state=True)
print(state.type.value, state.message)
"""


def run(checkout: Path, home: Path, *arguments: str) -> str:
    """Run a Python command in a checkout, which must succeed, and return its output."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout, home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(printed: str) -> set[str]:
    """Return the stages that a `dvc repro` ran, from its output."""
    return {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage '")}


def test_a_comment_runs_no_stage_and_a_changed_meaning_of_a_name_trains_again(finished: Run, tmp_path: Path) -> None:
    checkout = copy_checkout(finished.checkout, tmp_path / "checkout")
    source = (checkout / MOE).read_text()
    (checkout / MOE).write_text(f"# a comment\n{source}\n# another comment\n")
    assert ran(run(checkout, tmp_path, "-m", "dvc", "repro")) == {"code-train", "code-evaluate", "code-tune"}
    assert json.loads(run(checkout, tmp_path, "-m", "dvc", "status", "--json")) == {}

    names = (checkout / NAMES).read_text()
    assert names.count("/ 10)") == 1
    (checkout / NAMES).write_text(names.replace("/ 10)", "/ 20)"))
    stale = json.loads(run(checkout, tmp_path, "-m", "dvc", "status", "--json"))
    assert set(stale) == {"code-train", "code-evaluate", "code-tune", "tune-parameters"}
    run(checkout, tmp_path, "-m", "dvc", "repro", "--single-item", *sorted(stale))
    stale = json.loads(run(checkout, tmp_path, "-m", "dvc", "status", "--json"))
    assert {"train@mean", "train@qamoe", "evaluate@mean", "evaluate@qamoe", "tune"} == set(stale)


def test_a_key_under_seeds_is_enough_for_another_model(finished: Run, tmp_path: Path) -> None:
    checkout = copy_checkout(finished.checkout, tmp_path / "checkout")
    params = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(params.replace("seeds:\n", "seeds:\n  moe: [1]\n"))
    assert ran(run(checkout, tmp_path, "-m", "dvc", "repro")) == {"train@moe", "evaluate@moe", "report"}
    assert (checkout / "artifacts/train/moe/1/model.json").is_file()
    summary = json.loads((checkout / "artifacts/report/summary.json").read_text())
    assert summary["moe.missing.mae.area.mean"] > 0


def incoming(checkout: Path, number: int) -> None:
    """Put a new clip into data-incoming/, with the media of an existing clip."""
    with (checkout / "data/manifest.csv").open(newline="", encoding="utf-8") as lines:
        row = next(row for row in csv.DictReader(lines) if row["split"] == "train")
    folder = checkout / "data-incoming"
    folder.mkdir(exist_ok=True)
    media = f"clip-{number}{Path(row['path']).suffix}"
    (folder / media).write_bytes((checkout / "data" / row["path"]).read_bytes())
    new = {**row, "clip_id": f"new-{number}", "source": f"somebody-{number}", "path": media, "split": "train"}
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(new), lineterminator="\n")
        writer.writeheader()
        writer.writerow(new)


def test_scheduled_runs_process_changed_data_without_a_commit(finished: Run, tmp_path: Path) -> None:
    checkout = copy_checkout(finished.checkout, tmp_path / "checkout")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "results")
    for number in (1, 2):
        incoming(checkout, number)
        last = run(checkout, tmp_path, "-c", SCHEDULED).splitlines()[-1]
        assert last.startswith("COMPLETED ran extract"), last
        changed = git(checkout, "diff", "--name-only").split()
        assert "artifacts/report/metrics.json" in changed, "a file that a run may change"
    with (checkout / MOE).open("a") as file:
        file.write("CHANGED = True\n")
    last = run(checkout, tmp_path, "-c", SCHEDULED).splitlines()[-1]
    assert last.startswith("FAILED ")
    assert MOE in last


def test_a_fresh_clone_has_the_metrics_of_the_commit(finished: Run, tmp_path: Path) -> None:
    checkout = copy_checkout(finished.checkout, tmp_path / "checkout")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "results")
    git(tmp_path, "clone", "--quiet", str(checkout), "clone")
    shown = json.loads(run(tmp_path / "clone", tmp_path, "-m", "dvc", "metrics", "show", "--json"))
    (metrics,) = (file["data"] for file in shown[""]["data"].values())
    assert metrics["qamoe"]["mixed"]["mae"] > 0
