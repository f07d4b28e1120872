"""Serve the deployments of prefect.yaml from one process instead of a worker, for `make schedule`.

Needs a server (PREFECT_API_URL). When the process ends, its schedules are paused.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

import yaml
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron

PLAN = Path("prefect.yaml")


def deployments(plan: Path = PLAN) -> list[RunnerDeployment]:
    """Return the deployments of prefect.yaml, to be run by this process."""
    return [_deployment(content) for content in yaml.safe_load(plan.read_text())["deployments"]]


def _deployment(content: dict[str, Any]) -> RunnerDeployment:
    path, _, name = content["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    deployment: RunnerDeployment = flow.to_deployment(
        name=content["name"],
        description=content["description"],
        parameters=content.get("parameters", {}),
        schedules=[Cron(plan["cron"], timezone=plan["timezone"]) for plan in content["schedules"]],
        concurrency_limit=ConcurrencyLimitConfig(**content["concurrency_limit"]),
    )
    return deployment


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m flows.schedule", description=__doc__).parse_args()
    serve(*deployments())
