"""Run DVC stages from flows: DVC decides what is stale, Prefect retries.

A stage is one task that runs `dvc repro -s STAGE`. Prefect's cache is off, because DVC caches. A failure becomes a
Failed state whose message is the error message of the stage, without a traceback.
"""

import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import Flow, State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment
from prefect.states import Completed, Failed
from pydantic import TypeAdapter, ValidationError

from flows import _workspace
from flows._group import run
from flows._workspace import Experiment
from qamoe.config.overlay import experiment_content
from qamoe.errors import UserError
from qamoe.terminal import open_streams, printable
from qamoe.tracking.mlflow_store import masked

# In the order of the data. No stage depends on `tune`; it runs before the report, which shows its study.
STAGES = ("extract", "preprocess", "train", "evaluate", "tune", "report")
_CODE = "code-"  # prefix of the stage that records the source files of a stage
_PARAMETERS = "tune-parameters"  # records the parameters that the search does not vary
# DVC waits 3 s for its lock and fails; a stage that hashes a large output holds the lock for longer.
_LOCKED = "Unable to acquire lock"
_LOST = "The records at http"  # a server may come back; an unusable file does not
_TRIES, _BETWEEN_S = 60, 5
_RUNS = "Running stage "
# Lines that dvc prints in addition to those of the stage. dvc --quiet would hide its errors too, such as a held lock.
_STARTS, _ENDS = ("> ",), (_RUNS, "Updating lock file ", "Generating lock file ", "Use `dvc push` ")
_STAGE_DONE = '{"stage": '  # the JSON line at the end of `qamoe run`, for programs
_ADVICE = (
    *_ENDS[1:],
    "To track the changes with git",
    "To enable auto staging",
    "\tgit add ",
    "\tdvc config ",
    "No remote provided",  # of `dvc pull data.dvc`, which names its remote
)


