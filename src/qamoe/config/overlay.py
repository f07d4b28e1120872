"""Overlays on params.yaml: experiments/NAME.yaml, which may extend another overlay by `extends: OTHER`."""

import re
from pathlib import Path
from typing import Any

from qamoe.config.model_names import variant_base
from qamoe.config.params import read, shortened
from qamoe.errors import UserError


def overlaid(below: Any, above: Any, keep_null: bool = False) -> Any:
    """Return `below` changed by `above` (RFC 7396): mappings merge, null removes a key, any other value replaces.

    keep_null: keep the nulls of `above`, so that the result is one change that does what both do.
    """
    if not isinstance(above, dict):
        return above
    merged = dict(below) if isinstance(below, dict) else {}
    for key, value in above.items():
        if value is None and not keep_null:
            merged.pop(key, None)
        else:
            merged[key] = overlaid(merged.get(key), value, keep_null)
    return merged


def experiment_content(name: str, base: Path, folder: Path) -> Any:
    """Return the content of `base` with an overlay of `folder` and all that it extends, unchecked.

    The block of a variant gets all keys of its base, so that DVC's stage of the variant depends on them.
    Raises UserError where an overlay is missing, is not YAML or extends itself.
    """
    chain = _chain(name, folder)
    content = read(base)
    for overlay in reversed(chain):  # one by one, because null removes keys of those below
        merged = overlaid(content, overlay)
        for model, block in _blocks(overlay).items():
            _keep_changes(merged["models"], model, _blocks(content).get(model), block)
        content = merged
    blocks = _blocks(content)
    for model, block in blocks.items():
        whole = blocks.get(variant_base(model) or "")
        if isinstance(whole, dict) and isinstance(block, dict):
            blocks[model] = overlaid(whole, block, keep_null=True)
    return content


def _blocks(content: Any) -> dict[str, Any]:
    models = content.get("models") if isinstance(content, dict) else None
    return models if isinstance(models, dict) else {}


def _keep_changes(merged: dict[str, Any], model: str, below: Any, above: Any) -> None:
    """Keep the nulls of what are changes themselves: the block of a variant, and `train` in the block of a model."""
    if not isinstance(above, dict):
        return
    if variant_base(model):
        merged[model] = overlaid(below, above, keep_null=True)
    elif isinstance(above.get("train"), dict):
        train = below.get("train") if isinstance(below, dict) else None
        merged[model]["train"] = overlaid(train, above["train"], keep_null=True)


def _chain(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the overlay, then the one that it extends, and so on."""
    names: list[str] = []
    chain: list[dict[str, Any]] = []
    following: Any = name
    while following is not None:
        if not isinstance(following, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", following):
            raise UserError(
                f"{shortened(following)} is not a valid name of an experiment; use letters, digits, - and _."
            )
        names.append(following)
        path = folder / f"{following}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
            extended = f" (extended by {names[-2]}.yaml)" if len(names) > 1 else ""
            raise UserError(f"{path}{extended} does not exist; known experiments: {known}.")
        if following in names[:-1]:
            raise UserError(f"{folder / names[-2]}.yaml: extends in a circle: {' -> '.join(names)}.")
        overlay = read(path)
        if overlay is not None and not isinstance(overlay, dict):
            raise UserError(f"{path} contains {shortened(overlay)}; an overlay must be a mapping, like params.yaml.")
        overlay = overlay or {}
        following = overlay.pop("extends", None)
        chain.append(overlay)
    return chain
