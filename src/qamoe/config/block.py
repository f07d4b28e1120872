"""The base of every section of params.yaml."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Block(BaseModel):
    """A frozen section that forbids keys it does not know; a value of another type is refused, not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, content: Any) -> Any:
        return with_tuples(content)


def with_tuples(content: Any) -> Any:
    """Return the lists of YAML or JSON content as tuples, which strict validation needs."""
    if isinstance(content, list):
        return tuple(map(with_tuples, content))
    return {key: with_tuples(value) for key, value in content.items()} if isinstance(content, dict) else content
