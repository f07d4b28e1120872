"""Training in two processes: the losses of one process, output of the first process only, resume after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EPOCHS = 25
CHANGES = {
    "models.encoders.dropout": 0.0,
    "train.common.batch_size": 11,  # of 12 clips: two steps per epoch, one with 11 clips and one with a single clip
    "train.common.epochs": EPOCHS,
    "train.common.patience": EPOCHS,
}
# a rate so high that it is halved within these epochs, and batches that share the paper's draws
PLATEAU = {"models.paper--plateau": {"train": {"schedule": "plateau", "lr": 0.03, "degrade": {"spectrum": "paper"}}}}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def history(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_over_fifty_steps(
    preprocessed: Path, params_file: Any, environment: dict[str, str], tmp_path: Path, records: Any
) -> None:
    models = ("qamoe", "ablation-fallback", "paper--plateau")
    path = params_file(CHANGES | PLATEAU | {"seeds": {model: [1] for model in models}})
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
    for model in models:
        single, distributed = (history(folder / model / "1") for folder in (tmp_path / "one", preprocessed / "train"))
        assert len(distributed) == EPOCHS
        for a, b in zip(single, distributed, strict=True):
            assert b == pytest.approx(a, abs=1e-4), model
    assert distributed != single, "identical histories: the batches were not distributed"

    printed = re.findall(r"seed 1: epoch (\d+) of", done.stderr)
    assert printed == len(models) * ["1", *(str(number) for number in range(2, EPOCHS + 1, 2))], (
        "only one process prints"
    )
    (experiment,) = (e for e in records.search_experiments() if e.name == "qa-moe")
    runs = records.search_runs([experiment.experiment_id], "tags.`qamoe.seed` = '1'")
    trained = sorted((run.data.tags["qamoe.model"], run.data.tags["qamoe.seed"]) for run in runs)
    assert trained == sorted((model, "1") for model in models)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not list(preprocessed.glob(".*.lock"))

    kept = subprocess.run(one, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300, check=True)
    seeds = json.loads(kept.stdout.splitlines()[-1])["seeds"]
    assert seeds == {"trained": [], "kept": [f"{model}/1" for model in models]}, (
        "a run in one process keeps the result of two"
    )


@pytest.mark.slow
def test_a_killed_torchrun_leaves_no_process_and_resumes_to_the_same_bits(
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
            if "epoch 3 of" in line:
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL
        process.stderr.read()  # returns when the last process that could write to it has ended
    assert (folder / "resume.pt").exists()
    assert not (folder / "model.json").exists()
    last = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300, check=True)
    assert re.search(r"qamoe, seed 1.* after epoch \d", last.stderr)
    assert ((folder / "weights.safetensors").read_bytes(), history(folder)) == expected


def test_no_other_stage_runs_in_several_processes(
    stage: Any, preprocessed: Path, params_file: Any, environment: dict[str, str]
) -> None:
    environment |= {"WORLD_SIZE": "2", "RANK": "0"}
    done = stage("evaluate", "--params", params_file(), "--out", preprocessed)
    assert done.returncode == 2
    assert re.fullmatch(r"evaluate: .*WORLD_SIZE is 2\b.*\btrain\b.*\n", done.stderr)
    environment |= {"RANK": "one"}
    done = stage("train", "--params", params_file(), "--out", preprocessed)
    assert done.returncode == 2
    assert re.fullmatch(r"qamoe: .*RANK.*'one'.*\b0\b.*\n", done.stderr)
