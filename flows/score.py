"""Score the clips of a folder with the champion into one parquet file; existing scores are kept."""

import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import _workspace
from flows._dvc import command, start
from flows._workspace import Experiment

WAITING = "data-to-score"


@flow(name="score")
def score(
    source: str = WAITING, out: str = "artifacts-score", scheduled: bool = False, experiment: Experiment = None
) -> State[Any]:
    """Score the clips of a folder of media, or of a manifest, with the champion into OUT/scores.parquet.

    A missing folder is not an error. scheduled: refuse a working tree with changes, so the commit identifies the code
    of the run. The flow changes nothing that another flow reads. experiment: whose champion to use.
    """

    def work() -> State[Any]:
        if not Path(source).exists():
            get_run_logger().info("nothing to score: %s does not exist", source)
            return Completed(message=f"nothing to score: {source} does not exist")
        state = command("score", "qamoe", "score", source, "--out", out, *_workspace.overlaid(experiment))
        if state.is_completed():
            output = state.result()
            _workspace.set_run_name(output.splitlines()[-1] if output.strip() else f"score {source}")
            _workspace.publish("score", output, table=False)
        return state

    return _workspace.run(f"score {source}", work, scheduled=scheduled, reads_only=True)


if __name__ == "__main__":
    start(score, sys.argv[1:])
