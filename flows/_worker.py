"""End a flow run when the worker that started it ends.

Prefect lets the run of a killed worker continue, although only the worker can cancel it or report a crash. Its log is
lost, and it holds the checkout, so the next run waits. After SIGTERM, the run ends its stage and releases its slot on
the server.
"""

import os
import select
import signal
import sys
import threading
from pathlib import Path


def end_with_worker() -> None:
    """Send SIGTERM to this process when the worker, or `make schedule`, that started it ends.

    Does nothing for a flow that was started manually, and on systems other than Linux.
    """
    if sys.platform != "linux" or "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
    worker = _worker()
    if worker is None:
        _end()
    else:
        threading.Thread(target=_watch, args=(worker,), daemon=True).start()


def _worker() -> int | None:
    """Return a descriptor of the parent process; None if it has ended and another program adopted this process."""
    parent = os.getppid()
    try:
        descriptor = os.pidfd_open(parent)
        if os.getppid() == parent and Path(f"/proc/{parent}/exe").samefile("/proc/self/exe"):
            return descriptor
    except OSError:  # it has just ended, or belongs to another user
        return None
    os.close(descriptor)
    return None


def _watch(worker: int) -> None:
    select.select([worker], [], [])
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
