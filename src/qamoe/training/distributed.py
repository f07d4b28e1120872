"""Batches in parts: spread over the processes of torchrun, and computed in several parts within each process.

For any number of parts, a step has the losses and the gradient of the whole batch, except for float rounding and the
draws of dropout. torch's DistributedDataParallel averages the gradients of the processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from qamoe.data.batch import Batch
from qamoe.models.model import Model
from qamoe.models.training_step import Step

_PATIENCE = timedelta(days=1)  # a process waits this long for another; if one fails, torchrun ends them all
T = TypeVar("T")


class _Losses(nn.Module):
    """A model that returns its losses as a dict.

    With a dataclass, a static graph finds no tensors and silently averages no gradients.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, quality: Tensor | None, step: Step) -> dict[str, Tensor]:
        return self.model(batch, quality, step).losses


@dataclass(frozen=True)
class BatchShare:
    """The number of this process, the number of processes, and the number of parts per process and batch."""

    process: int = 0
    processes: int = 1
    parts: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, records and log lines."""
        return self.process == 0

    def split(self, rows: Sequence[int] | np.ndarray) -> list[tuple[list[int], float]]:
        """Return this process's parts of a batch, each with the weight of its mean loss in this process's loss.

        With these weights, the mean over processes is the mean over the batch. Every process computes the whole of a
        batch that has fewer clips than there are processes.
        """
        too_small = len(rows) < self.processes
        share = list(rows) if too_small else list(rows[self.process :: self.processes])
        total = len(rows) * self.processes if too_small else len(rows)
        count = min(self.parts, len(share) if too_small else len(rows) // self.processes)  # the same in every process
        return [(part, len(part) * self.processes / total) for part in (share[first::count] for first in range(count))]

    def wrapped(self, model: Model) -> nn.Module:
        """Return a module that computes a model's losses by name and averages gradients over the processes."""
        if self.processes == 1 or not any(p.requires_grad for p in model.parameters()):
            return _Losses(model)
        # Ablations have unused parameters, always the same ones; a static graph detects them once. It does not allow
        # no_sync, so each part's gradient is averaged separately, with the same result.
        return nn.parallel.DistributedDataParallel(_Losses(model), forward_sync_buffers=False, static_graph=True)

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor without gradient."""
        if self.processes > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def once(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process only and return its result in every process."""
        if self.processes == 1:
            return work()
        result = [work() if self.first else None]
        distributed.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def views(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return this process's share of some views; a process predicts all clips of its views."""
        return tuple(numbers[self.process :: self.processes])

    def gathered(self, arrays: dict[str, np.ndarray | None], count: int) -> dict[str, np.ndarray | None]:
        """Combine the arrays (V, ...) of each process's share of `count` views into arrays of all views, everywhere."""
        if self.processes == 1:
            return arrays
        by_process: list[Any] = [None] * self.processes
        distributed.all_gather_object(by_process, arrays)
        combined: dict[str, np.ndarray | None] = {}
        for name, first_array in by_process[0].items():
            combined[name] = None
            if first_array is not None:
                all_views = np.empty((count, *first_array.shape[1:]), first_array.dtype)
                for process, process_arrays in enumerate(by_process[:count]):
                    all_views[process :: self.processes] = process_arrays[name]
                combined[name] = all_views
        return combined


WHOLE_BATCH = BatchShare()


@contextmanager
def process_group(share: BatchShare, device: str, local_rank: int) -> Iterator[None]:
    """Join torchrun's process group in the body; `local_rank` is this process's number on its machine and its GPU."""
    if share.processes == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()
