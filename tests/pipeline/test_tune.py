"""A killed search resumes: finished trials stay, running trials are repeated, and the records are complete.

So does a search of any model for several objectives, whose front the report shows.
"""

import csv
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
import yaml

from qamoe.config.params import load
from qamoe.config.search_space import value_at
from qamoe.models import checkpoint
from qamoe.report import sections
from qamoe.training import search

CHANGES = {"tune.trials": 4, "tune.epochs": 2}
SPACES = {
    "concat": {
        "models.concat.hidden": {"low": 4, "high": 32, "log": True},
        "train.common.schedule": {"choices": ["cosine", "linear"]},
    },
    "qamoe": {
        "train.common.lr": {"low": 0.0003, "high": 0.003, "log": True},
        "models.qamoe.experts": {"low": 2, "high": 4},
        "train.common.degrade.clean_share": {"low": 0.1, "high": 0.5, "step": 0.1},
    },
}
OBJECTIVES = {"concat": ["error", "clean"], "qamoe": ["error", "trust"]}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "tune/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_search_without_tracking_needs_no_mlflow_store(stage: Any, params_file: Any, preprocessed: Path) -> None:
    done = stage("tune", "--params", params_file(CHANGES), "--out", preprocessed)
    assert done.returncode == 0, done.stderr
    trials = rows(preprocessed)
    assert len(trials) == 4
    best = min(float(row["value"]) for row in trials if row["state"] == "COMPLETE")
    text = (preprocessed / "tune/best_params.yaml").read_text()
    assert text.startswith(f"# validation error {best:.4f}, best of 4 trials\n")
    assert set(yaml.safe_load(text)) == {"train", "models"}
    assert not (preprocessed / "tune/trials").exists()
    assert sorted(p.name for p in (preprocessed / "tune/plots").iterdir()) == [
        "history.svg",
        "importances.svg",
        "slice.svg",
    ]


@pytest.mark.slow
def test_a_multilabel_model_is_searched(
    stage: Any, params_file: Any, tiny_multilabel: Any, tiny_corpus: Any, tmp_path: Path
) -> None:
    stats = json.loads((tiny_multilabel(tmp_path / "model") / "model.json").read_text())["stats"]
    tiny_corpus(tmp_path / "out", stats=stats, labels=(0, 1, 2, 3, 4))
    task = {"kind": "multilabel", "classes": stats["task"]["classes"]}
    done = stage("tune", "--params", params_file({**CHANGES, "extract.task": task}), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    trials = rows(tmp_path / "out")
    assert [row["state"] in ("COMPLETE", "PRUNED") for row in trials] == [True] * 4


def test_a_choice_of_an_encoder_that_does_not_exist_is_refused_before_the_search(
    stage: Any, params_file: Any, preprocessed: Path
) -> None:
    """The first trial that drew it ended the search, with Optuna's traceback."""
    space = {"models.encoders.text.encoder": {"choices": ["minilm", "no/encoder"]}}
    done = stage("tune", "--params", params_file(CHANGES | {"tune.space": space}), "--out", preprocessed)
    assert done.returncode == 2
    assert "models.encoders.text.encoder" in done.stderr
    assert "'no/encoder'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (preprocessed / "tune").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["stage", "worker"])
def test_a_killed_search_ends_with_the_requested_number_of_trials(
    victim: str, records: Any, params_file: Callable[..., Path], preprocessed: Path
) -> None:
    path = params_file(CHANGES | {"tune.trials": 5, "tune.epochs": 6})
    environment = {**os.environ, "QAMOE_WORKERS": "2", "QAMOE_TRACKING": "on"}
    seen = killed_and_ended(path, preprocessed, environment, victim)
    trials = rows(preprocessed)
    states = Counter(row["state"] for row in trials)
    assert states["COMPLETE"] + states["PRUNED"] == 5
    assert states["RUNNING"] == states["WAITING"] == 0
    values = {t.value for t in seen if t.state.name == "COMPLETE"}
    assert values <= {float(row["value"]) for row in trials if row["state"] == "COMPLETE"}, "finished trials stay"
    assert [int(row["number"]) for row in trials] == list(range(5)), "a trial that ran again keeps its place"

    (experiment,) = (e for e in records.search_experiments() if e.name == "qa-moe")
    runs = records.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags.get("qamoe.role") == "study")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["valid/selection"] == min(
        float(row["value"]) for row in trials if row["state"] == "COMPLETE"
    )
    recorded = Counter(run.data.tags["qamoe.state"] for run in children)
    assert (recorded["COMPLETE"], recorded["PRUNED"]) == (states["COMPLETE"], states["PRUNED"])
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}


