"""Running stages from a flow: DVC knows what is stale, Prefect when to try again; here they meet.

A stage is `dvc repro -s STAGE` in one task without Prefect's cache, since DVC is the only cache. A failure becomes a
Failed state whose message is the stage's own sentence, not a traceback through two tools.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import Flow, State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows import _workspace
from flows._group import run

# As data flows. Nothing depends on `tune`; it comes before the report, which shows the study that it finds.
STAGES = ("extract", "preprocess", "train", "evaluate", "tune", "report")
_CODE = "code-"  # and a stage: that which writes down what the stage is made of
# DVC waits 3 s for its lock and gives up; a stage that hashes a large output holds it for longer.
_LOCKED = "Unable to acquire lock"
_LOST = "The records at http"  # a server may come back; a file that cannot be used stays so
_TRIES, _BETWEEN_S = 60, 5
# Lines that dvc prints beside the stage's. Its own --quiet would hide its errors too, that of the lock among them.
_STARTS, _ENDS = ("> ",), ("Running stage ", "Updating lock file ", "Generating lock file ", "Use `dvc push` ")
_STAGE_DONE = '{"stage": '  # the JSON line at the end of `qamoe run`, for programs
_ADVICE = (*_ENDS[1:], "To track the changes with git", "To enable auto staging", "\tgit add ", "\tdvc config ")


def locked(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether a failure passes by itself: another dvc was at work, or the records' server did not answer."""
    message = state.message or ""
    return _LOCKED in message or (_LOST in message and "cannot be used" in message)


def environment(changed: Mapping[str, str]) -> dict[str, str]:
    """Stages are commands that say `python`: that is this one, and its lines come at once."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **changed}


def sentence(stderr: Sequence[str], code: int) -> str:
    """What a person needs of a failed command's stderr: the stage's last line; DVC's own where the stage said none."""
    lines = [line.strip() for line in stderr if line.strip()]
    if not lines:
        return f"ended with exit code {code} and said nothing"
    busy = [line for line in lines if _LOCKED in line]
    if busy:
        return busy[-1]
    own = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    # "failed to run" only repeats the command; every other reason of DVC's is the reason.
    return own[-1] if own and "failed to run:" in lines[-1] else lines[-1]


def stage_output(stdout: Sequence[str]) -> str:
    """What the stages themselves printed in the course of a `dvc repro`."""
    lines, within = [], False
    for line in stdout:
        if line.startswith(_STARTS):
            within = True
        elif line.startswith(_ENDS):
            within = False
        elif within and not line.startswith(_STAGE_DONE):
            lines.append(line)
    return "\n".join(lines)


@task(
    name="command",
    cache_policy=NO_CACHE,
    retries=_TRIES,
    retry_delay_seconds=_BETWEEN_S,
    retry_condition_fn=locked,
)
def _command(arguments: Sequence[str], show: bool, changed: Mapping[str, str]) -> State[Any]:
    log = get_run_logger()

    def say(line: str) -> None:
        if show and line.strip() and not line.startswith(_ADVICE):
            log.info(line)

    ended = run([sys.executable, "-m", *arguments], say, environment(changed))
    if ended.code:
        return Failed(message=sentence(ended.stderr, ended.code))
    return Completed(data="\n".join(ended.stdout))


def command(name: str, *arguments: str, show: bool = True, changed: Mapping[str, str] | None = None) -> State[Any]:
    """Run `python -m ARGUMENTS` as the task `name` of the running flow; `changed` are environment variables for it.

    Returns a state that a flow may return as its own: Completed with stdout, or Failed with a sentence that names it.
    """
    named = _command.with_options(name=name, task_run_name=name)
    state = named(arguments, show, changed or {}, return_state=True)
    if state.is_completed():
        return Completed(data=state.result())
    message = state.message or "failed"
    return Failed(message=message if message.startswith(f"{name}: ") else f"{name}: {message}")


def run_stage(stage: str, changed: Mapping[str, str] | None = None) -> State[Any]:
    """Run one DVC stage, a matrix stage with all of its models, unless it is not stale; holds what it printed."""
    state = command(stage, "dvc", "repro", "--single-item", f"{_CODE}{stage}", stage, changed=changed)
    if state.is_completed():
        return Completed(data=stage_output(state.result().splitlines()))
    return state


def stage_alone(stage: str, changed: Mapping[str, str] | None = None) -> State[Any]:
    """The work of a flow of one stage: run it, and publish what it printed."""

    def work() -> State[Any]:
        state = run_stage(stage, changed)
        if state.is_completed():
            _workspace.published(stage, state.result() or "nothing was stale", table=stage in ("evaluate", "report"))
        return state

    return _workspace.run(stage, work)


def stage_flow(stage: str) -> Flow[[], State[Any]]:
    """The flow of one stage without parameters, for the module of flows/ under whose name Prefect looks for it."""

    def alone() -> State[Any]:
        """Run the stage if it is stale; what comes before it is taken as it is."""
        return stage_alone(stage)

    alone.__name__ = alone.__qualname__ = stage
    alone.__module__ = f"flows.{stage}"
    return flow(name=stage)(alone)


def status() -> State[Any]:
    """What `dvc status --json` says once it is known what the stages are made of: source files may have changed in a
    remark alone."""
    state = command("status", "dvc", "status", "--json", show=False)
    if not state.is_completed():
        return state
    made_of = sorted(name for name in json.loads(state.result()) if name.startswith(_CODE))
    if not made_of:
        return state
    written = command("code", "dvc", "repro", "--single-item", *made_of, show=False)
    return command("status", "dvc", "status", "--json", show=False) if written.is_completed() else written


def stale(status: str) -> tuple[str, ...]:
    """Stages to run, in order, from the JSON of `dvc status`: the first stale one and all after it.

    DVC names only what is stale by itself; that a stage changes what those after it stand on is known once it has run.
    """
    named = {name.partition("@")[0] for name in json.loads(status)}
    first = next((number for number, stage in enumerate(STAGES) if stage in named), len(STAGES))
    return STAGES[first:]


def start(started: Flow[..., Any]) -> None:
    """Run a flow as a command: at the end what it returned, or exit code 1 and one sentence where it failed."""
    try:
        state: Any = started(return_state=True)
    except RuntimeError as error:
        if "reach API" not in str(error):
            raise
        sys.exit(
            f"{started.name}: {error}; start that server, or unset PREFECT_API_URL to have one for this run alone."
        )
    except KeyboardInterrupt:
        print(f"{started.name}: stopped; start it again to go on.", file=sys.stderr)
        sys.exit(130)
    if not state.is_completed():
        message = state.message or "failed"
        sys.exit(message if message.startswith(f"{started.name}: ") else f"{started.name}: {message}")
    if text := state.result():
        print(text)
