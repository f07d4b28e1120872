"""Write the parameters that a search does not vary to artifacts/code/tune-parameters.json, on which stage tune depends.

A searched value, such as train.common.lr, is not in the file. So accepting the result of the search changes the file
as little as another learning rate does: not at all, and the search stays current.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from qamoe.config import params as parameters
from qamoe.config.model_names import family, variant_base
from qamoe.config.params import Params
from qamoe.config.search_space import REPLACED
from qamoe.errors import exit_on_user_error
from qamoe.files import write_text


def fixed(params: Params) -> dict[str, Any]:
    """Return the parameters of every trial, as a part of params.yaml, without the searched ones and the epochs."""
    content = params.model_dump(mode="json")
    names = ("encoders", family(params.tune.model), *filter(variant_base, [params.tune.model]))
    blocks = {name: content["models"].get(name, {}) for name in names}
    kept = {"train": {"common": content["train"]["common"]}, "models": blocks}
    for name in (*params.tune.space, REPLACED, *(f"models.{model}.train.epochs" for model in names)):
        *parents, last = name.split(".")
        block: Any = kept
        for key in parents:
            block = block.get(key, {}) if isinstance(block, dict) else {}
        if isinstance(block, dict):  # an unknown name is refused by the search itself
            block.pop(last, None)
    return kept


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m qamoe.pipeline.tune_parameters")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("artifacts"))
    arguments = parser.parse_args()
    with exit_on_user_error("tune-parameters"):
        content = fixed(parameters.load(arguments.params))
        write_text(arguments.out / "code" / "tune-parameters.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
