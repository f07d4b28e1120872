"""Run every stage with params.yaml overlaid by experiments/NAME.yaml, as a DVC pipeline of its own in artifacts-NAME/.

The pipeline is that of dvc.yaml with other paths: artifacts-NAME/dvc.yaml is written from it, and has its own dvc.lock.
The stages code-<stage>, which write digests of source files, are shared.
"""

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
_HEAD = "# Written by `qamoe experiment {name}` from dvc.yaml and experiments/{name}.yaml.\n"


def run(name: str, base: Path = Path("params.yaml"), folder: Path = Path("experiments")) -> None:
    """Write the pipeline of an experiment and run its stale stages, except the search.

    A corpus in the checkout that DVC does not track yet is added to DVC, so that `dvc push` and `dvc pull` bring it.
    Raises UserError as `write` does, or if a stage fails.
    """
    out, corpus = write(name, base, folder)
    if corpus.exists() and not _is_tracked(corpus):
        _dvc(name, "add", "--quiet", str(corpus))
    _dvc(name, "repro", f"{out / 'dvc.yaml'}:report")


def write(name: str, base: Path = Path("params.yaml"), folder: Path = Path("experiments")) -> tuple[Path, Path]:
    """Write the parameters and the pipeline of an experiment into artifacts-NAME/; return that folder and its corpus.

    The pipeline has a search if the overlay changes section `tune`.
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
    kept = STAGES if params.tune == parameters.load(base).tune else (*STAGES, *SEARCH)
    stages = pipeline({name: planned[name] for name in kept}, out, list(params.seeds), str(corpus))
    write_text(out / "params.yaml", yaml.safe_dump(content, sort_keys=False))
    write_text(out / "dvc.yaml", _HEAD.format(name=name) + yaml.safe_dump({"stages": stages}, sort_keys=False))
    return out, corpus


def _is_tracked(corpus: Path) -> bool:
    """Return whether a .dvc file names this path or a folder above it. One outside the checkout counts as tracked."""
    if Path.cwd() not in corpus.resolve().parents:
        return True
    return any(path.with_name(f"{path.name}.dvc").is_file() for path in (corpus, *corpus.parents) if path.name)


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
