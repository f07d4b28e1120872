"""Where and how fast things run: the only module that reads the environment.

Nothing here may change a result beyond float rounding; what does is a parameter (params.yaml).
"""

import math
import os

from qamoe.errors import UserError

QUIET = {
    # MLflow ignores "1" here.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def go_offline() -> None:
    """Switch telemetry and every hub off for this process and its children; called by entry points only."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def device() -> str:
    """The torch device of `QAMOE_DEVICE`; by default a GPU where there is one, else the CPU."""
    import torch

    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    value = os.environ.get("QAMOE_DEVICE") or there[-1]
    if value.split(":")[0] not in there:
        raise UserError(f"QAMOE_DEVICE is {value!r}; on this machine there is {' and '.join(there)}.")
    return value


def _counted(name: str, lowest: int, otherwise: int) -> int:
    value = os.environ.get(name) or str(otherwise)
    if not value.isdecimal() or int(value) < lowest:
        raise UserError(f"{name} is {value!r}; allowed is a whole number from {lowest} on.")
    return int(value)


def workers() -> int:
    """How many processes may work side by side (`QAMOE_WORKERS`; by default the cores this process may use)."""
    return _counted("QAMOE_WORKERS", 1, len(os.sched_getaffinity(0)))


def processes() -> tuple[int, int, int]:
    """Which of how many processes torchrun started this one as, and which of its machine (its own variables)."""
    return _counted("RANK", 0, 0), _counted("WORLD_SIZE", 1, 1), _counted("LOCAL_RANK", 0, 0)


def batch_parts() -> int:
    """In how many parts (`QAMOE_BATCH_PARTS`) a training process computes its share of a batch, one after the other."""
    return _counted("QAMOE_BATCH_PARTS", 1, 1)


def executor() -> str:
    """Where clips are extracted and a spectrum evaluated (`QAMOE_EXECUTOR`): `processes` of this machine, or `ray`."""
    value = os.environ.get("QAMOE_EXECUTOR") or "processes"
    if value not in ("processes", "ray"):
        raise UserError(f"QAMOE_EXECUTOR is {value!r}; allowed are processes and ray.")
    return value


def ray_address() -> str | None:
    """Ray's own `RAY_ADDRESS`, a cluster that runs already, or None for one of this machine and this process alone."""
    return os.environ.get("RAY_ADDRESS") or None


def side_by_side(jobs: int) -> int:
    """How many of some long jobs work at once: where nobody asked for a number, more than cores if a core would idle.

    Three jobs on two cores take two rounds in pairs, and the time of one and a half when all three share the cores.
    On a GPU one job at a time, where nobody asked for a number: its memory is not known to be enough for more.
    """
    if os.environ.get("QAMOE_WORKERS"):
        return min(workers(), jobs)
    if device() != "cpu":
        return 1
    most = workers()
    if jobs <= most:
        return jobs
    return math.ceil(jobs / (jobs // most))


def tracking_uri() -> str | None:
    """MLflow's own `MLFLOW_TRACKING_URI`, or None for the project's default store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def study_url() -> str | None:
    """The database of a search that several machines share (`QAMOE_STUDY_URL`), or None for a file of this one's."""
    return os.environ.get("QAMOE_STUDY_URL") or None


def untracked() -> bool:
    """True where `QAMOE_TRACKING=off`: training writes its plain files alone, to be recorded later.

    True too in all but the first of torchrun's processes.
    """
    value = os.environ.get("QAMOE_TRACKING") or "on"
    if value not in ("on", "off"):
        raise UserError(f"QAMOE_TRACKING is {value!r}; allowed are on and off.")
    return value == "off" or processes()[0] > 0


def under_dvc() -> bool:
    """True where dvc runs this process as a stage."""
    return "DVC_STAGE" in os.environ
