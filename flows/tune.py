"""Run the DVC stage `tune` as a flow: a search over parameters of one model."""

import sys
from typing import Annotated, Any, Literal

from prefect import State, flow
from pydantic import Field

from flows._dvc import stage_alone, start
from flows._workspace import Experiment


@flow(name="tune")
def tune(
    workers: Annotated[int, Field(ge=1)] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    experiment: Experiment = None,
) -> State[Any]:
    """Run the stage if it is stale. Earlier stages do not run.

    workers: number of parallel trials. device: cpu or cuda. The search space comes from params.yaml. experiment: the
    name of a file in experiments/, whose search to run instead.
    """
    variables = {"QAMOE_WORKERS": workers, "QAMOE_DEVICE": device}
    changed = {name: str(value) for name, value in variables.items() if value is not None}
    return stage_alone("tune", changed, experiment)


if __name__ == "__main__":
    start(tune, sys.argv[1:])
