"""Search over the training parameters: the DVC stage `tune`, alone."""

from typing import Any

from prefect import State, flow

from flows._dvc import run_stage, start


@flow(name="tune")
def tune() -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is."""
    return run_stage("tune")


if __name__ == "__main__":
    start(tune)
