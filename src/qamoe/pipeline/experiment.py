"""Run every stage with params.yaml overlaid by experiments/NAME.yaml, into artifacts-NAME/."""

import subprocess
import sys
from pathlib import Path

import yaml

from qamoe.config import params as parameters
from qamoe.config.overlay import experiment_content
from qamoe.errors import UserError
from qamoe.files import write_text
from qamoe.pipeline.known_names import check_names

STAGES = ("extract", "preprocess", "train", "evaluate", "report")


def run(name: str, base: Path = Path("params.yaml"), folder: Path = Path("experiments")) -> None:
    """Run the stages one after the other. Raises UserError if the overlay does not exist or is not valid."""
    content = experiment_content(name, base, folder)
    overlay = folder / f"{name}.yaml"
    check_names(parameters.validate(content, overlay), overlay)
    out = Path(f"artifacts-{name}")
    params = out / "params.yaml"
    write_text(params, yaml.safe_dump(content, sort_keys=False))
    for stage in STAGES:
        command = [sys.executable, "-m", "qamoe", "run", stage, "--params", str(params), "--out", str(out)]
        print(f"experiment {name}: {stage}", flush=True)
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"Experiment {name} failed in stage {stage}.")
