"""kill -9 at random moments: after a restart the pipeline gives the same result and leaves no temporary files.

Each seed kills a stage, dvc, the flow, the worker and the server, in a random order and at random moments.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Run, copy_checkout, serving
from tests.end_to_end.services import ENDED, Services

pytestmark = pytest.mark.slow

SEEDS = range(6)  # five kills per seed
# Parts of a command; a process with any of them is a victim.
VICTIMS = {"stage": ("qamoe run ", "qamoe promote"), "dvc": ("-m dvc",), "flow": ("prefect.engine",)}
MOST_RUNS = 10  # to meet a victim
DEPLOYMENT = "pipeline/nightly"
TEMPORARY = re.compile(r"\.[0-9]+$|\.making$|\.tmp$|\.part$|^\.copy-")


def kill_one(services: Services, victim: str, moment_s: float) -> None:
    """Begin a run and kill a process of that kind after `moment_s`; if the run ends earlier, use the next run.

    A killed service is started again. Returns when the run has ended, because the schedule begins the next run then.
    """
    run = services.begin(DEPLOYMENT)
    while moment_s > 0 and not has_ended(services, run):
        services.pause(min(moment_s, 1.0))
        moment_s -= 1.0
    if victim in services.running:
        services.kill(victim)
        services.start(victim)
    else:
        begun = 1
        while not (victims := [pid for part in VICTIMS[victim] for pid in services.processes(part)]):
            if has_ended(services, run):
                assert begun < MOST_RUNS, f"no process of {victim} was seen"
                run, begun = services.begin(DEPLOYMENT), begun + 1
            services.pause(0.02)
        os.kill(victims[0], signal.SIGKILL)
    services.until(lambda: has_ended(services, run) or not services.processes(*VICTIMS["flow"]))


def has_ended(services: Services, run: str) -> bool:
    """Return whether the server knows that a run has ended."""
    return (services.state(run) or {"type": ""})["type"] in ENDED


@pytest.fixture(scope="module")
def team(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Run server and worker of a checkout in which nothing has run."""
    folder = tmp_path_factory.mktemp("killed")
    with serving(copy_checkout(untouched, folder / "checkout"), folder / "prefect") as services:
        yield services


def reset(checkout: Path, untouched: Path) -> None:
    """Remove the outputs, the cache of DVC and the records of all runs."""
    for name in ("artifacts", ".dvc", "mlartifacts"):
        shutil.rmtree(checkout / name, ignore_errors=True)
    (checkout / "dvc.lock").unlink(missing_ok=True)
    shutil.copytree(untouched / ".dvc", checkout / ".dvc")
    shutil.copy(untouched / "mlflow.db", checkout / "mlflow.db")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pipeline_killed_five_times_gives_the_result_of_an_undisturbed_one(
    seed: int, untouched: Path, finished: Run, team: Services
) -> None:
    checkout = team.checkout
    reset(checkout, untouched)
    draws = random.Random(seed)
    for victim in draws.sample(["stage", "dvc", "flow", "worker", "server"], 5):
        moment = draws.uniform(0, finished.seconds / 4)
        print(f"{victim}, killed after {moment:.1f} s", flush=True)
        kill_one(team, victim, moment)
    state = team.wait_for_end(team.begin(DEPLOYMENT))
    assert state["type"] == "COMPLETED", state["message"]

    # Only the two services use Prefect's folder.
    team.until(lambda: not set(team.processes()) - {process.pid for process in team.running.values()}, 60)
    for path in ("report/metrics.json", "tune/best_params.yaml"):
        assert (checkout / "artifacts" / path).read_text() == (finished.checkout / "artifacts" / path).read_text()
    temporary = [path for path in checkout.rglob("*") if ".git" not in path.parts and TEMPORARY.search(path.name)]
    assert temporary == [], "unfinished files"
    assert list((checkout / "artifacts").rglob("*.lock")) == [], "a lock of a stage"
    # The file lists read locks of dead processes until dvc needs the path; dvc then removes them.
    holders = re.findall(r'"pid": ([0-9]+)', (checkout / ".dvc/tmp/rwlock").read_text())
    assert [pid for pid in holders if Path(f"/proc/{pid}").exists()] == [], "a lock of dvc"
    status = [sys.executable, "-m", "dvc", "status", "--json"]
    assert json.loads(subprocess.run(status, cwd=checkout, capture_output=True, check=True).stdout) == {}
    assert registered(checkout) == registered(finished.checkout)


def registered(checkout: Path) -> list[tuple[str, Any]]:
    """Return alias and seed of every registered version."""
    from mlflow import MlflowClient

    store = f"sqlite:///{checkout / 'mlflow.db'}"
    client = MlflowClient(store, store)
    (model,) = client.search_registered_models()
    aliases = {str(version): alias for alias, version in model.aliases.items()}
    versions = client.search_model_versions(f"name = '{model.name}'")
    return [(aliases.get(str(v.version), ""), v.tags["qamoe.seed"]) for v in versions]