def killed_and_ended(path: Path, out: Path, environment: dict[str, str], victim: str) -> list[Any]:
    """Run a search to its end with `kill -9` of the stage or a worker in it; return the trials before the kill."""
    command = [sys.executable, "-m", "qamoe", "run", "tune", "--params", str(path), "--out", str(out)]
    first = subprocess.Popen(command, env=environment)
    end = time.monotonic() + 300
    seen: list[Any] = []
    with os.fdopen(os.pidfd_open(first.pid)) as alive:
        # Wait until a trial has ended and another is running. The stage must not end before that.
        while not (any(t.state.name == "COMPLETE" for t in seen) and any(_is_running(t) for t in seen)):
            assert not select.select([alive], [], [], 0.1)[0], "the search ended by itself"
            assert time.monotonic() < end
            seen = _trials(load(path), out / "tune/study.db")
    running = next(t for t in seen if _is_running(t))
    pid = first.pid if victim == "stage" else int(running.user_attrs["worker"].rpartition(":")[2])
    os.kill(pid, signal.SIGKILL)
    if victim == "stage":
        assert first.wait() == -signal.SIGKILL
        subprocess.run(command, env=environment, check=True, timeout=300)
    else:
        assert first.wait(timeout=300) == 0, "a dead worker does not end the search"
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("model", ["concat", "qamoe"])
def test_any_model_is_searched_for_several_objectives_and_the_report_shows_the_front(
    model: str, records: Any, params_file: Callable[..., Path], preprocessed: Path
) -> None:
    space = SPACES[model]
    changes = {"tune.model": model, "tune.space": space, "tune.objectives": OBJECTIVES[model], "tune.pruner": "none"}
    path = params_file({"tune.trials": 5, "tune.epochs": 6, "tracking.keep_trials": model == "concat"} | changes)
    seen = killed_and_ended(path, preprocessed, {**os.environ, "QAMOE_WORKERS": "2", "QAMOE_TRACKING": "on"}, "stage")
    trials = rows(preprocessed)
    complete = [row for row in trials if row["state"] == "COMPLETE"]
    assert len(complete) + sum(row["state"] == "PRUNED" for row in trials) == 5, (
        "the others are attempts that were killed"
    )
    values = [t.values[0] for t in seen if t.state.name == "COMPLETE"]
    assert set(values) <= {float(row["value"]) for row in complete}, "finished trials stay"
    front = [row for row in trials if row["front"] == "True"]
    further, sign = OBJECTIVES[model][1], -1 if OBJECTIVES[model][1] == "trust" else 1
    points = [(float(row["value"]), sign * float(row[further])) for row in complete]
    beaten = [any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    assert front == [row for row, is_beaten in zip(complete, beaten, strict=True) if not is_beaten]
    section = sections.search(preprocessed / "tune").context
    assert section.columns == ["trial", "error", further, *space]
    assert sorted(row[0] for row in section.rows) == sorted(row["number"] for row in front)
    assert sum("Pareto front" in image.alt for image in section.images) == 1

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{preprocessed / 'tune/study.db'}")
    names = "-".join(name.rpartition(".")[2] for name in space)
    assert re.fullmatch(f"{model}-{names}-[0-9a-f]{{8}}", study.study_name)
    assert study.user_attrs["objectives"] == OBJECTIVES[model]
    assert study.user_attrs["corpus"]["kind"] == "sample"
    assert study.user_attrs["parameters"]["train"]["common"]["batch_size"] == 4
    best = min(complete, key=lambda row: float(row["value"]))
    overlay = yaml.safe_load((preprocessed / "tune/best_params.yaml").read_text())
    assert {name: str(value_at(overlay, name)) for name in space} == {name: best[name] for name in space}
    (experiment,) = (e for e in records.search_experiments() if e.name == "qa-moe")
    (parent,) = records.search_runs([experiment.experiment_id], "tags.`qamoe.role` = 'study'")
    assert parent.info.run_name == study.study_name
    children = records.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["model"] for run in [parent, *children]} == {model}
    assert {run.data.tags["corpus"] for run in [parent, *children]} == {parent.data.tags["corpus"]}
    ended = [run for run in children if run.info.status == "FINISHED"]
    kept = {run.info.run_name.removeprefix("trial-"): run.data.tags.get("checkpoint_best") for run in ended}
    if model == "qamoe":
        assert set(kept.values()) == {None}
    else:
        folder = Path(mlflow.artifacts.download_artifacts(kept[best["number"]]))
        assert checkpoint.load(folder).config["selection"] == pytest.approx(float(best["value"]))


def _is_running(trial: Any) -> bool:
    return trial.state.name == "RUNNING" and "worker" in trial.user_attrs


def _trials(params: Any, database: Path) -> list[Any]:
    """Return the trials of the only study in a database, none as long as the study does not exist."""
    if not database.exists():
        return []
    try:
        (summary,) = optuna.get_all_study_summaries(f"sqlite:///{database}")
        return search.open_study(params, summary.study_name, f"sqlite:///{database}").get_trials()
    except Exception:  # the database is being created
        return []
