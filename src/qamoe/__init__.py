"""Trains, evaluates, promotes and serves QA-MoE (arXiv 2604.05704)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qamoe.serving.in_process import Model


def load_champion(params: str | Path = "params.yaml", model: str | None = None) -> "Model":
    """Load the champion of registry.name in a parameter file, or `model` (models:/NAME@ALIAS or models:/NAME/VERSION).

    Raises qamoe.errors.UserError where there is no such model.
    """
    from qamoe.serving import in_process

    return in_process.load(Path(params), model)
