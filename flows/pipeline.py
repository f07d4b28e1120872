"""Run all stale stages from the corpus to the report, then the promotion gate.

This is one flow with one task per stage; one flow per stage would add seconds for each.
"""

import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import _workspace
from flows._dvc import command, plan, run_stage, stale, start, status
from flows._workspace import Experiment
from flows.promote import decision, run_promotion

_NEXT = """Report: artifacts/report/index.html   Runs and models: make ui
Next: . .venv/bin/activate, then qamoe predict CLIP --text WORDS"""
_BEGUN = Path(".dvc/tmp/pull-begun")  # exists while dvc fills data/ file by file


@flow(name="pipeline")
def pipeline(scheduled: bool = False, ingest_from: str | None = None, experiment: Experiment = None) -> State[Any]:
    """Run the stale stages in order, then always the promotion gate: an earlier run may have stopped before it.

    scheduled: refuse a working tree with changes, so the commit identifies the code of the run.
    ingest_from: a folder with a manifest.csv whose new clips are first added to data/; it may be missing.
    experiment: the name of a file in experiments/, whose pipeline to run instead of dvc.yaml.
    """
    return _workspace.run("pipeline", lambda: _run_stages(ingest_from, experiment), scheduled=scheduled)


def _run_stages(ingest_from: str | None, experiment: Experiment) -> State[Any]:
    for prepare in (_pull, lambda: _ingest(ingest_from), lambda: plan(experiment)):
        state = prepare()
        if not state.is_completed():
            return state
    dvc_status = status(experiment)
    if not dvc_status.is_completed():
        return dvc_status
    stages = stale(dvc_status.result(), experiment)
    title = f"{stages[0]} to {stages[-1]}" if len(stages) > 1 else "".join(stages) or "nothing stale"
    get_run_logger().info("stages to run: %s", ", ".join(stages) or "none")
    _workspace.set_run_name(title)
    outputs = []
    for stage in stages:
        state = run_stage(stage, experiment=experiment)
        if not state.is_completed():
            return state
        if stage == "report":
            outputs.append(state.result())
    state = run_promotion(experiment)
    if not state.is_completed():
        return state
    outputs.append(state.result())
    _workspace.set_run_name(f"{title}, {decision(state.result())}")
    _workspace.publish("pipeline", state.result(), folder=_workspace.artifacts(experiment))
    outputs.append(_NEXT if experiment is None else f"Report: {_workspace.artifacts(experiment)}/report/index.html")
    message = f"ran {', '.join(stages)}" if stages else "nothing was stale"
    return Completed(message=message, data="\n\n".join(filter(None, outputs)))


def _pull() -> State[Any]:
    """Fetch the corpus if it does not exist, or if an earlier pull was killed."""
    begun = _BEGUN.exists()
    if not begun and (Path("data").exists() or not Path("data.dvc").exists()):
        return Completed(message="data/ exists")
    _BEGUN.parent.mkdir(parents=True, exist_ok=True)
    _BEGUN.touch()
    state = command("pull", "dvc", "pull", *(["--force"] if begun else []), "data.dvc")
    if state.is_completed():
        _BEGUN.unlink()
    return state


def _ingest(folder: str | None) -> State[Any]:
    """Add the new clips of a folder to data/, and update data.dvc."""
    if folder is None or not (Path(folder) / "manifest.csv").is_file():
        return Completed(message="no manifest.csv to ingest")
    state = command("ingest", "qamoe", "ingest", folder)
    if not state.is_completed():
        return state
    # Also without new clips: an earlier run may have stopped between the two commands.
    return command("add", "dvc", "add", "data", "--quiet")


if __name__ == "__main__":
    start(pipeline, sys.argv[1:])
