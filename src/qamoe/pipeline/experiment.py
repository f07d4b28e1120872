"""Run every stage with params.yaml overlaid by experiments/NAME.yaml, as a DVC pipeline of its own in artifacts-NAME/.

The pipeline is that of dvc.yaml with other paths: artifacts-NAME/dvc.yaml is written from it, and has its own dvc.lock.
The stages code-<stage>, which write digests of source files, are shared.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from qamoe.config import params as parameters
from qamoe.config.overlay import experiment_content
from qamoe.errors import UserError
from qamoe.files import write_text
from qamoe.pipeline.known_names import check_names

STAGES = ("extract", "preprocess", "train", "evaluate", "report")
SEARCH = ("tune-parameters", "tune")
_ARTIFACTS, _CODE = "artifacts/", "artifacts/code/"
_OWN_CODE = "artifacts/code/tune-parameters.json"  # the one record that the parameters decide
_COMMITTED = ("params.yaml", "dvc.yaml", "dvc.lock", "report/metrics.json", "report/curves.csv")  # see .gitignore
_HEAD = "# Written by `qamoe experiment {name}` from dvc.yaml and experiments/{name}.yaml.\n"


def run(name: str, search: bool = False, base: Path = Path("params.yaml"), folder: Path = Path("experiments")) -> None:
    """Write the pipeline of an experiment, run its stale stages, and print the command that adds its files to git.

    A corpus in the checkout that DVC does not track yet is added to DVC, so that `dvc push` and `dvc pull` bring it.
    search: run the search and the stages that it needs, instead of those up to the report.
    Raises UserError as `write` does, or if a stage fails.
    """
    out, corpus = write(name, search, base, folder)
    inside = Path.cwd() in corpus.resolve().parents
    if inside and corpus.exists() and _dvc_file(corpus) is None:
        _dvc(name, "add", "--quiet", str(corpus))
    plan = out / "dvc.yaml"
    # The search stays current when its result is accepted, but the record of what it does not vary must be renewed.
    record = [f"{plan}:{SEARCH[0]}"] if _searched(out) else []
    _dvc(name, "repro", *record, f"{plan}:{'tune' if search else 'report'}")
    tracked = _dvc_file(corpus) if inside else None
    of_corpus = [] if tracked is None else [tracked, tracked.with_name(".gitignore")]  # `dvc add` writes both
    # dvc.lock has the digests of the code, which all pipelines share.
    kept = [folder / f"{name}.yaml", *(out / file for file in _COMMITTED), Path("dvc.lock"), *of_corpus]
    files = [shlex.quote(str(file)) for file in kept if file.exists()]
    print(f"To commit this experiment: git add {' '.join(files)}")


def write(
    name: str, search: bool = False, base: Path = Path("params.yaml"), folder: Path = Path("experiments")
) -> tuple[Path, Path]:
    """Write the parameters and the pipeline of an experiment into artifacts-NAME/; return that folder and its corpus.

    The pipeline has a search if one is asked for or has run: DVC would call one that never ran stale for ever.
    Raises UserError if the overlay does not exist or is not valid, or if this is no DVC repository.
    """
    content = experiment_content(name, base, folder)
    overlay = folder / f"{name}.yaml"
    params = parameters.validate(content, overlay)
    check_names(params, overlay)
    plan = Path("dvc.yaml")
    if not (Path(".dvc").is_dir() and plan.is_file()):
        raise UserError(f"{Path.cwd()} has no .dvc or no dvc.yaml; run experiments at the root of a checkout.")
    out = Path(f"artifacts-{name}")
    corpus = Path(params.extract.corpus.path)
    planned = yaml.safe_load(plan.read_text())["stages"]
    kept = (*STAGES, *SEARCH) if search or _searched(out) else STAGES
    stages = pipeline({name: planned[name] for name in kept}, out, list(params.seeds), str(corpus))
    write_text(out / "params.yaml", yaml.safe_dump(content, sort_keys=False))
    write_text(out / "dvc.yaml", _HEAD.format(name=name) + yaml.safe_dump({"stages": stages}, sort_keys=False))
    return out, corpus


def _searched(out: Path) -> bool:
    """Return whether a search of this experiment has run: its dvc.lock, which git keeps, then names it."""
    lock = out / "dvc.lock"
    return lock.is_file() and "tune" in yaml.safe_load(lock.read_text())["stages"]


def _dvc_file(corpus: Path) -> Path | None:
    """Return the .dvc file that names this path or a folder above it."""
    files = (path.with_name(f"{path.name}.dvc") for path in (corpus, *corpus.parents) if path.name)
    return next(filter(Path.is_file, files), None)


def _dvc(name: str, *arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "dvc", *arguments], check=False).returncode:
        raise UserError(f"Experiment {name} failed in `dvc {' '.join(arguments)}`; see its message above.")


def pipeline(stages: dict[str, Any], out: Path, models: list[str], corpus: str) -> dict[str, Any]:
    """Return stages of dvc.yaml as those of an experiment: with its paths and its models."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {moved(key): moved(nested) for key, nested in value.items()}
        if isinstance(value, list):
            return [moved(nested) for nested in value]
        if isinstance(value, str) and value.startswith(_ARTIFACTS) and (value == _OWN_CODE or _CODE not in value):
            return f"{out}/{value.removeprefix(_ARTIFACTS)}"
        return value

    changed = {}
    for name, planned in stages.items():
        stage = moved(planned)
        if "matrix" in stage:
            stage["matrix"] = {"model": [*models]}
        stage["cmd"] += f" --params {out}/params.yaml --out {out}"
        stage["params"] = [{f"{out}/params.yaml": stage["params"]}]
        escaped = corpus.replace("${", r"\${")  # DVC reads ${...} as a template
        stage["deps"] = [escaped if dependency == "data" else dependency for dependency in stage["deps"]]
        changed[name] = {"wdir": "..", **stage}
    return changed
