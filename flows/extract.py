"""Corpus -> features: the DVC stage `extract`, alone."""

from typing import Any

from prefect import State, flow

from flows._dvc import stage_alone, start


@flow(name="extract")
def extract() -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is."""
    return stage_alone("extract")


if __name__ == "__main__":
    start(extract)
