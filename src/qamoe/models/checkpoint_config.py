"""model.json of a checkpoint, which can be read before anything heavy is loaded."""

import json
from pathlib import Path
from typing import Any

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


def _upgraded(value: Any) -> Any:
    """A part of a format 1 file under the names of today."""
    if not isinstance(value, dict):
        return value
    return {_RENAMED.get(key, key): _upgraded(content) for key, content in value.items()}


def read_config(folder: Path) -> dict[str, Any] | None:
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
        return config | {part: _upgraded(config[part]) for part in ("models", "train", "trust") if part in config}
    if config["format"] != FORMAT:
        raise UserError(f"{path} is of format {config['format']!r}; this version reads 1 and {FORMAT}.")
    return config
