"""The processes behind `make server`, `make worker`, `make schedule`: each in its terminal, all ended by `make stop`.

Process id and start time lie in .run/, so that a number that the system gave to another process is not mistaken.
"""

import json
import os
import select
import signal
import sys
from pathlib import Path

from qamoe.config import settings
from qamoe.files import write_text
from qamoe.process_lifetime import start_time

FOLDER = Path(".run")
ORDER = ("schedule", "worker", "server")  # a worker that loses its server does not end by itself
PREFECT = ("-m", "prefect", "--no-prompt")
COMMANDS = {
    "server": (*PREFECT, "server", "start", "--host", "127.0.0.1"),
    "worker": (*PREFECT, "worker", "start", "--pool", "qamoe", "--type", "process"),
    "schedule": ("-m", "flows.schedule"),
}
# By itself the server holds leases of concurrency limits in memory: one that is killed would leave the slots of the
# runs of that moment taken for ever, and every later run of those deployments cancelled.
LEASES = ("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem")
PATIENCE_S = (30, 30, 10)  # after the first SIGTERM, the second, and SIGKILL


def alive(name: str) -> int | None:
    """The process of that name, or None."""
    try:
        noted = json.loads((FOLDER / f"{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return noted["pid"] if start_time(noted["pid"]) == noted["started"] else None


def start(name: str, arguments: list[str]) -> None:
    """Become that process. Exits with a sentence where it runs already."""
    if (pid := alive(name)) is not None:
        sys.exit(f"{name}: runs already as process {pid}; make stop ends it.")
    write_text(FOLDER / f"{name}.json", json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}))
    settings.go_offline()
    os.environ.setdefault(*LEASES)
    os.execv(sys.executable, [sys.executable, *COMMANDS[name], *arguments])


def stop() -> None:
    """End what runs, in order, and say what that was."""
    for name in ORDER:
        pid = alive(name)
        if pid is None:
            continue
        with os.fdopen(os.pidfd_open(pid)) as descriptor:
            for sent, patience in zip((signal.SIGTERM, signal.SIGTERM, signal.SIGKILL), PATIENCE_S, strict=True):
                signal.pidfd_send_signal(descriptor.fileno(), sent)
                if select.select([descriptor], [], [], patience)[0]:
                    break
        (FOLDER / f"{name}.json").unlink()
        print(f"{name}: ended process {pid}")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "stop":
        stop()
    else:
        start(what, rest)
