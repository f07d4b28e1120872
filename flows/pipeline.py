"""The whole line from a corpus to a champion: what is stale runs, then the gate decides.

One flow with a task a stage: a flow of its own for each would cost seconds apiece and add nothing.
"""

from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import _workspace
from flows._dvc import command, run_stage, stale, start, status
from flows.promote import ask_gate, decision

_BEGUN = Path(".dvc/tmp/pull-begun")  # dvc fills data/ file by file


@flow(name="pipeline")
def pipeline(scheduled: bool = False, ingest_from: str | None = None) -> State[Any]:
    """Run the stale stages in order, then always the gate: an earlier run may have died before it.

    scheduled: refuse a working tree with changes, so that the run's commit says what it ran.
    ingest_from: a folder with a manifest.csv whose new clips go into data/ first; none there is no failure.
    """
    return _workspace.run("pipeline", lambda: _line(ingest_from), scheduled=scheduled)


def _line(ingest_from: str | None) -> State[Any]:
    for prepare in (_pull, lambda: _ingest(ingest_from)):
        state = prepare()
        if not state.is_completed():
            return state
    found = status()
    if not found.is_completed():
        return found
    stages = stale(found.result())
    doing = f"{stages[0]} to {stages[-1]}" if len(stages) > 1 else "".join(stages) or "nothing stale"
    get_run_logger().info("to run: %s", ", ".join(stages) if stages else "nothing; no stage is stale")
    _workspace.named(doing)
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
    _workspace.named(f"{doing}, {decision(state.result())}")
    _workspace.published("pipeline", state.result())
    said.append("Report: artifacts/report/index.html   Runs and models: make ui   Next: dvc metrics show")
    ran = f"ran {', '.join(stages)}" if stages else "nothing was stale"
    return Completed(message=ran, data="\n\n".join(filter(None, said)))


def _pull() -> State[Any]:
    """Fetch the corpus where there is none, or where a kill left half of one."""
    begun = _BEGUN.exists()
    if not begun and (Path("data").exists() or not Path("data.dvc").exists()):
        return Completed(message="data/ is there")
    _BEGUN.parent.mkdir(parents=True, exist_ok=True)
    _BEGUN.touch()
    state = command("pull", "dvc", "pull", *(["--force"] if begun else []), "data.dvc")
    if state.is_completed():
        _BEGUN.unlink()
    return state


def _ingest(folder: str | None) -> State[Any]:
    """New clips of a folder -> data/, and what data/ is now -> data.dvc."""
    if folder is None or not (Path(folder) / "manifest.csv").is_file():
        return Completed(message="no manifest waits")
    state = command("ingest", "qamoe", "ingest", folder)
    if not state.is_completed():
        return state
    # Also where nothing was new: an earlier run may have died between the two.
    return command("add", "dvc", "add", "data", "--quiet")


if __name__ == "__main__":
    start(pipeline)
