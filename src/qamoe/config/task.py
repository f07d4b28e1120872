"""The prediction task: section extract.task of params.yaml, and its form in stats.json and model.json."""

import re
from collections.abc import Iterable
from typing import Literal, TypedDict

from pydantic import model_validator

from qamoe.config.block import Block

TaskKind = Literal["regression", "classification", "multilabel"]
MOST_LABELS = 20  # of a multilabel task: their numbers are exact in float32
SEPARATOR = ";"  # between the names of a clip's labels
NO_LABEL = "none"
_NAME = re.compile(r"[\w.-]([\w. -]*[\w.-])?")  # a part of names of metrics and columns


class TaskDescription(TypedDict):
    """A Task as JSON."""

    kind: TaskKind
    low: float | None
    high: float | None
    classes: list[str]


class Task(Block):
    """The prediction task: a number in [low, high], one of `classes`, or any number of `classes` (multilabel).

    The label of a clip is stored as one number: the value, the index of the class, or the sum of 2^i over the indices i
    of its labels.
    """

    kind: TaskKind
    low: float | None = None  # low and high apply to regression only
    high: float | None = None
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_its_range(self) -> "Task":
        if is_classification(self):
            if len(self.classes) < 2:
                raise ValueError("a classification task needs at least two classes")
        elif is_multilabel(self):
            if not 2 <= len(self.classes) <= MOST_LABELS:
                raise ValueError(f"a multilabel task needs 2 to {MOST_LABELS} classes, not {len(self.classes)}")
            wrong = next((name for name in self.classes if name == NO_LABEL or not _NAME.fullmatch(name)), None)
            if wrong is not None:
                raise ValueError(
                    f"the label {wrong!r} must have letters, digits, -, _, . or spaces, and not be {NO_LABEL}"
                )
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
    """Whether each clip has one of the task's classes."""
    return _kind(task) == "classification"


def is_multilabel(task: Task | TaskDescription) -> bool:
    """Whether a clip may have any number of the task's classes."""
    return _kind(task) == "multilabel"


def has_classes(task: Task | TaskDescription) -> bool:
    """Whether the task is about named classes, one or any number of them for each clip; if not, it is regression."""
    return is_classification(task) or is_multilabel(task)


def _kind(task: Task | TaskDescription) -> str:
    return task.kind if isinstance(task, Task) else task["kind"]


def label_number(present: Iterable[bool]) -> float:
    """Return the number that stands for a clip's labels in a multilabel task, from which of them it has."""
    return float(sum(1 << index for index, is_present in enumerate(present) if is_present))


def label_names(number: float, classes: Iterable[str]) -> list[str]:
    """Return the labels that a number stands for."""
    return [name for index, name in enumerate(classes) if int(number) >> index & 1]
