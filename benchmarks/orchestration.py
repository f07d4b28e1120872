"""What Prefect and DVC add to the stages: `python benchmarks/orchestration.py`, about ten minutes on two cores.

Two copies of what git tracks are run in turn with nothing beside them: one by `qamoe run` for each stage and model and
`qamoe promote`, the other by `python -m flows.pipeline`, which starts a server of its own; then the second
one again, unchanged. Prefect's folder has been used before: what a new database costs is a figure of its own.
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
ADDED_S, ADDED_SHARE = 15.0, 0.05  # the larger of the two
UNCHANGED_S = 20.0
FIRST = "flows.score"  # with nothing to score, a flow that only starts and ends


def copied(to: Path) -> Path:
    """What git tracks, with the corpus and without anything that ran."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)
    git = ("git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "as it is")):  # dvc and the flows ask git
        subprocess.run([*git, *command], cwd=to, check=True)
    timed(to, "dvc", "pull", "data.dvc")
    return to


def timed(folder: Path, *command: str) -> float:
    """Seconds of `python -m COMMAND`; ends this program where it fails."""
    foreign = ("QAMOE_", "MLFLOW_", "DVC_", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {"PREFECT_HOME": str(folder.with_name("prefect")), "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'src'}"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=kept | own, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return time.monotonic() - began


def bare(folder: Path) -> float:
    """Seconds of all stages of dvc.yaml by themselves, in the order of the flow, and of `qamoe promote`."""
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
    with tempfile.TemporaryDirectory() as made:
        by_hand, by_flow = copied(Path(made) / "bare"), copied(Path(made) / "flow")
        figure("the first flow, with a new database", timed(by_flow, FIRST), "s")
        stages = bare(by_hand)
        figure("bare stages", stages, "s")
        whole = timed(by_flow, "flows.pipeline")
        figure("pipeline", whole, "s")
        figure("what orchestration adds", whole - stages, "s", at_most=max(ADDED_S, ADDED_SHARE * stages))
        unchanged = [timed(by_flow, "flows.pipeline") for _ in range(3)]
        figure("unchanged pipeline", statistics.median(unchanged), "s", at_most=UNCHANGED_S)


if __name__ == "__main__":
    main()
