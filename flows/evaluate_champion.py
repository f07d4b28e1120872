"""Evaluate the champion on the current test split and record the result in MLflow. This is not a DVC stage."""

import sys
from typing import Any

from prefect import State, flow

from flows import _workspace
from flows._dvc import command, start
from flows._workspace import Experiment


@flow(name="evaluate-champion")
def evaluate_champion(scheduled: bool = False, experiment: Experiment = None) -> State[Any]:
    """Evaluate the champion on the current test split, unless the same evaluation is already recorded.

    scheduled: refuse a working tree with changes, so the commit identifies the code of the run. experiment: whose
    champion to measure, on its test split.
    """

    def work() -> State[Any]:
        chosen = (*_workspace.overlaid(experiment), "--out", str(_workspace.artifacts(experiment)))
        state = command("evaluate-champion", "qamoe", "evaluate-champion", *chosen)
        if state.is_completed():
            first, *_ = state.result().splitlines() or [""]
            _workspace.set_run_name(first.partition("; ")[0] or "evaluate the champion")
            _workspace.publish("evaluate-champion", state.result(), table=False)
        return state

    return _workspace.run("evaluate the champion", work, scheduled=scheduled)


if __name__ == "__main__":
    start(evaluate_champion, sys.argv[1:])
