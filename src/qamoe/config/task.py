"""The prediction task: section extract.task of params.yaml, and its form in stats.json and model.json."""

from typing import Literal, TypedDict

from pydantic import model_validator

from qamoe.config.block import Block

TaskKind = Literal["regression", "classification"]


class TaskDescription(TypedDict):
    """A Task as JSON."""

    kind: TaskKind
    low: float | None
    high: float | None
    classes: list[str]


class Task(Block):
    """The prediction task: a number in [low, high], or one of `classes`."""

    kind: TaskKind
    low: float | None = None  # low and high apply to regression only
    high: float | None = None
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_its_range(self) -> "Task":
        if is_classification(self):
            if len(self.classes) < 2:
                raise ValueError("a classification task needs at least two classes")
        elif not self.range[0] < self.range[1]:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest label of a regression task."""
        return label_range(self.low, self.high)


def label_range(low: float | None, high: float | None) -> tuple[float, float]:
    """Return the lowest and the highest label of a regression task. Raises ValueError where one is missing."""
    if low is None or high is None:
        raise ValueError(f"a regression task needs low ({low}) and high ({high})")
    return low, high


def is_classification(task: Task | TaskDescription) -> bool:
    """Whether the task is classification; if not, it is regression."""
    kind = task.kind if isinstance(task, Task) else task["kind"]
    return kind == "classification"
