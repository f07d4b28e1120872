"""An overlay on params.yaml, run through every stage into artifacts of its own: never the main line's.

`python -m qamoe.pipeline.experiment NAME` reads params.yaml and experiments/NAME.yaml and writes artifacts-NAME/.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from qamoe.config import params as parameters
from qamoe.errors import UserError, exit_on_user_error
from qamoe.files import write_text

STAGES = ("extract", "preprocess", "train", "evaluate", "report")


def overlaid(below: Any, above: Any) -> Any:
    """`above` laid over `below`: mappings are merged key by key, null takes a key away, anything else is replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    merged = {**below, **{key: overlaid(below.get(key), value) for key, value in above.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def run(name: str, base: Path = Path("params.yaml"), folder: Path = Path("experiments")) -> None:
    """Run the stages one after the other. Raises UserError where there is no such overlay or it is wrong."""
    overlay = folder / f"{name}.yaml"
    if not overlay.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
        raise UserError(f"There is no experiment {overlay}; those there are: {known}.")
    out = Path(f"artifacts-{name}")
    merged = overlaid(parameters.read(base), parameters.read(overlay) or {})
    parameters.validate(merged, overlay)
    params = out / "params.yaml"
    write_text(params, yaml.safe_dump(merged, sort_keys=False))
    for stage in STAGES:
        command = [sys.executable, "-m", f"qamoe.pipeline.{stage}", "--params", str(params), "--out", str(out)]
        print(f"experiment {name}: {stage}", flush=True)
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"Experiment {name} ended in stage {stage}.")


def main() -> None:
    """The command; a refusal becomes one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m qamoe.pipeline.experiment")
    parser.add_argument("name")
    name = parser.parse_args().name
    with exit_on_user_error("experiment"):
        run(name)


if __name__ == "__main__":
    main()
