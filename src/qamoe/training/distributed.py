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
    each: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes: files, records, lines of the log."""
        return self.process == 0

    def of(self, rows: Sequence[int] | np.ndarray) -> list[tuple[list[int], float]]:
        """This process's parts of a batch, and the weight of each part's mean loss in this process's loss.

        Weights are such that the mean over processes is the mean over the batch. A batch of fewer clips than
        processes is computed whole by each of them.
        """
        alone = len(rows) < self.processes
        own = list(rows) if alone else list(rows[self.process :: self.processes])
        total = len(rows) * self.processes if alone else len(rows)
        count = min(self.each, len(own) if alone else len(rows) // self.processes)  # the same in every process
        return [(part, len(part) * self.processes / total) for part in (own[place::count] for place in range(count))]

    def wrapped(self, model: Model) -> nn.Module:
        """What gives a model's losses by name; gradients are averaged over the processes."""
        if self.processes == 1 or not any(p.requires_grad for p in model.parameters()):
            return _Losses(model)
        # Ablations have parameters that nothing uses, always the same ones: a static graph finds them once. It rules
        # out no_sync, so each part's gradient is averaged by itself, which comes to the same.
        return nn.parallel.DistributedDataParallel(_Losses(model), forward_sync_buffers=False, static_graph=True)

    def summed(self, own: Tensor) -> Tensor:
        """The sum over all processes of a tensor without gradient."""
        if self.processes > 1:
            own = own.clone()
            distributed.all_reduce(own)
        return own

    def once(self, work: Callable[[], T]) -> T:
        """What the first process makes of some work; the others wait for it."""
        if self.processes == 1:
            return work()
        made = [work() if self.first else None]
        distributed.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]

    def share(self, places: Sequence[int]) -> tuple[int, ...]:
        """This process's share of some places."""
        return tuple(places[self.process :: self.processes])

    def gathered(self, own: dict[str, np.ndarray | None], count: int) -> dict[str, np.ndarray | None]:
        """Arrays (V, ...) over each process's share of `count` places -> those over all places, in every process."""
        if self.processes == 1:
            return own
        everyone: list[Any] = [None] * self.processes
        distributed.all_gather_object(everyone, own)
        joined: dict[str, np.ndarray | None] = {}
        for name, of_first in everyone[0].items():
            joined[name] = None
            if of_first is not None:
                whole = np.empty((count, *of_first.shape[1:]), of_first.dtype)
                for process, found in enumerate(everyone[:count]):
                    whole[process :: self.processes] = found[name]
                joined[name] = whole
        return joined


WHOLE = BatchShare()


@contextmanager
def joined(parts: BatchShare, device: str, place: int) -> Iterator[None]:
    """Be one of the processes inside; `place` is this process's number on its machine, and so that of its GPU."""
    if parts.processes == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()
