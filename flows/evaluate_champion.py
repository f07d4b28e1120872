"""The champion on today's test split: an event, so it is no DVC stage. It is recorded on the model, in MLflow."""

from typing import Any

from prefect import State, flow

from flows import _workspace
from flows._dvc import command, start


@flow(name="evaluate-champion")
def evaluate_champion(scheduled: bool = False) -> State[Any]:
    """Measure the champion on the test split as it is now; what was measured before is not measured again.

    scheduled: refuse a working tree with changes, so that the run's commit says what it ran.
    """

    def work() -> State[Any]:
        state = command("evaluate-champion", "qamoe", "evaluate-champion")
        if state.is_completed():
            first, *_ = state.result().splitlines() or [""]
            _workspace.named(first.partition("; ")[0] or "evaluate the champion")
            _workspace.published("evaluate-champion", state.result(), table=False)
        return state

    return _workspace.run("evaluate the champion", work, scheduled=scheduled)


if __name__ == "__main__":
    start(evaluate_champion)
