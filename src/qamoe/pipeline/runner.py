"""How every stage starts: arguments, quiet and offline, parameters checked before data, one run at a time."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from qamoe.config import settings
from qamoe.config.params import Params
from qamoe.errors import UserError, exit_on_user_error
from qamoe.files import write_text
from qamoe.pipeline.known_names import load_params
from qamoe.process_lifetime import die_with_parent, start_time

log = logging.getLogger("qamoe")


def main(
    stage: str,
    run: Callable[..., None],
    *,
    selects_model: bool = False,
    spreads: bool = False,
    named_sections: Collection[str] | None = None,
) -> None:
    """Run a stage as a command; a refusal becomes one sentence on stderr and exit code 2.

    `spreads` is for a stage that torchrun may start in several processes. `named_sections` are those of params.yaml
    whose names a stage without torch checks: those that it uses; by default all.
    """
    parser = argparse.ArgumentParser(prog=f"python -m qamoe.pipeline.{stage}")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("artifacts"))
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no log lines")
    if selects_model:
        parser.add_argument("--model", help="only this model of params.yaml (default: all)")
    arguments = vars(parser.parse_args())
    settings.go_offline()
    quiet = arguments.pop("quiet")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    with exit_on_user_error(stage):
        process, processes, _ = settings.processes()
        if processes > 1 and not spreads:
            raise UserError(f"WORLD_SIZE is {processes}, as torchrun sets it; of all stages train alone runs under it.")
        if settings.under_dvc() or processes > 1:
            die_with_parent()  # a killed dvc or torchrun leaves no stage behind
        if process > 0:
            log.setLevel(logging.WARNING)  # the first process speaks for all
        params = load_params(arguments.pop("params"), named_sections)
        model = arguments.get("model")
        if model is not None and model not in params.seeds:
            raise UserError(
                f"--model {model!r} has no seeds in params.yaml; allowed are {', '.join(sorted(params.seeds))}."
            )
        with ExitStack() as held:
            for name in locks(stage, params, model, selects_model) if process == 0 else ():
                held.enter_context(single_instance(arguments["out"] / name))
            run(params, **arguments)


def locks(stage: str, params: Params, model: str | None, selects_model: bool) -> list[str]:
    """The lock files of a run: one a model where models can be run alone, so that two runs never share a model."""
    if not selects_model:
        return [f".{stage}.lock"]
    return [f".{stage}-{name}.lock" for name in ([model] if model else sorted(params.seeds))]


@contextmanager
def single_instance(lock: Path) -> Iterator[None]:
    """Hold a lock file with process id and start time; a recorded process that is still alive is ended first.

    A folder that was made for it goes with it, if nothing else came into it.
    """
    is_new = not lock.parent.exists()
    try:
        held = json.loads(lock.read_text())
    except (FileNotFoundError, ValueError):
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
