"""A batch in parts: spread over processes, and each process's share computed one part after the other.

Whatever the parts, a step has the losses and the gradient of the whole batch, up to float rounding and to what dropout
draws. Processes are those of torchrun; torch's DistributedDataParallel averages their gradients.
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

_PATIENCE = timedelta(days=1)  # one process waits for another; where one ends, torchrun ends them all
T = TypeVar("T")


class _Losses(nn.Module):
    """A model that returns a dict: in a dataclass a static graph finds no tensor, and averages nothing, silently."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, quality: Tensor | None, step: Step) -> dict[str, Tensor]:
        return self.model(batch, quality, step).losses


@dataclass(frozen=True)
class BatchShare:
    """Which of how many processes this one is, and in how many parts each of them computes its share of a batch."""

    process: int = 0
    processes: int = 1
    parts: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes: files, records, lines of the log."""
        return self.process == 0

    def split(self, rows: Sequence[int] | np.ndarray) -> list[tuple[list[int], float]]:
        """This process's parts of a batch, and the weight of each part's mean loss in this process's loss.

        Weights are such that the mean over processes is the mean over the batch. A batch of fewer clips than
        processes is computed whole by each of them.
        """
        alone = len(rows) < self.processes
        share = list(rows) if alone else list(rows[self.process :: self.processes])
        total = len(rows) * self.processes if alone else len(rows)
        count = min(self.parts, len(share) if alone else len(rows) // self.processes)  # the same in every process
        return [(part, len(part) * self.processes / total) for part in (share[first::count] for first in range(count))]

    def wrapped(self, model: Model) -> nn.Module:
        """What gives a model's losses by name; gradients are averaged over the processes."""
        if self.processes == 1 or not any(p.requires_grad for p in model.parameters()):
            return _Losses(model)
        # Ablations have parameters that nothing uses, always the same ones: a static graph finds them once. It rules
        # out no_sync, so each part's gradient is averaged by itself, which comes to the same.
        return nn.parallel.DistributedDataParallel(_Losses(model), forward_sync_buffers=False, static_graph=True)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor without gradient."""
        if self.processes > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def once(self, work: Callable[[], T]) -> T:
        """What the first process makes of some work; the others wait for it."""
        if self.processes == 1:
            return work()
        result = [work() if self.first else None]
        distributed.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def views(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """This process's share of some views, which every process predicts all clips of."""
        return tuple(numbers[self.process :: self.processes])

    def gathered(self, arrays: dict[str, np.ndarray | None], count: int) -> dict[str, np.ndarray | None]:
        """Arrays (V, ...) over each process's share of `count` views -> those over all views, in every process."""
        if self.processes == 1:
            return arrays
        of_processes: list[Any] = [None] * self.processes
        distributed.all_gather_object(of_processes, arrays)
        over_all_views: dict[str, np.ndarray | None] = {}
        for name, of_first in of_processes[0].items():
            over_all_views[name] = None
            if of_first is not None:
                over_views = np.empty((count, *of_first.shape[1:]), of_first.dtype)
                for process, of_process in enumerate(of_processes[:count]):
                    over_views[process :: self.processes] = of_process[name]
                over_all_views[name] = over_views
        return over_all_views


WHOLE_BATCH = BatchShare()


@contextmanager
def process_group(share: BatchShare, device: str, local_rank: int) -> Iterator[None]:
    """Be one of the processes inside; `local_rank` is this process's number on its machine, and so that of its GPU."""
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
