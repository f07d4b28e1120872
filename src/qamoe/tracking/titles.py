"""Name a training by its model and by what differs from the committed params.yaml: `qamoe lr=0.002`."""

import json
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qamoe.config import params as parameters
from qamoe.config.model_names import family, variant_base
from qamoe.config.model_params import for_model
from qamoe.config.params import Params
from qamoe.errors import UserError
from qamoe.models.checkpoint_config import ParametersConfig
from qamoe.tracking.provenance import committed

_SHOWN = 3  # differences in a title
_LONGEST = 24  # characters of a value in a title
_LONGEST_PARAM = 6000


def flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted names, as in `dvc exp run -S`; lists become JSON."""
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in flat(value, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: (values if isinstance(values, str) else json.dumps(values))[:_LONGEST_PARAM]}


def training_parameters(config: ParametersConfig) -> dict[str, str]:
    """Return the parameters of a training without its seed, by their names in params.yaml."""
    name = config["model"]
    return flat(
        {
            "model": name,
            "extract": config["extract"],
            "preprocess": {"max_frames": config["max_frames"]},
            "train": {"common": config["train"]},
            "models": {part: config["models"][part] for part in ("encoders", family(name))},
        }
    )


def title(config: ParametersConfig) -> str:
    """Return the name of a training without its seed; a variant is compared with the model that it differs from.

    Without a committed params.yaml, or with one that this version cannot read, it is the name of the model.
    """
    name = config["model"]
    usual = _usual(variant_base(name) or name) | {"model": name}
    changed = {k: v for k, v in training_parameters(config).items() if usual.get(k, v) != v}
    shown = [f"{_short(key, name)}={value[:_LONGEST]}" for key, value in list(changed.items())[:_SHOWN]]
    more = [f"+{len(changed) - _SHOWN}"] if len(changed) > _SHOWN else []
    return " ".join([name, *shown, *more])


def _short(key: str, name: str) -> str:
    for prefix in ("train.common.", f"models.{family(name)}.", "models."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _usual(name: str) -> dict[str, str]:
    """Return the parameters of a model in the committed params.yaml, {} if it has none."""
    from qamoe.models import checkpoint

    params = _committed_params()
    if params is None:
        return {}
    try:
        return training_parameters(checkpoint.parameters_config(for_model(params, name), name, 0, {}))
    except (UserError, ValidationError, KeyError):  # the model is new
        return {}


def _committed_params() -> Params | None:
    text = committed("params.yaml")
    if text is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return parameters.load(path)
        except UserError:  # another version wrote it
            return None
