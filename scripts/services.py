"""Run a service for `make server`, `make worker` or `make schedule`, or end all of them for `make stop`.

Each service runs in its own terminal. .run/ holds its process id and start time; the start time tells it from a later
process with the same id.
"""

import argparse
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
ORDER = ("schedule", "worker", "server")  # a worker does not end when its server ends
PREFECT = ("-m", "prefect", "--no-prompt")
COMMANDS = {
    "server": (*PREFECT, "server", "start", "--host", "127.0.0.1"),
    "worker": (*PREFECT, "worker", "start", "--pool", "qamoe", "--type", "process"),
    "schedule": ("-m", "flows.schedule"),
}
# By default the server keeps the leases of concurrency limits in memory. If it is killed, the slots of the current runs
# are never released, and all later runs of these deployments are cancelled.
LEASES = ("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem")
PATIENCE_S = (30, 30, 10)  # after the first SIGTERM, the second, and SIGKILL


def alive(name: str) -> int | None:
    """Return the process id of a service that is running, or None."""
    try:
        recorded = json.loads((FOLDER / f"{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return recorded["pid"] if start_time(recorded["pid"]) == recorded["started"] else None


def start(name: str, arguments: list[str]) -> None:
    """Replace this process by a service. Exit with a message if the service is already running."""
    if (pid := alive(name)) is not None:
        sys.exit(f"{name}: already running as process {pid}; make stop ends it")
    write_text(FOLDER / f"{name}.json", json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}))
    settings.go_offline()
    os.environ.setdefault(*LEASES)
    os.execv(sys.executable, [sys.executable, *COMMANDS[name], *arguments])


def stop() -> None:
    """End the running services in order, and print their names."""
    for name in ORDER:
        pid = alive(name)
        if pid is None:
            continue
        with os.fdopen(os.pidfd_open(pid)) as descriptor:
            for number, patience in zip((signal.SIGTERM, signal.SIGTERM, signal.SIGKILL), PATIENCE_S, strict=True):
                signal.pidfd_send_signal(descriptor.fileno(), number)
                if select.select([descriptor], [], [], patience)[0]:
                    break
        (FOLDER / f"{name}.json").unlink()
        print(f"{name}: ended process {pid}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=[*COMMANDS, "stop"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the service")
    options = parser.parse_args()
    if options.service == "stop":
        stop()
    else:
        start(options.service, options.arguments)


if __name__ == "__main__":
    main()
