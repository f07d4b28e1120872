"""Checkpoints -> predictions and cells along the spectrum: the DVC stage `evaluate`, alone."""

from typing import Any

from prefect import State, flow

from flows._dvc import stage_alone, start


@flow(name="evaluate")
def evaluate() -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is."""
    return stage_alone("evaluate")


if __name__ == "__main__":
    start(evaluate)
