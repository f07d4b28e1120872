"""Describe where a result comes from: the checkout, its commit and package versions, but no environment variables."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qamoe.config import settings
from qamoe.files import file_digest

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "transformers", "mlflow")


def _git(*arguments: str, where: Path | None = None) -> str | None:
    """Return the output of a git command, or None without git or without a checkout."""
    try:
        process = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()


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
    """Return tracked files that differ from the last commit, without those that a run of the pipeline may change.

    A run changes dvc.lock and *.dvc; their digests are recorded instead.
    """
    written_by_runs = {"dvc.lock", *tracked_outs()}
    names = (_git("diff", "--name-only", "HEAD") or "").splitlines()
    return [name for name in names if name not in written_by_runs and not name.endswith(".dvc")]


def provenance() -> dict[str, str]:
    """Return tags for the code, files and packages of a result, and for two settings that affect its speed."""
    tags = {"qamoe.platform": platform.platform(), "qamoe.python": platform.python_version()}
    tags |= {"qamoe.device": settings.device(), "qamoe.workers": str(settings.workers())}
    for name in PACKAGES:
        try:
            tags[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        tags |= {"mlflow.source.git.commit": commit, "qamoe.git_dirty": str(bool(changed_files())).lower()}
    lock = Path("dvc.lock")
    if lock.is_file():
        tags["qamoe.dvc_lock_digest"] = file_digest(lock)
    return tags