def locked(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether a failure is temporary: another dvc holds the lock, or the MLflow server does not answer."""
    message = state.message or ""
    return _LOCKED in message or (_LOST in message and "cannot be used" in message)


def environment(changed: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: `python` is this interpreter, and its output is not buffered."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **changed}


def sentence(stderr: Sequence[str], code: int) -> str:
    """Return the error message of a failed command: the last line of the stage, or DVC's if the stage wrote none."""
    lines = [line.strip() for line in stderr if line.strip()]
    if not lines:
        return f"failed with exit code {code} and without a message"
    lock_errors = [line for line in lines if _LOCKED in line]
    if lock_errors:
        return lock_errors[-1]
    stage_lines = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    # DVC's "failed to run" only repeats the command; its other messages give the reason.
    return stage_lines[-1] if stage_lines and "failed to run:" in lines[-1] else lines[-1]


def stage_output(stdout: Sequence[str]) -> str:
    """Return the lines of a `dvc repro` that the stages printed, without those of DVC."""
    lines, in_stage = [], False
    for line in stdout:
        if line.startswith(_STARTS):
            in_stage = True
        elif line.startswith(_ENDS):
            in_stage = False
        elif in_stage and not line.startswith(_STAGE_DONE):
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

    def log_line(stream: str, line: str) -> None:
        # `start` prints what a command has on stdout; a deployed flow has its log alone.
        logged = stream == "stderr" or deployment.id is not None or line.startswith(_RUNS)
        if show and logged and line.strip() and not line.startswith(_ADVICE):
            log.info(printable(masked(line)))

    result = run([sys.executable, "-m", *arguments], log_line, environment(changed))
    if result.code:
        return Failed(message=printable(masked(sentence(result.stderr, result.code))))
    return Completed(data="\n".join(result.stdout))


def command(name: str, *arguments: str, show: bool = True, changed: Mapping[str, str] | None = None) -> State[Any]:
    """Run `python -m ARGUMENTS` as the task `name` of the current flow. changed: environment variables to set.

    Returns a state that a flow can return: Completed with stdout, or Failed with a message that starts with the name.
    """
    named = _command.with_options(name=name, task_run_name=name)
    state = named(arguments, show, changed or {}, return_state=True)
    if state.is_completed():
        return Completed(data=state.result())
    message = state.message or "failed"
    return Failed(message=message if message.startswith(f"{name}: ") else f"{name}: {message}")


def plan(experiment: Experiment, search: bool = False) -> State[Any]:
    """Write the pipeline of an experiment from dvc.yaml and its overlay. search: with its search, which may be new."""
    if experiment is None:
        return Completed(message="dvc.yaml exists")
    options = ("--plan", "--search") if search else ("--plan",)
    return command("plan", "qamoe", "experiment", experiment, *options, show=False)


def _in_plan(experiment: Experiment, stage: str = "") -> str:
    """Return how DVC names a stage, or without one the whole pipeline."""
    path = "dvc.yaml" if experiment is None else f"{_workspace.artifacts(experiment)}/dvc.yaml"
    return path if not stage else stage if experiment is None else f"{path}:{stage}"


def run_stage(stage: str, changed: Mapping[str, str] | None = None, experiment: Experiment = None) -> State[Any]:
    """Run one DVC stage if it is stale, a matrix stage for all its models; the state holds its output."""
    recorded = [f"{_CODE}{stage}", *([_in_plan(experiment, _PARAMETERS)] if stage == "tune" else [])]
    state = command(stage, "dvc", "repro", "--single-item", *recorded, _in_plan(experiment, stage), changed=changed)
    if state.is_completed():
        return Completed(data=stage_output(state.result().splitlines()))
    return state


def stage_alone(stage: str, changed: Mapping[str, str] | None = None, experiment: Experiment = None) -> State[Any]:
    """Run one stage as a flow of its own, and publish its output."""

    def work() -> State[Any]:
        planned = plan(experiment, search=stage == "tune")
        if not planned.is_completed():
            return planned
        state = run_stage(stage, changed, experiment)
        if state.is_completed():
            table, folder = stage in ("evaluate", "report"), _workspace.artifacts(experiment)
            _workspace.publish(stage, state.result() or "nothing was stale", table=table, folder=folder)
        return state

    return _workspace.run(stage if experiment is None else f"{stage} of {experiment}", work)


def stage_flow(stage: str) -> Flow[..., State[Any]]:
    """Return the flow of one stage; Prefect finds it in the module of flows/ with the name of the stage."""

    def alone(experiment: Experiment = None) -> State[Any]:
        """Run the stage if it is stale. Earlier stages do not run.

        experiment: the name of a file in experiments/, whose pipeline to use instead of dvc.yaml.
        """
        return stage_alone(stage, experiment=experiment)

    alone.__name__ = alone.__qualname__ = stage
    alone.__module__ = f"flows.{stage}"
    return flow(name=stage)(alone)


def status(experiment: Experiment = None) -> State[Any]:
    """Return the output of `dvc status --json` of a pipeline, after updating its records of code and parameters.

    The update keeps a stage from being stale after a change of comments only, and the search after a change of a
    parameter that it varies.
    """
    asked = ("dvc", "status", "--json", *dict.fromkeys(("dvc.yaml", _in_plan(experiment))))
    state = command("status", *asked, show=False)
    if not state.is_completed():
        return state
    records = (_PARAMETERS, _in_plan(experiment, _PARAMETERS))
    stale_records = sorted(name for name in json.loads(state.result()) if name.startswith(_CODE) or name in records)
    if not stale_records:
        return state
    updated = command("code", "dvc", "repro", "--single-item", *stale_records, show=False)
    return command("status", *asked, show=False) if updated.is_completed() else updated


def stale(status: str, experiment: Experiment = None) -> tuple[str, ...]:
    """Return the stages to run from the JSON of `dvc status`: the first stale stage and all later ones, in order.

    DVC does not list a stage whose inputs only change when an earlier stage runs.
    """
    named = {name.partition("@")[0] for name in json.loads(status)}
    stages = [stage for stage in STAGES if experiment is None or stage != "tune"]  # an experiment's runs alone
    first = next((number for number, stage in enumerate(stages) if _in_plan(experiment, stage) in named), len(stages))
    return tuple(stages[first:])


def _help(started: Flow[..., Any]) -> str:
    """Return what a flow does, and its parameters with their values and defaults."""
    lines = [f"python -m flows.{started.name.replace('-', '_')} [NAME=VALUE ...]", "", inspect.getdoc(started.fn) or ""]
    lines += ["", "Parameters:"]
    for name, parameter in inspect.signature(started.fn).parameters.items():
        kind = _kind(TypeAdapter(parameter.annotation).json_schema())
        default = "none" if parameter.default is None else json.dumps(parameter.default)
        lines.append(f"  {name}=VALUE  {kind}; default: {default}")
    return "\n".join(lines)


def _kind(schema: Mapping[str, Any]) -> str:
    """Say in words which values a JSON schema of a parameter allows."""
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"] if part != {"type": "null"})
    if "enum" in schema:
        return " or ".join(schema["enum"])
    named = {"boolean": "true or false", "integer": "an integer", "string": "text"}[schema["type"]]
    return f"{named}, at least {schema['minimum']}" if "minimum" in schema else named


def _mistake(started: Flow[..., Any], parameters: Mapping[str, str]) -> str:
    """Return a sentence about the first parameter that the flow cannot take, "" for none, before Prefect starts."""
    allowed = inspect.signature(started.fn).parameters
    for name, value in parameters.items():
        if name not in allowed:
            names = ", ".join(f"{name}=VALUE" for name in allowed)
            return f"{name!r} is not a parameter of this flow; allowed are {names}"
        try:
            if name == "experiment":
                experiment_content(value, Path("params.yaml"), Path("experiments"))
            TypeAdapter(allowed[name].annotation).validate_python(value)
        except ValidationError as error:
            return f"{name} is {value!r}: {error.errors()[0]['msg'].lower()}"
        except UserError as error:
            return str(error)
    return ""


def start(started: Flow[..., Any], arguments: Sequence[str] = ()) -> None:
    """Run a flow as a command: print its result, or exit with code 1 and one sentence if it failed.

    arguments: parameters of the flow, such as experiment=mosi; --help prints them.
    """
    open_streams()
    if {"-h", "--help"} & set(arguments):
        print(_help(started))
        return
    parameters = {name: value for name, _, value in (argument.partition("=") for argument in arguments)}
    if mistake := _mistake(started, parameters):
        sys.exit(f"{started.name}: {printable(mistake)}")
    try:
        state: Any = started(**parameters, return_state=True)
    except RuntimeError as error:
        if "reach API" not in str(error):
            raise
        sys.exit(
            f"{started.name}: {masked(str(error))}; start that server, or unset PREFECT_API_URL to"
            " use a temporary server"
        )
    except KeyboardInterrupt:
        print(f"{started.name}: stopped; run the command again to continue.", file=sys.stderr)
        sys.exit(130)
    if not state.is_completed():
        message = state.message or "failed"
        sys.exit(message if message.startswith(f"{started.name}: ") else f"{started.name}: {message}")
    if text := state.result():
        print(text)
