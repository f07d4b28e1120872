"""kill -9 at random moments: after a restart the pipeline ends as if nothing had happened, and nothing is left over.

Each seed kills all five, in an order and at moments of its own: a stage, dvc, the flow, the worker and the server.
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

from tests.end_to_end.conftest import Run, copied, serving
from tests.end_to_end.services import ENDED, Services

pytestmark = pytest.mark.slow

SEEDS = range(6)  # of five kills each
VICTIMS = {"stage": ("qamoe run ", "qamoe promote"), "dvc": ("-m dvc",), "flow": ("prefect.engine",)}
DEPLOYMENT = "pipeline/nightly"
ASIDE = re.compile(r"\.[0-9]+$|\.making$|\.tmp$|\.part$|^\.copy-")


def kill_one(services: Services, what: str, moment_s: float) -> None:
    """Begin a run, and kill a process of that kind once `moment_s` have passed; where the run ends before, in the next.

    What died is started again. Returns when the run has ended, so that the next begins as the schedule would.
    """
    run = services.begin(DEPLOYMENT)
    while moment_s > 0 and not over(services, run):
        services.pause(min(moment_s, 1.0))
        moment_s -= 1.0
    if what in services.running:
        services.kill(what)
        services.start(what)
    else:
        while not (victims := services.processes(*VICTIMS[what])):
            if over(services, run):
                run = services.begin(DEPLOYMENT)
            services.pause(0.02)
        os.kill(victims[0], signal.SIGKILL)
    services.until(lambda: over(services, run) or not services.processes(*VICTIMS["flow"]))


def over(services: Services, run: str) -> bool:
    """Whether the server knows that a run has ended."""
    return (services.state(run) or {"type": ""})["type"] in ENDED


@pytest.fixture(scope="module")
def team(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Server and worker of a checkout, in which nothing has run."""
    folder = tmp_path_factory.mktemp("killed")
    with serving(copied(untouched, folder / "checkout"), folder / "prefect") as services:
        yield services


def begin_anew(checkout: Path, untouched: Path) -> None:
    """Forget what ran: outputs, what dvc keeps, records."""
    for name in ("artifacts", ".dvc", "mlartifacts"):
        shutil.rmtree(checkout / name, ignore_errors=True)
    (checkout / "dvc.lock").unlink(missing_ok=True)
    shutil.copytree(untouched / ".dvc", checkout / ".dvc")
    shutil.copy(untouched / "mlflow.db", checkout / "mlflow.db")


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_five_times_and_as_good_as_never(seed: int, untouched: Path, finished: Run, team: Services) -> None:
    checkout = team.checkout
    begin_anew(checkout, untouched)
    drawn = random.Random(seed)
    for what in drawn.sample(["stage", "dvc", "flow", "worker", "server"], 5):
        moment = drawn.uniform(0, finished.seconds / 4)
        print(f"{what}, killed after {moment:.1f} s", flush=True)
        kill_one(team, what, moment)
    state = team.ended(team.begin(DEPLOYMENT))
    assert state["type"] == "COMPLETED", state["message"]

    # Who holds Prefect's folder: the two services and nobody else.
    team.until(lambda: not set(team.processes()) - {process.pid for process in team.running.values()}, 60)
    for path in ("report/metrics.json", "tune/best_params.yaml"):
        assert (checkout / "artifacts" / path).read_text() == (finished.checkout / "artifacts" / path).read_text()
    left = [path for path in checkout.rglob("*") if ".git" not in path.parts and ASIDE.search(path.name)]
    assert left == [], "half-written files"
    assert list((checkout / "artifacts").rglob("*.lock")) == [], "a stage's lock"
    # What dead processes read stands in here until dvc wants to write there, and then removes it by itself.
    held = re.findall(r'"pid": ([0-9]+)', (checkout / ".dvc/tmp/rwlock").read_text())
    assert [pid for pid in held if Path(f"/proc/{pid}").exists()] == [], "a lock of dvc's"
    status = [sys.executable, "-m", "dvc", "status", "--json"]
    assert json.loads(subprocess.run(status, cwd=checkout, capture_output=True, check=True).stdout) == {}
    assert champions(checkout) == champions(finished.checkout)


def champions(checkout: Path) -> list[tuple[str, Any]]:
    """Model, seed and aliases of every registered version."""
    from mlflow import MlflowClient

    store = f"sqlite:///{checkout / 'mlflow.db'}"
    client = MlflowClient(store, store)
    (model,) = client.search_registered_models()
    aliases = {str(of): alias for alias, of in model.aliases.items()}
    versions = client.search_model_versions(f"name = '{model.name}'")
    return [(aliases.get(str(v.version), ""), v.tags["qamoe.seed"]) for v in versions]
