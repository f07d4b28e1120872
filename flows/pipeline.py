"""The whole line from a corpus to a champion: what is stale runs, then the gate decides.

One flow with a task a stage: a flow of its own for each would cost seconds apiece and add nothing.
"""

import subprocess
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed, Failed

from flows._dvc import command, run_stage, stale, start
from flows.promote import ask_gate


def changed_files() -> list[str]:
    """Tracked files that differ from the last commit, without those that the pipeline itself may change."""
    asked = ["git", "diff", "--name-only", "HEAD"]
    names = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in names if name != "dvc.lock" and not name.endswith(".dvc")]


@flow(name="pipeline")
def pipeline(committed_only: bool = False) -> State[Any]:
    """Run the stale stages in order, then always the gate: an earlier run may have died before it.

    committed_only: refuse a working tree with changes, so that a scheduled run's commit says what it ran.
    """
    if committed_only and (changed := changed_files()):
        return Failed(message=f"Changed but not committed: {', '.join(changed)}; a scheduled run takes commits only.")
    if not Path("data").exists() and Path("data.dvc").exists():
        state = command("pull", "dvc", "pull", "data.dvc")
        if not state.is_completed():
            return state
    status = command("status", "dvc", "status", "--json", show=False)
    if not status.is_completed():
        return status
    stages = stale(status.result())
    get_run_logger().info("to run: %s", ", ".join(stages) if stages else "nothing; no stage is stale")
    said = []
    for stage in stages:
        state = run_stage(stage)
        if not state.is_completed():
            return state
        if stage == "report":
            said.append(state.result())
    state = ask_gate()
    if not state.is_completed():
        return state
    said.append(state.result())
    said.append("Report: artifacts/report/index.html   Runs and models: make ui   Next: dvc metrics show")
    ran = f"ran {', '.join(stages)}" if stages else "nothing was stale"
    return Completed(message=ran, data="\n\n".join(filter(None, said)))


if __name__ == "__main__":
    start(pipeline)
