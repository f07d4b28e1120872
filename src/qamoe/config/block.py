"""The base of every section of params.yaml."""

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """A frozen section that forbids keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
