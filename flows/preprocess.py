"""Features -> clean splits: the DVC stage `preprocess`, alone."""

from typing import Any

from prefect import State, flow

from flows._dvc import stage_alone, start


@flow(name="preprocess")
def preprocess() -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is."""
    return stage_alone("preprocess")


if __name__ == "__main__":
    start(preprocess)
