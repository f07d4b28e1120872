"""Describe where a result comes from: the checkout, its commit and package versions, but no environment variables."""

import getpass
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.files import file_digest

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "transformers", "mlflow")
# Where Python finds modules: the code folders, and the working folder itself. Patterns of git.
_CODE = ("src", "flows", ":(glob)*.py", ":(glob)*/__init__.py")


def _asked(*arguments: str, where: Path | None = None) -> str:
    """Return the output of a git command. Raises UserError without git, without a checkout, or if git refuses it."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=where, capture_output=True, check=True, encoding="utf-8", errors="surrogateescape"
        )
    except OSError as error:
        raise UserError(f"The program git cannot be run: {error.strerror}.") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[:300].rstrip(".")
        raise UserError(f"git {arguments[0]} failed in {where or Path.cwd()}: {reason}.") from None
    return process.stdout.strip()


def _git(*arguments: str, where: Path | None = None) -> str | None:
    """Return the output of a git command, or None without git or without a checkout."""
    try:
        return _asked(*arguments, where=where)
    except UserError:
        return None


def main_checkout(where: Path | None = None) -> Path:
    """Return the root of the main checkout of folder `where`, the working folder by default.

    A worktree, and a copy below .dvc/tmp by `dvc exp run --temp` or `--queue`, belong to the checkout that they were
    made from. Without git, return the folder itself.
    """
    folder = (where or Path.cwd()).resolve()
    git_folder = _git("rev-parse", "--path-format=absolute", "--git-common-dir", where=folder)
    if git_folder is None:
        root = folder
    elif Path(git_folder).name == ".git":
        root = Path(git_folder).parent
    else:  # a submodule: its git folder is inside that of the outer repository
        root = Path(_git("rev-parse", "--show-toplevel", where=folder) or folder)
    dvc_folder = next((parent for parent in root.parents if parent.name == ".dvc"), None)
    return root if dvc_folder is None else dvc_folder.parent


def tracked_outs(plan: Path = Path("dvc.yaml")) -> set[str]:
    """Return the outputs of the pipeline that git tracks: outs of dvc.yaml with `cache: false`."""
    import yaml

    stages = (yaml.safe_load(plan.read_text()) or {}).get("stages", {}) if plan.is_file() else {}
    outs = [out for stage in stages.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, ())]
    with_options = [out for out in outs if isinstance(out, dict)]
    return {path for out in with_options for path, options in out.items() if options.get("cache") is False}


def changed_files() -> list[str]:
    """Return files that the last commit does not describe: tracked ones that differ from it, and untracked code.

    A run of the pipeline, or of an experiment, may change its tracked outputs, dvc.lock and *.dvc; their digests are
    recorded instead. Raises UserError where git cannot tell.
    """
    plans = [Path("dvc.yaml"), *Path().glob("artifacts-*/dvc.yaml")]
    written_by_runs = {"dvc.lock"}.union(*map(tracked_outs, plans))
    for plan in plans[1:]:  # `qamoe experiment` writes them
        written_by_runs |= {plan.with_name(name).as_posix() for name in ("dvc.yaml", "dvc.lock", "params.yaml")}
    changed = _asked("diff", "--name-only", "-z", "HEAD").split("\0")
    untracked = _asked("ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE).split("\0")
    names = [*changed, *untracked]
    return [name for name in names if name and name not in written_by_runs and not name.endswith(".dvc")]


def _is_dirty() -> str:
    try:
        return str(bool(changed_files())).lower()
    except UserError:
        return "unknown"


def committed(name: str) -> str | None:
    """Return a file of the working folder as it is in the last commit; None without git or without the file."""
    return _git("show", f"HEAD:./{name}")


def user() -> dict[str, str]:
    """Return MLflow's tag for the user of this process, {} if the system has no name for it."""
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):
        return {}


def provenance() -> dict[str, str]:
    """Return tags for the code, files and packages of a result, and for two settings that affect its speed.

    Names without a prefix are for people, who filter by them: `commit`, and the name of the experiment that
    `dvc exp run` runs.
    """
    tags = {"qamoe.platform": platform.platform(), "qamoe.python": platform.python_version()}
    tags |= {"qamoe.device": settings.device(), "qamoe.workers": str(settings.workers())}
    for name in PACKAGES:
        try:
            tags[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        tags |= {"commit": commit[:12], "mlflow.source.git.commit": commit, "qamoe.git_dirty": _is_dirty()}
    experiment = settings.dvc_experiment()
    if experiment is not None:
        tags["dvc_experiment"] = experiment
    lock = Path("dvc.lock")
    if lock.is_file():
        tags["qamoe.dvc_lock_digest"] = file_digest(lock)
    return tags
