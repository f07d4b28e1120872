"""A training that would take days is ended from outside: by the API, with its worker, with the whole machine."""

import os
import select
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import yaml

from tests.end_to_end.conftest import Run, copy_checkout, git, serving
from tests.end_to_end.services import Services

pytestmark = pytest.mark.slow

DEPLOYMENT = "pipeline/nightly"
CANCEL_S = 10  # time for the training to end after it is cancelled
NEXT_RUN_S = 330  # time for the next run to start: a lease of five minutes, and the search for expired leases


@pytest.fixture(scope="module")
def endless(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Run server and worker of a checkout whose training is stale and has very many epochs."""
    folder = tmp_path_factory.mktemp("endless")
    checkout = copy_checkout(finished.checkout, folder / "checkout")
    params = yaml.safe_load((checkout / "params.yaml").read_text())
    params["train"]["common"] |= {"epochs": 1_000_000, "patience": 1_000_000}
    (checkout / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git(checkout, "commit", "--all", "--quiet", "--message", "train for days")
    with serving(checkout, folder / "prefect") as services:
        yield services


@contextmanager
def training(services: Services) -> Iterator[tuple[str, int]]:
    """Start a run and wait until its training works; yields its id and a descriptor of the training process."""
    run = services.begin(DEPLOYMENT)
    log = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC"}
    services.until(lambda: any("qamoe, seed" in line["message"] for line in services.request("logs/filter", log) or ()))
    (process,) = services.processes("qamoe run train --model qamoe")
    descriptor = os.pidfd_open(process)
    yield run, descriptor
    os.close(descriptor)


def cancel(services: Services, run: str) -> None:
    """Cancel a run as the button of Prefect's page does."""
    services.request(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})


def statuses(services: Services) -> list[str]:
    """Return the status of each run in MLflow, the newest last."""
    with closing(sqlite3.connect(services.checkout / "mlflow.db")) as store:
        return [status for (status,) in store.execute("SELECT status FROM runs ORDER BY start_time")]


def assert_next_run_starts(services: Services) -> None:
    """Start another run, which needs the slot, and cancel it."""
    run = services.begin(DEPLOYMENT, NEXT_RUN_S)
    cancel(services, run)
    services.wait_for_end(run)


def test_cancelling_by_the_api_ends_the_training(endless: Services) -> None:
    with training(endless) as (run, process):
        cancel(endless, run)
        assert select.select([process], [], [], CANCEL_S)[0], "the training is still running"
        assert endless.wait_for_end(run)["type"] == "CANCELLED"
        assert statuses(endless)[-1] == "KILLED"
    endless.until(lambda: endless.processes("qamoe.pipeline") == endless.processes("-m dvc") == [])


def test_a_killed_worker_ends_its_run_and_the_next_one_starts(endless: Services) -> None:
    with training(endless) as (run, process):
        endless.kill("worker")
        assert select.select([process], [], [], 60)[0], "the training is still running"
        assert endless.wait_for_end(run)["type"] == "CRASHED"
        endless.start("worker")
    assert_next_run_starts(endless)


def test_a_run_on_a_stopped_machine_releases_its_slot(endless: Services) -> None:
    """Flow, worker and server are killed together, so no process can report the end of the run."""
    with training(endless) as (_, process):
        endless.kill("server")
        endless.kill("worker")
        for pid in endless.processes("prefect.engine"):
            os.kill(pid, 9)
        assert select.select([process], [], [], 60)[0], "the training is still running"
        endless.start("server")
        endless.start("worker")
    assert_next_run_starts(endless)
