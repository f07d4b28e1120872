"""Where a result comes from: the checkout, its commit, and what was installed. Never the environment as a whole."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qamoe.config import settings
from qamoe.files import file_digest

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "transformers", "mlflow")


def _git(*arguments: str, where: Path | None = None) -> str | None:
    """What git answers, or None where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def main_checkout(where: Path | None = None) -> Path:
    """The root of the main checkout, also from a worktree and from the copy that `dvc exp run --temp` or `--queue`
    makes below .dvc/tmp; without git the folder itself."""
    here = (where or Path.cwd()).resolve()
    git_folder = _git("rev-parse", "--path-format=absolute", "--git-common-dir", where=here)
    if git_folder is None:
        root = here
    elif Path(git_folder).name == ".git":
        root = Path(git_folder).parent
    else:  # a submodule, whose git folder lies inside that of the repository around it
        root = Path(_git("rev-parse", "--show-toplevel", where=here) or here)
    copy = next((parent for parent in root.parents if parent.name == ".dvc"), None)
    return root if copy is None else copy.parent


def tracked_outs(plan: Path = Path("dvc.yaml")) -> set[str]:
    """The files that the pipeline makes and git tracks: outs of dvc.yaml that are not in DVC's cache."""
    import yaml

    stages = (yaml.safe_load(plan.read_text()) or {}).get("stages", {}) if plan.is_file() else {}
    outs = [out for stage in stages.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, ())]
    return {path for out in outs if isinstance(out, dict) for path, how in out.items() if how.get("cache") is False}


def changed_files() -> list[str]:
    """Tracked files that differ from the last commit, without those that a run of the pipeline itself may change.

    dvc.lock and *.dvc change where a pipeline runs, and their digests tell what they said.
    """
    may_change = {"dvc.lock", *tracked_outs()}
    names = (_git("diff", "--name-only", "HEAD") or "").splitlines()
    return [name for name in names if name not in may_change and not name.endswith(".dvc")]


def provenance() -> dict[str, str]:
    """Tags that say what code, files and packages a result was made with, and two settings that matter to its speed."""
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
