"""A training that would take days, ended from outside: by the API, with its worker, and with the whole machine."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from tests.end_to_end.conftest import Run, copied, git, serving
from tests.end_to_end.services import Services

pytestmark = pytest.mark.slow

DEPLOYMENT = "pipeline/nightly"
WITHIN_S = 10  # of the training's end after it was cancelled
AGAIN_WITHIN_S = 330  # of the next run's start: a lease of five minutes, and those who look for lapsed ones


@pytest.fixture(scope="module")
def endless(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Server and worker of a checkout whose training is stale, and has very many epochs."""
    folder = tmp_path_factory.mktemp("endless")
    checkout = copied(finished.checkout, folder / "checkout")
    params = yaml.safe_load((checkout / "params.yaml").read_text())
    params["train"]["common"] |= {"epochs": 1_000_000, "patience": 1_000_000}
    (checkout / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git(checkout, "commit", "--all", "--quiet", "--message", "train for days")
    with serving(checkout, folder / "prefect") as services:
        yield services


@contextmanager
def training(services: Services) -> Iterator[tuple[str, int]]:
    """A run whose training works; gives its id, and a descriptor of the training's process."""
    run = services.begin(DEPLOYMENT)
    log = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC"}
    services.until(
        lambda: any('"model": "qamoe"' in line["message"] for line in services.ask("logs/filter", log) or ())
    )
    (process,) = services.processes("qamoe run train --model qamoe")
    descriptor = os.pidfd_open(process)
    yield run, descriptor
    os.close(descriptor)


def cancel(services: Services, run: str) -> None:
    """As the button in Prefect's page does."""
    services.ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})


def begins_again(services: Services) -> None:
    """Another run gets the slot and starts; it is ended for the next test."""
    run = services.begin(DEPLOYMENT, AGAIN_WITHIN_S)
    cancel(services, run)
    services.ended(run)


def test_cancelling_by_the_api_ends_the_training(endless: Services) -> None:
    with training(endless) as (run, process):
        cancel(endless, run)
        assert select.select([process], [], [], WITHIN_S)[0], "the training is there still"
        assert endless.ended(run)["type"] == "CANCELLED"
    endless.until(lambda: endless.processes("qamoe.pipeline") == endless.processes("-m dvc") == [])


def test_a_killed_worker_takes_its_run_along_and_the_next_one_starts(endless: Services) -> None:
    with training(endless) as (run, process):
        endless.kill("worker")
        assert select.select([process], [], [], 60)[0], "the training is there still"
        assert endless.ended(run)["type"] == "CRASHED"
        endless.start("worker")
    begins_again(endless)


def test_a_run_whose_machine_stopped_does_not_hold_its_slot(endless: Services) -> None:
    """Flow, worker and server are killed at once: nobody is left to say that the run has ended."""
    with training(endless) as (_, process):
        endless.kill("server")
        endless.kill("worker")
        for pid in endless.processes("prefect.engine"):
            os.kill(pid, 9)
        assert select.select([process], [], [], 60)[0], "the training is there still"
        endless.start("server")
        endless.start("worker")
    begins_again(endless)
