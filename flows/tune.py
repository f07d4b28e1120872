"""Search over the training parameters: the DVC stage `tune`, alone."""

from typing import Annotated, Any, Literal

from prefect import State, flow
from pydantic import Field

from flows._dvc import stage_alone, start


@flow(name="tune")
def tune(
    workers: Annotated[int, Field(ge=1)] | None = None, device: Literal["cpu", "cuda"] | None = None
) -> State[Any]:
    """Run the stage if it is stale; what comes before it is taken as it is.

    workers: how many trials run side by side; device: where. Neither changes what is searched over: params.yaml does.
    """
    asked = {"QAMOE_WORKERS": workers, "QAMOE_DEVICE": device}
    return stage_alone("tune", {name: str(value) for name, value in asked.items() if value is not None})


if __name__ == "__main__":
    start(tune)
