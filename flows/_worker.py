"""A flow run ends with the worker that started it, which alone can cancel it and say that it has crashed.

Prefect leaves the run of a killed worker going: nobody sees its log, and the next run waits for a checkout that it
holds. Asked to end, the run ends its stage and gives its slot back to the server.
"""

import os
import select
import signal
import sys
import threading
from pathlib import Path


def end_with_worker() -> None:
    """Where a worker, or `make schedule`, started this process: have it end as by SIGTERM when that is gone.

    Does nothing for a flow that a person started, and not on Linux.
    """
    if sys.platform != "linux" or "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
    worker = _worker()
    if worker is None:
        _end()
    else:
        threading.Thread(target=_watch, args=(worker,), daemon=True).start()


def _worker() -> int | None:
    """A descriptor of the parent process, or None where it has gone, so that another program has adopted this one."""
    parent = os.getppid()
    try:
        descriptor = os.pidfd_open(parent)
        if os.getppid() == parent and Path(f"/proc/{parent}/exe").samefile("/proc/self/exe"):
            return descriptor
    except OSError:  # it has just ended, or is somebody else's
        return None
    os.close(descriptor)
    return None


def _watch(worker: int) -> None:
    select.select([worker], [], [])
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
