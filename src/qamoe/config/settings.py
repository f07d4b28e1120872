"""Device, workers, servers: settings from environment variables. No other module reads the environment.

Settings may change speed and float rounding, but no result; params.yaml holds everything that does.
"""

import math
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote, unquote_plus

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


def keep_temporary_files_in(folder: Path) -> None:
    """Make this process, its libraries and its children write temporary files there, where a caller removes them."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def go_offline() -> None:
    """Disable telemetry and model hubs for this process and its children; only entry points call this."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def check() -> None:
    """Raise UserError for an invalid setting, whether or not the command will use it; imports no torch."""
    value = os.environ.get("QAMOE_DEVICE") or "cpu"
    if not re.fullmatch("(?:cpu|cuda)(?::[0-9]{1,3})?", value):
        raise UserError(f"QAMOE_DEVICE is {value!r}; it must be cpu, cuda or cuda with a number, such as cuda:1.")
    workers(), processes(), batch_parts(), executor(), untracked()


def device() -> str:
    """Return the torch device of `QAMOE_DEVICE` (default: a GPU if torch finds one, else the CPU)."""
    import torch

    check()
    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    value = os.environ.get("QAMOE_DEVICE") or available[-1]
    kind, _, number = value.partition(":")
    if kind not in available or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise UserError(f"QAMOE_DEVICE is {value!r}; this machine has {' and '.join(available)}.")
    return value


def _integer(name: str, lowest: int, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,6}", value) or int(value) < lowest:
        raise UserError(f"{name} is {value[:60]!r}; it must be an integer from {lowest} to 999999.")
    return int(value)


def workers() -> int:
    """Return how many processes may run side by side: `QAMOE_WORKERS` (default: the cores of this process)."""
    return _integer("QAMOE_WORKERS", 1, len(os.sched_getaffinity(0)))


def processes() -> tuple[int, int, int]:
    """Return rank, number of processes and rank on this machine, as torchrun sets them."""
    return _integer("RANK", 0, 0), _integer("WORLD_SIZE", 1, 1), _integer("LOCAL_RANK", 0, 0)


def batch_parts() -> int:
    """Return in how many parts a training process computes its share of a batch: `QAMOE_BATCH_PARTS` (default 1)."""
    return _integer("QAMOE_BATCH_PARTS", 1, 1)


def executor() -> str:
    """Return where extraction and evaluation run: `QAMOE_EXECUTOR`, `processes` of this machine (default) or `ray`."""
    value = os.environ.get("QAMOE_EXECUTOR") or "processes"
    if value not in ("processes", "ray"):
        raise UserError(f"QAMOE_EXECUTOR is {value!r}; it must be processes or ray.")
    return value


def ray_address() -> str | None:
    """Return the address of a running Ray cluster, `RAY_ADDRESS`; None for one that only this process uses."""
    return os.environ.get("RAY_ADDRESS") or None


def side_by_side(jobs: int) -> int:
    """Return how many of `jobs` long jobs run at once; without `QAMOE_WORKERS`, more than cores if a core would idle.

    Three jobs on two cores take two rounds in pairs, but only one and a half when all three share the cores. On a GPU
    the default is one job at a time, because its memory may not be enough for more.
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
    """Return MLflow's own `MLFLOW_TRACKING_URI`; None for the project's default store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def study_url() -> str | None:
    """Return the database of a search that several machines share, `QAMOE_STUDY_URL`; None for a local file."""
    return os.environ.get("QAMOE_STUDY_URL") or None


def untracked() -> bool:
    """Whether training writes no records: with `QAMOE_TRACKING=off`, and in all but torchrun's first process."""
    value = os.environ.get("QAMOE_TRACKING") or "on"
    if value not in ("on", "off"):
        raise UserError(f"QAMOE_TRACKING is {value!r}; it must be on or off.")
    return value == "off" or processes()[0] > 0


def weights_cache() -> Path:
    """Return the folder of fetched weights: `QAMOE_WEIGHTS`, or qamoe/weights in the user's cache (XDG_CACHE_HOME)."""
    if folder := os.environ.get("QAMOE_WEIGHTS"):
        return Path(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "")
    # Not Path.home(), which raises for a user without a home; what is installed is found all the same.
    home = Path(os.environ.get("HOME") or "/")
    return (cache if cache.is_absolute() else home / ".cache") / "qamoe" / "weights"


def weights_source() -> Path | None:
    """Return a local folder that is asked for weights before any other source, `QAMOE_WEIGHTS_FROM`."""
    folder = os.environ.get("QAMOE_WEIGHTS_FROM")
    return Path(folder) if folder else None


def model_hub() -> str:
    """Return the address of the Hugging Face hub, or of a mirror: its own `HF_ENDPOINT`."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def secrets() -> set[str]:
    """Return the secrets in the environment and their parts of at least four characters.

    They are the values of variables with the name of a secret, and the passwords in addresses: all before the last @
    but the user, or the user too where there is no password, and the values of a query.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        scheme, _, rest = value.partition("://")
        if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", name):
            found.add(value)
        elif rest and re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
            login = rest.rpartition("@")[0]
            values = re.findall("(?:pass|pwd|secret|token|key|auth|sig|cred)[^=&]*=([^&]*)", rest, re.IGNORECASE)
            found |= {login.partition(":")[2] or login, *values}
    written = {form for secret in found for form in (secret, unquote(secret), unquote_plus(secret), quote(secret))}
    parts = {part for secret in written for part in (secret, *re.split(r"[\s@/:#?&=;,'\"]+", secret))}
    return {part for part in parts if len(part) >= 4}


def under_dvc() -> bool:
    """Whether dvc runs this process as a stage."""
    return "DVC_STAGE" in os.environ


def dvc_experiment() -> str | None:
    """Return the name of the experiment that `dvc exp run` runs, which DVC tells its stages in `DVC_EXP_NAME`."""
    return os.environ.get("DVC_EXP_NAME") or None
