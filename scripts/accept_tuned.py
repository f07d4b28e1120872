"""What the search found -> params.yaml, with its comments and its order as they are: `make accept-tuned`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from qamoe.config import params as parameters
from qamoe.errors import UserError
from qamoe.files import atomic_write


def lay(below: Any, above: Mapping[str, Any], place: str = "") -> None:
    """Lay an overlay over parameters, in place. Raises UserError for a key that they do not have."""
    for key, value in above.items():
        if key not in below:
            raise UserError(f"{place}{key} is no key of params.yaml; was it written by another version?")
        if isinstance(value, Mapping):
            lay(below[key], value, f"{place}{key}.")
        else:
            below[key] = value


def accept(tuned: Path, target: Path) -> None:
    """Write the values of `tuned` into `target`. Raises UserError where the search has not run."""
    if not tuned.is_file():
        raise UserError(f"There is no {tuned}; run the search first: dvc repro tune.")
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    merged = yaml.load(target)
    lay(merged, yaml.load(tuned))
    with atomic_write(target) as aside:
        yaml.dump(merged, aside)
        parameters.load(aside)


if __name__ == "__main__":
    try:
        accept(Path("artifacts/tune/best_params.yaml"), Path("params.yaml"))
    except UserError as refusal:
        sys.exit(f"accept-tuned: {refusal}")
