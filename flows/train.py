"""Clean splits -> checkpoints of every model: the DVC stage `train`, alone."""

from typing import Any

from prefect import State, flow

from flows._dvc import stage_alone, start


@flow(name="train")
def train() -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is."""
    return stage_alone("train")


if __name__ == "__main__":
    start(train)
