"""A Ray cluster, joined, and work on it in order: the only module that imports ray.

What runs there is what would run here, by the same code on the same files: every machine of a cluster sees the
project's folder under one path. It is a module of its own, and not a part of extractors/worker_pool.py, since the
evaluation grid runs there too and would depend on every extractor.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qamoe.config import settings
from qamoe.errors import UserError

_STORE = 80_000_000  # bytes of shared memory, about the least that Ray starts with; what is more goes to disk
T = TypeVar("T")


def joined(workers: int) -> Any:
    """The module ray, connected to a cluster; it stays so until this process ends.

    That of RAY_ADDRESS, else one of this machine with `workers` cores. Raises UserError where Ray is not installed or
    its cluster does not answer.
    """
    try:
        import ray  # here and not in extractors/worker_pool.py: the docstring of this module says why
    except ModuleNotFoundError:
        raise UserError("QAMOE_EXECUTOR is ray, which is not installed: pip install -e '.[ray]'.") from None
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
        raise UserError(f"RAY_ADDRESS is {address!r}, and no Ray cluster answers there.") from None
    return ray


def in_order(work: Callable[..., T], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """What `work(*task)` returns, task by task, from workers of one core each.

    At most one task more than there are workers has begun, so that results do not pile up. Ray tries a task whose
    worker died three times more. Raises UserError where a task does, or where its workers die again and again.
    """
    ray = joined(workers)
    remote = ray.remote(num_cpus=1)(_in_folder)
    begun: deque[Any] = deque()

    def first() -> T:
        try:
            return ray.get(begun.popleft())
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except ray.exceptions.RayError as error:
            raise UserError(f"A task on Ray did not end: {last_line(error)}") from None

    for task in tasks:
        if len(begun) > workers:
            yield first()
        begun.append(remote.remote(Path.cwd(), work, *task))
    while begun:
        yield first()


def _in_folder(folder: Path, work: Callable[..., T], *task: Any) -> T:
    os.chdir(folder)
    settings.go_offline()
    return work(*task)


def last_line(error: Exception) -> str:
    """Ray's errors are pages; the last line says what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
