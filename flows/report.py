"""Evaluations -> the report: the DVC stage `report`, alone."""

from typing import Any

from prefect import State, flow

from flows._dvc import stage_alone, start


@flow(name="report")
def report() -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is."""
    return stage_alone("report")


if __name__ == "__main__":
    start(report)
