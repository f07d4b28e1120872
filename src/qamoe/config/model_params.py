"""The parameters of one model: `train` in its block changes train.common, and the block of a variant that of its base.

Unlike config/params.py, this module is part of the code digest, because it decides what is trained.
"""

from typing import Any

from qamoe.config.model_names import family, variant_base
from qamoe.config.overlay import overlaid
from qamoe.config.params import Models, Params, TrainCommon

_TRAIN = "train"
_OF_VIEWS = ("epochs", "clips", "degrade", "selection")  # keys of train.common that decide which clips are encoded


def for_model(params: Params, name: str) -> Params:
    """Return the parameters with the train.common of this model; `block_content` gives its block.

    Raises pydantic's ValidationError for a key or value that train.common cannot have.
    """
    changes = train_changes(params.models, name)
    if not changes:
        return params
    common = TrainCommon.model_validate(overlaid(params.train.common.model_dump(mode="json"), changes))
    return params.model_copy(update={_TRAIN: params.train.model_copy(update={"common": common})})


def block_content(models: Models, name: str) -> dict[str, Any]:
    """Return the block of a model without `train`, unchecked: that of its class, changed by that of a variant."""
    return {key: value for key, value in _merged(models, name).items() if key != _TRAIN}


def train_changes(models: Models, name: str) -> Any:
    """Return what a model changes of train.common, {} for nothing; a null removes a key."""
    return {} if (changes := _merged(models, name, keep_null=True).get(_TRAIN)) is None else changes


def has_own_views(params: Params, name: str) -> bool:
    """Whether a model may be trained or selected on other clips or views than the others."""
    changes = train_changes(params.models, name)
    # In the paper's spectrum the clips of a batch share a draw.
    of_batches = "batch_size" in changes and for_model(params, name).train.common.degrade.spectrum == "paper"
    return of_batches or any(key in changes for key in _OF_VIEWS)


def lacks_of_base(models: Models, name: str) -> str | None:
    """Return the first key of its base that the block of a variant does not repeat; None for any other model."""
    base = variant_base(name)
    return None if base is None else _missing(models.blocks[base], models.blocks[name])


def _merged(models: Models, name: str, keep_null: bool = False) -> dict[str, Any]:
    block = models.blocks.get(family(name), {})
    return overlaid(block, models.blocks.get(name, {}), keep_null) if variant_base(name) else block


def _missing(wanted: dict[str, Any], block: dict[str, Any]) -> str | None:
    for key, value in wanted.items():
        if key not in block:
            return key
        if isinstance(value, dict) and isinstance(block[key], dict) and (inner := _missing(value, block[key])):
            return f"{key}.{inner}"
    return None
