"""The champion scores what lies in a folder: one parquet, clips that were scored before kept."""

from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import _workspace
from flows._dvc import command, start

WAITING = "data-to-score"


@flow(name="score")
def score(source: str = WAITING, out: str = "artifacts-score", scheduled: bool = False) -> State[Any]:
    """Score the clips of a folder of media, or of a manifest, with the champion into OUT/scores.parquet.

    A folder that is not there has nothing to score, which is no failure. scheduled: refuse a working tree with
    changes, so that the run's commit says what it ran. Changes nothing that another flow reads.
    """

    def work() -> State[Any]:
        if not Path(source).exists():
            get_run_logger().info("there is no %s: nothing to score", source)
            return Completed(message=f"nothing to score: there is no {source}")
        state = command("score", "qamoe", "score", source, "--out", out)
        if state.is_completed():
            said = state.result()
            _workspace.named(said.splitlines()[-1] if said.strip() else f"score {source}")
            _workspace.published("score", said, table=False)
        return state

    return _workspace.run(f"score {source}", work, scheduled=scheduled, reads_only=True)


if __name__ == "__main__":
    start(score)
