"""Evaluate the champion on the current test split and record the result in MLflow. This is not a DVC stage."""

from typing import Any

from prefect import State, flow

from flows import _workspace
from flows._dvc import command, start


@flow(name="evaluate-champion")
def evaluate_champion(scheduled: bool = False) -> State[Any]:
    """Evaluate the champion on the current test split, unless the same evaluation is already recorded.

    scheduled: refuse a working tree with changes, so the commit identifies the code of the run.
    """

    def work() -> State[Any]:
        state = command("evaluate-champion", "qamoe", "evaluate-champion")
        if state.is_completed():
            first, *_ = state.result().splitlines() or [""]
            _workspace.set_run_name(first.partition("; ")[0] or "evaluate the champion")
            _workspace.publish("evaluate-champion", state.result(), table=False)
        return state

    return _workspace.run("evaluate the champion", work, scheduled=scheduled)


if __name__ == "__main__":
    start(evaluate_champion)
