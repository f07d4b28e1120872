"""model.json of a checkpoint: its keys, and a reader that does not import torch."""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from qamoe.config.task import TaskDescription
from qamoe.data.stats import Stats
from qamoe.errors import UserError

CONFIG = "model.json"
FORMAT = 2  # of model.json; one without the key is of format 1
# Keys of format 1 -> their names in format 2.
_RENAMED = {
    "sees": "variance_context",
    "worthless": "fully_degraded",
    "whole_share": "full_severity_share",
    "alike_share": "shared_draw_share",
    "announced_share": "mask_revealed_share",
}


class Calibration(TypedDict, total=False):
    """Regression: the half-width of the interval of each level in sigmas. Classification: the logit temperature."""

    sigmas: dict[str, float]
    temperature: float


class TrustAnchors(TypedDict):
    """Median r of a modality over clean and fully degraded validation clips.

    Trust is r rescaled between the two medians, or r itself if `rescaled` is false.
    """

    clean: float
    fully_degraded: float
    rescaled: bool


class ParametersConfig(TypedDict):
    """The keys of a model.json that follow from its parameters."""

    format: NotRequired[int]
    model: str
    seed: int
    models: dict[str, Any]
    train: dict[str, Any]
    extract: dict[str, Any]
    max_frames: dict[str, int]
    digests: dict[str, str]


class UntrainedConfig(ParametersConfig):
    """The keys of a model.json that are known before training and suffice to build a model with fresh weights."""

    stats: Stats
    task: TaskDescription
    modalities: list[str]
    inputs: dict[str, int]
    trained_on_generated: bool
    target_mean: NotRequired[float]
    target_std: NotRequired[float]
    class_shares: NotRequired[list[float]]
    text_encoder: NotRequired[dict[str, Any]]  # architecture of an encoder that the model fine-tunes
    text_states: NotRequired[int]  # width of another frozen encoder's states


class CheckpointConfig(UntrainedConfig):
    """model.json of a finished checkpoint."""

    selection: float
    best_epoch: int
    calibration: Calibration
    trust: dict[str, TrustAnchors]


def _upgraded(value: Any) -> Any:
    """Return a part of a format 1 file with the key names of format 2."""
    if not isinstance(value, dict):
        return value
    return {_RENAMED.get(key, key): _upgraded(content) for key, content in value.items()}


def read_config(folder: Path) -> CheckpointConfig | None:
    """Read model.json of a finished checkpoint; None if there is none. Raises UserError if it is damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; train this model again.")
    if config.get("format", 1) == 1:
        config |= {part: _upgraded(config[part]) for part in ("models", "train", "trust") if part in config}
        return cast(CheckpointConfig, config)
    if config["format"] != FORMAT:
        raise UserError(f"{path} has format {config['format']!r}; this version reads formats 1 and {FORMAT}.")
    return cast(CheckpointConfig, config)
