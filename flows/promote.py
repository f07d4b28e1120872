"""Run the promotion gate, which may make the best candidate the champion. This is not a DVC stage."""

import sys
from typing import Any

from prefect import State, flow

from flows import _workspace
from flows._dvc import command, start
from flows._workspace import Experiment


def run_promotion(experiment: Experiment = None) -> State[Any]:
    """Run the promotion in its own process; a Completed state holds its output."""
    out = str(_workspace.artifacts(experiment))
    return command("promote", "qamoe", "promote", *_workspace.overlaid(experiment), "--out", out)


def decision(output: str) -> str:
    """Return promoted, refused or unchanged from the output of the promotion."""
    decisions = [line.removeprefix("decision: ") for line in output.splitlines() if line.startswith("decision: ")]
    return decisions[-1] if decisions else "no decision"


@flow(name="promote")
def promote(experiment: Experiment = None) -> State[Any]:
    """Promote the best trained candidate, or report why it is refused. An existing decision is not repeated.

    experiment: the name of an experiment whose candidate to use (artifacts-NAME/), instead of that in artifacts/.
    """

    def work() -> State[Any]:
        state = run_promotion(experiment)
        if state.is_completed():
            artifacts = _workspace.artifacts(experiment)
            _workspace.set_run_name(f"promotion from {artifacts}: {decision(state.result())}")
            _workspace.publish("promote", state.result(), folder=artifacts)
        return state

    return _workspace.run("promotion", work)


if __name__ == "__main__":
    start(promote, sys.argv[1:])
