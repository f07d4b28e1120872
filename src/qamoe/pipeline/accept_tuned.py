"""Copy the best parameters of the search into params.yaml, keeping its comments and key order."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qamoe.config import params as parameters
from qamoe.config.model_names import variant_base
from qamoe.errors import UserError
from qamoe.files import atomic_write, exclusive_lock


def accept(tuned: Path, target: Path) -> str:
    """Write the values of `tuned` into `target` and return the changed lines as a unified diff, "" for none.

    The block of a variant holds only what differs from its base, so it may get new keys.
    Raises UserError if the search has not run, if its result has a key that `target` does not have, or if `target` is
    the file that `qamoe experiment` writes: its next run would overwrite the values.
    """
    name = target.resolve().parent.name.removeprefix("artifacts-")
    generated = name != target.resolve().parent.name and target.with_name("dvc.yaml").is_file()
    if not tuned.is_file():
        search = f"qamoe experiment {name} --search" if generated else "dvc repro tune"
        raise UserError(f"{tuned} does not exist; run the search first: {search}.")
    if generated:
        from ruamel.yaml import YAML

        best = json.dumps(YAML(typ="safe").load(tuned))  # JSON is YAML on one line
        raise UserError(f"qamoe experiment {name} writes {target}; put this into experiments/{name}.yaml: {best}")
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
        if key not in parameters and not _of_variant(prefix):
            raise UserError(f"{prefix}{key} is not a key of {target}; was the search run by another version?")
        if isinstance(value, Mapping):
            _overlay(parameters.setdefault(key, {}), value, target, f"{prefix}{key}.")
        else:
            parameters[key] = value


def _of_variant(prefix: str) -> bool:
    section, _, keys = prefix.partition(".")
    return section == "models" and variant_base(keys.partition(".")[0]) is not None
