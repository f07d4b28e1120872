"""Overlays on params.yaml: experiments/NAME.yaml, which may lie on another one by `extends: OTHER`."""

import re
from pathlib import Path
from typing import Any

from qamoe.config.params import read
from qamoe.errors import UserError


def overlaid(below: Any, above: Any) -> Any:
    """`above` laid over `below`: mappings are merged key by key, null takes a key away, anything else is replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    merged = {**below, **{key: overlaid(below.get(key), value) for key, value in above.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def experiment_content(name: str, base: Path, folder: Path) -> Any:
    """The content of `base` under an overlay of `folder` and all that it extends, unchecked.

    Raises UserError where an overlay is missing, is no YAML or extends itself.
    """
    chain = _chain(name, folder)
    content = read(base)
    for overlay in reversed(chain):  # one after the other: what null takes away lies further down
        content = overlaid(content, overlay)
    return content


def _chain(name: str, folder: Path) -> list[dict[str, Any]]:
    """The overlay, then the one that it extends, and so on."""
    names: list[str] = []
    chain: list[dict[str, Any]] = []
    following: Any = name
    while following is not None:
        if not isinstance(following, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", following):
            raise UserError(f"There is no experiment {following!r}; a name in {folder} has letters, digits, - and _.")
        names.append(following)
        path = folder / f"{following}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
            extended = f", which {names[-2]}.yaml extends" if len(names) > 1 else ""
            raise UserError(f"There is no experiment {path}{extended}; those there are: {known}.")
        if following in names[:-1]:
            raise UserError(f"{folder / names[-2]}.yaml: extends goes round in a circle: {' -> '.join(names)}.")
        overlay = read(path)
        if overlay is not None and not isinstance(overlay, dict):
            raise UserError(f"{path} is {overlay!r}; an overlay is a mapping, as params.yaml is.")
        overlay = overlay or {}
        following = overlay.pop("extends", None)
        chain.append(overlay)
    return chain
