"""Measure the time that Prefect and DVC add to the stages: `python benchmarks/orchestration.py`.

Takes about ten minutes on two cores. Runs two copies of the tracked files one after the other: one by the command of
each stage and model and by `qamoe promote`, the other by `python -m flows.pipeline`, which starts its own server. Then
it runs the second one again without changes. Creating Prefect's database is a separate figure.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from figures import figure

ROOT = Path(__file__).resolve().parent.parent
ADDED_S, ADDED_SHARE = 15.0, 0.05  # the larger one is the bound
UNCHANGED_S = 20.0
FIRST = "flows.score"  # with nothing to score, this flow only starts and ends


def copy_checkout(to: Path) -> Path:
    """Copy the files that git tracks, and pull the corpus; no stage has run in the copy."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)
    git = ("git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "copy")):  # dvc and the flows need git
        subprocess.run([*git, *command], cwd=to, check=True)
    timed(to, "dvc", "pull", "data.dvc")
    return to


def timed(folder: Path, *command: str) -> float:
    """Return the seconds of `python -m COMMAND`; exit if the command fails."""
    removed = ("QAMOE_", "MLFLOW_", "DVC_", "PREFECT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    environment["PREFECT_HOME"] = str(folder.with_name("prefect"))
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{folder / 'src'}"
    begin = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {process.stderr[-2000:]}")
    return time.monotonic() - begin


def bare_stages(folder: Path) -> float:
    """Return the seconds of all stages of dvc.yaml without DVC and Prefect, and of the promotion gate."""
    plan = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    models = list(yaml.safe_load((folder / "params.yaml").read_text())["seeds"])
    seconds = 0.0
    for stage in ("extract", "preprocess", "train", "evaluate", "report", "tune"):
        for model in models if "matrix" in plan[stage] else [None]:
            chosen = () if model is None else ("--model", model)
            seconds += timed(folder, "qamoe", "run", stage, *chosen)
    return seconds + timed(folder, "qamoe", "promote")


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        by_stage, by_flow = copy_checkout(Path(temporary) / "bare"), copy_checkout(Path(temporary) / "flow")
        figure("the first flow, with a new database", timed(by_flow, FIRST), "s")
        stages = bare_stages(by_stage)
        figure("bare stages", stages, "s")
        whole = timed(by_flow, "flows.pipeline")
        figure("pipeline", whole, "s")
        figure("what orchestration adds", whole - stages, "s", at_most=max(ADDED_S, ADDED_SHARE * stages))
        unchanged = [timed(by_flow, "flows.pipeline") for _ in range(3)]
        figure("unchanged pipeline", statistics.median(unchanged), "s", at_most=UNCHANGED_S)


if __name__ == "__main__":
    main()
