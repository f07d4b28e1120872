"""Section tune of params.yaml: what the search varies, for which objectives, and how.

The space maps dotted names, as in `dvc exp run -S`, to a range or to choices. pipeline/known_names.py checks the names.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from qamoe.config.block import Block

Value = bool | int | float | str
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]  # numpy takes no negative one
# error: the mean over the selection cells, which chooses the best trial. clean, degraded: over those at severity 0, and
# above it. trust: AUROC of r, clean against DEGRADED_FROM and above.
Objective = Literal["error", "clean", "degraded", "trust"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MAXIMISED = ("trust",)
DEGRADED_FROM = 0.5  # severity of the cells that trust compares with the clean one
REPLACED = "train.common.epochs"  # tune.epochs takes its place in a trial


class Dimension(Block):
    """The values of one parameter: from low to high, integers if both are integers, or one of the choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False  # uniform in the logarithm
    step: int | float | None = None
    choices: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None

    @field_validator("choices", mode="before")
    @classmethod
    def _choices_are_values(cls, choices: Any) -> Any:
        for choice in choices if isinstance(choices, tuple) else ():
            if not isinstance(choice, Value):
                raise ValueError("each choice must be a number, a word or a truth value")
        return choices

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> "Dimension":
        if self.choices is not None:
            if self.log or not (self.low is self.high is self.step is None):
                raise ValueError("choices exclude low, high, log and step")
            if len({repr(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError(f"each choice may appear once, not {list(self.choices)}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0, because log is true")
        self._check_step(self.low, self.high)
        return self

    def _check_step(self, low: float, high: float) -> None:
        if self.step is None:
            return
        if self.log:
            raise ValueError(f"step ({self.step:g}) needs log: false")
        if not 0 < self.step <= high - low:
            raise ValueError(f"step ({self.step:g}) must be above 0 and at most high - low ({high - low:g})")
        steps = (high - low) / self.step
        if not math.isclose(steps, round(steps), rel_tol=1e-9):  # Optuna would lower high
            raise ValueError(f"step ({self.step:g}) must divide high - low ({high - low:g})")
        if self.integers and not isinstance(self.step, int):
            raise ValueError(f"step ({self.step:g}) must be an integer, as low and high are")

    @property
    def integers(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def extremes(self) -> tuple[Value, ...]:
        """The values that must be valid for the parameter: both ends, or every choice."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


class Tune(Block):
    model: str  # any model, specialist or ablation with a block under `models`
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "none"]
    trials: Count
    epochs: Count
    seed: Seed  # of the sampler and of each trial's training

    @model_validator(mode="after")
    def _objectives_suit_the_pruner(self) -> "Tune":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives may have each name once, not {list(self.objectives)}")
        if self.pruner != "none" and self.objectives != ("error",):
            raise ValueError(
                f"pruner is {self.pruner} and objectives are {list(self.objectives)}; Optuna prunes by one objective"
                " alone, and epochs are compared by error: use pruner: none, or objectives: [error]"
            )
        return self


def value_at(content: Mapping[str, Any], name: str) -> Any:
    """Return the value at a dotted name. Raises KeyError where there is none."""
    value: Any = content
    for key in name.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[key]
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted name as nested mappings: an overlay on params.yaml."""
    content: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        block = content
        for key in parents:
            block = block.setdefault(key, {})
        block[last] = value
    return content
