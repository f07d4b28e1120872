"""Start a stage: check its parameters, run one instance at a time, print what it did."""

import json
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from qamoe.config import settings
from qamoe.config.params import Params
from qamoe.errors import UserError, exit_on_user_error
from qamoe.files import remove_abandoned, write_text
from qamoe.pipeline.known_names import load_params
from qamoe.process_lifetime import die_with_parent, start_time
from qamoe.terminal import log_to_stderr

log = logging.getLogger("qamoe")


def run_stage(
    stage: str,
    work: Callable[..., dict[str, Any]],
    params_file: Path,
    out: Path,
    quiet: bool,
    *,
    model: str | None = None,
    selects_model: bool = False,
    distributed: bool = False,
    named_sections: Collection[str] | None = None,
) -> None:
    """Run a stage of dvc.yaml and print what it did as one line of JSON; bad input is one sentence and exit code 2.

    `selects_model`: the stage takes a model of `seeds`, and runs of different models do not exclude each other.
    `distributed`: torchrun may start the stage in several processes. `named_sections`: the sections of params.yaml
    whose names are checked (default: all); a stage without torch names those that it uses.
    """
    log_to_stderr()
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    with exit_on_user_error(stage):
        process, processes, _ = settings.processes()
        if processes > 1 and not distributed:
            raise UserError(f"WORLD_SIZE is {processes}, as torchrun sets it; train is the only stage that it can run.")
        if settings.under_dvc() or processes > 1:  # a killed dvc or torchrun leaves no stage behind
            die_with_parent(signal.SIGKILL if processes > 1 else signal.SIGTERM)
        if process > 0:
            log.setLevel(logging.WARNING)  # only the first process reports
        params = load_params(params_file, named_sections)
        if model is not None and model not in params.seeds:
            raise UserError(
                f"--model {model!r} has no seeds in {params_file}; allowed are {', '.join(sorted(params.seeds))}."
            )
        with ExitStack() as held:
            for name in locks(stage, params, model, selects_model) if process == 0 else ():
                held.enter_context(single_instance(out / name))
            if process == 0:
                remove_abandoned(out / stage / (model or ""), "**/.*.[0-9]*")
                remove_abandoned(out / "states" / stage, ".*.[0-9]*")  # also where the stage has nothing left to do
            done = work(params, out, model) if selects_model else work(params, out)
        if process == 0:
            print(json.dumps({"stage": stage, **done}), flush=True)


def locks(stage: str, params: Params, model: str | None, selects_model: bool) -> list[str]:
    """Name the lock files of a run: one per model where a stage takes a model, so that two runs never share one."""
    if not selects_model:
        return [f".{stage}.lock"]
    return [f".{stage}-{name}.lock" for name in ([model] if model else sorted(params.seeds))]


@contextmanager
def single_instance(lock: Path) -> Iterator[None]:
    """Hold a lock file with process id and start time; first end the process that it names, if that still runs.

    A folder that was created for the lock alone is removed with it.
    """
    is_new = not lock.parent.exists()
    try:
        held = json.loads(lock.read_text())
    except (FileNotFoundError, ValueError):
        held = None
    if not isinstance(held, dict):
        held = None
    if held and held["pid"] != os.getpid() and start_time(held["pid"]) == held["started"]:
        log.info("ending the same stage of process %d, which was still running", held["pid"])
        end(held["pid"])
    write_text(lock, json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                lock.parent.rmdir()


def end(pid: int) -> None:
    """End a process, and its group where it leads one; returns when it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
        import select

        select.select([descriptor], [], [], 10)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
