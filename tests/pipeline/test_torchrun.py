"""Two processes train as one does, to the same losses; the first one alone writes; a kill of any costs an epoch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EPOCHS = 25
CHANGES = {
    "models.encoders.dropout": 0.0,
    "train.common.batch_size": 11,  # of 12 clips: two steps an epoch, of an odd number of clips and of a single one
    "train.common.epochs": EPOCHS,
    "train.common.patience": EPOCHS,
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def history(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_over_fifty_steps(
    preprocessed: Path, params_file: Any, environment: dict[str, str], tmp_path: Path, records: Any
) -> None:
    path = params_file(CHANGES | {"seeds": {"qamoe": [1], "ablation-fallback": [1]}})
    settings = environment | {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"], "OMP_NUM_THREADS": "1"}
    arguments = ["qamoe", "run", "train", "--params", str(path), "--out", str(preprocessed)]
    one = [sys.executable, "-m", *arguments]
    subprocess.run(one, cwd=tmp_path, env=settings, check=True, timeout=300)
    (preprocessed / "train").rename(tmp_path / "one")

    two = settings | {"QAMOE_TRACKING": "on"}
    done = subprocess.run(
        [*TORCHRUN, *arguments], cwd=tmp_path, env=two, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    for model in ("qamoe", "ablation-fallback"):
        alone, spread = (history(folder / model / "1") for folder in (tmp_path / "one", preprocessed / "train"))
        assert len(spread) == EPOCHS
        for a, b in zip(alone, spread, strict=True):
            assert b == pytest.approx(a, abs=1e-4), model
    assert spread != alone, "or the batches were not spread"

    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["epoch"] for line in lines if "epoch" in line] == 2 * list(range(1, EPOCHS + 1)), "said once"
    (experiment,) = (e for e in records.search_experiments() if e.name == "qa-moe")
    runs = records.search_runs([experiment.experiment_id], "tags.`qamoe.seed` = '1'")
    assert sorted(run.info.run_name for run in runs) == ["ablation-fallback-seed1", "qamoe-seed1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not list(preprocessed.glob(".*.lock"))

    kept = subprocess.run(one, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300, check=True)
    seeds = json.loads(kept.stdout.splitlines()[-1])["seeds"]
    assert seeds == {"trained": [], "kept": ["qamoe/1", "ablation-fallback/1"]}, "one process accepts the work of two"


@pytest.mark.slow
def test_a_killed_torchrun_leaves_nobody_and_goes_on_to_the_same_bits(
    preprocessed: Path, params_file: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    path = params_file({"seeds": {"qamoe": [1]}})  # with dropout
    command = [*TORCHRUN, "qamoe", "run", "train", "--params", str(path), "--out", str(preprocessed)]
    settings = environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=settings, check=True, timeout=300)
    folder = preprocessed / "train/qamoe/1"
    expected = (folder / "weights.safetensors").read_bytes(), history(folder)
    (preprocessed / "train").rename(tmp_path / "whole")

    process = subprocess.Popen(command, cwd=tmp_path, env=settings, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("{") and json.loads(line).get("epoch") == 3:
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL
        process.stderr.read()  # ends when the last process that could write to it has
    assert (folder / "resume.pt").exists()
    assert not (folder / "model.json").exists()
    last = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300, check=True)
    assert "qamoe, seed 1" in last.stderr
    assert "after epoch" in last.stderr
    assert ((folder / "weights.safetensors").read_bytes(), history(folder)) == expected


def test_no_other_stage_runs_in_several_processes(
    stage: Any, preprocessed: Path, params_file: Any, environment: dict[str, str]
) -> None:
    environment |= {"WORLD_SIZE": "2", "RANK": "0"}
    done = stage("evaluate", "--params", params_file(), "--out", preprocessed)
    assert done.returncode == 2
    assert done.stderr == ("evaluate: WORLD_SIZE is 2, as torchrun sets it; of all stages train alone runs under it.\n")
    environment |= {"RANK": "one"}
    done = stage("train", "--params", params_file(), "--out", preprocessed)
    assert (done.returncode, done.stderr) == (2, "train: RANK is 'one'; allowed is a whole number from 0 on.\n")
