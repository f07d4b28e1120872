"""model.json of a checkpoint, which can be read before anything heavy is loaded."""

import json
from pathlib import Path
from typing import Any

from qamoe.errors import Refused

CONFIG = "model.json"


def read_config(folder: Path) -> dict[str, Any] | None:
    """model.json of a finished checkpoint, or None. Raises Refused where it is damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Refused(f"{path} is damaged: it is no JSON object; train this model again.")
    return config
