"""model.json of a checkpoint, which can be read before anything heavy is loaded."""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from qamoe.config.task import TaskDescription
from qamoe.data.stats import Stats
from qamoe.errors import UserError

CONFIG = "model.json"
FORMAT = 2  # of model.json; one without the key is of format 1
# Keys that format 1 has under other names.
_RENAMED = {
    "sees": "variance_context",
    "worthless": "fully_degraded",
    "whole_share": "full_severity_share",
    "alike_share": "shared_draw_share",
    "announced_share": "mask_revealed_share",
}


class Calibration(TypedDict, total=False):
    """How many sigmas an interval of each level reaches out, of a regression; the temperature of class logits."""

    sigmas: dict[str, float]
    temperature: float


class TrustAnchors(TypedDict):
    """Median r of a modality over validation clips: trust is r rescaled between them, or r itself."""

    clean: float
    fully_degraded: float
    rescaled: bool


class ParametersConfig(TypedDict):
    """What a model.json says by its parameters alone."""

    format: NotRequired[int]
    model: str
    seed: int
    models: dict[str, Any]
    train: dict[str, Any]
    extract: dict[str, Any]
    max_frames: dict[str, int]
    digests: dict[str, str]


class UntrainedConfig(ParametersConfig):
    """What a model.json says before training: all that makes a model with fresh weights."""

    stats: Stats
    task: TaskDescription
    modalities: list[str]
    inputs: dict[str, int]
    trained_on_generated: bool
    target_mean: NotRequired[float]
    target_std: NotRequired[float]
    class_shares: NotRequired[list[float]]
    text_encoder: NotRequired[dict[str, Any]]  # of a model that fine-tunes its own: its architecture
    text_states: NotRequired[int]  # width of another frozen encoder's states


class CheckpointConfig(UntrainedConfig):
    """model.json of a finished checkpoint."""

    selection: float
    best_epoch: int
    calibration: Calibration
    trust: dict[str, TrustAnchors]


def _upgraded(value: Any) -> Any:
    """A part of a format 1 file under the names of today."""
    if not isinstance(value, dict):
        return value
    return {_RENAMED.get(key, key): _upgraded(content) for key, content in value.items()}


def read_config(folder: Path) -> CheckpointConfig | None:
    """model.json of a finished checkpoint, or None. Raises UserError where it is damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it is no JSON object; train this model again.")
    if config.get("format", 1) == 1:
        config |= {part: _upgraded(config[part]) for part in ("models", "train", "trust") if part in config}
        return cast(CheckpointConfig, config)
    if config["format"] != FORMAT:
        raise UserError(f"{path} is of format {config['format']!r}; this version reads 1 and {FORMAT}.")
    return cast(CheckpointConfig, config)
