"""Copy the best parameters of the search into params.yaml, keeping its comments and key order."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qamoe.config import params as parameters
from qamoe.errors import UserError
from qamoe.files import atomic_write, exclusive_lock


def accept(tuned: Path, target: Path) -> str:
    """Write the values of `tuned` into `target` and return the changed lines as a unified diff, "" for none.

    Raises UserError if the search has not run, or if its result has a key that `target` does not have.
    """
    if not tuned.is_file():
        raise UserError(f"{tuned} does not exist; run the search first: dvc repro tune.")
    parameters.load(target)
    with exclusive_lock(target.parent):
        return _accept(tuned, target)


def _accept(tuned: Path, target: Path) -> str:
    from ruamel.yaml import YAML

    before = target.read_text()
    yaml = YAML()  # the default style, which DVC also uses
    yaml.width = 4096
    merged = yaml.load(before)
    _overlay(merged, yaml.load(tuned), target)
    with atomic_write(target) as temporary:
        yaml.dump(merged, temporary)
        parameters.load(temporary)
    changed = difflib.unified_diff(
        before.splitlines(keepends=True), target.read_text().splitlines(keepends=True), str(target), str(target), n=0
    )
    return "".join(changed)


def _overlay(parameters: Any, values: Mapping[str, Any], target: Path, prefix: str = "") -> None:
    """Replace values in place."""
    for key, value in values.items():
        if key not in parameters:
            raise UserError(f"{prefix}{key} is not a key of {target}; was the search run by another version?")
        if isinstance(value, Mapping):
            _overlay(parameters[key], value, target, f"{prefix}{key}.")
        else:
            parameters[key] = value
