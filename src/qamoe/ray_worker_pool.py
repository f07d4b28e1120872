"""Connect to a Ray cluster and run tasks on it in order; the only module that imports ray.

Tasks run the same code on the same files as on this machine: every machine of a cluster sees the project's folder
under the same path. This is not part of extractors/worker_pool.py because the evaluation grid runs on Ray too, and
would then depend on every extractor.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qamoe.config import settings
from qamoe.errors import UserError

_STORE = 80_000_000  # bytes of shared memory, about the least that Ray starts with; larger objects go to disk
T = TypeVar("T")


def connect(workers: int) -> Any:
    """Return the module ray, connected to a cluster until this process ends.

    The cluster is that of RAY_ADDRESS, or else one on this machine with `workers` cores. Raises UserError if Ray is not
    installed or the cluster does not answer.
    """
    try:
        import ray  # imported only in this module, see its docstring
    except ModuleNotFoundError:
        raise UserError("QAMOE_EXECUTOR is ray, but Ray is not installed; run: pip install -e '.[ray]'.") from None
    address = settings.ray_address()
    if ray.is_initialized():
        return ray
    if address is None:
        ray.init(
            "local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=_STORE,
            log_to_driver=False,
            logging_level="ERROR",
        )
        return ray
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        raise UserError(f"RAY_ADDRESS is {address!r}, but no Ray cluster answers at that address.") from None
    return ray


def map_in_order(work: Callable[..., T], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """Run `work(*task)` on workers of one core each; yield the results in the order of the tasks.

    At most `workers + 1` tasks are started at a time, so that results do not pile up. Ray retries a task three times if
    its worker dies. Raises UserError if a task raises it, or if a task's workers keep dying.
    """
    ray = connect(workers)
    remote = ray.remote(num_cpus=1)(_in_folder)
    started: deque[Any] = deque()

    def next_result() -> T:
        try:
            return ray.get(started.popleft())
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except ray.exceptions.RayError as error:
            raise UserError(f"A task on Ray failed: {last_line(error)}") from None

    for task in tasks:
        if len(started) > workers:
            yield next_result()
        started.append(remote.remote(Path.cwd(), work, *task))
    while started:
        yield next_result()


def _in_folder(folder: Path, work: Callable[..., T], *task: Any) -> T:
    os.chdir(folder)
    settings.go_offline()
    return work(*task)


def last_line(error: Exception) -> str:
    """Return the last line of a Ray error, which says what happened; the whole is pages long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
