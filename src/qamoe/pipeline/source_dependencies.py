"""Find the source files that can change the result of a stage, by reading imports and never by running code.

`python -m qamoe.pipeline.source_dependencies` writes them into dvc.yaml as the `deps` of the stages code-<stage> and
tune-parameters, and a test compares the two. The digests that the former write, and that a checkpoint carries, cover
the syntax tree of each file without comments and docstrings. An edit of a comment therefore makes nothing stale.
"""

import hashlib
import json
from pathlib import Path

from qamoe.errors import exit_on_user_error
from qamoe.source_code import imported_names, normalised_source

PACKAGE = Path(__file__).parent.parent
STAGES = ("extract", "preprocess", "tune", "train", "evaluate", "report")
# Modules that only record results or say where a stage runs. config/params.py holds no values (a test checks this);
# dvc.yaml lists the values of params.yaml.
UNCHANGING = (
    "config.params",
    "config.settings",
    "errors",
    "files",
    "pipeline.runner",
    "pipeline.source_dependencies",
    "process_lifetime",
    "ray_worker_pool",
    "registry",
    "source_code",
    "tracking",
    "weights",  # a name stands for the same bytes for ever
)
_MARK = "  # From here on written by `python -m qamoe.pipeline.source_dependencies`.\n"


def _file(module: str) -> Path | None:
    stem = PACKAGE.parent.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def closure(module: str) -> list[Path]:
    """Return the sorted source files of qamoe that a module reaches by imports, and the templates in their folders."""
    seen: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        short = name.removeprefix("qamoe.")
        path = _file(name)
        if path is None or name in seen or any(short == u or short.startswith(f"{u}.") for u in UNCHANGING):
            continue
        seen[name] = path
        parents = [".".join(name.split(".")[:i]) for i in range(2, name.count(".") + 1)]
        waiting += [n for n in imported_names(path) if n.startswith("qamoe.")] + parents
    templates = {template for path in seen.values() for template in path.parent.glob("*.html")}
    return sorted(path for path in {*seen.values(), *templates} if path.stat().st_size > 0)


def file_digests(module: str) -> dict[str, str]:
    """Return SHA-256 of each file of a module's closure, by its path in the package.

    The digest of a Python file ignores comments and docstrings; that of a template covers all its bytes.
    """
    digests = {}
    for path in closure(module):
        content = normalised_source(path).encode() if path.suffix == ".py" else path.read_bytes()
        digests[path.relative_to(PACKAGE).as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


def code_digest(module: str) -> str:
    """Return SHA-256 over the paths and digests of a module's closure."""
    return hashlib.sha256(json.dumps(file_digests(module)).encode()).hexdigest()


def write_dependencies(plan: Path = Path("dvc.yaml")) -> None:
    """Write the stages code-<stage> and tune-parameters at the end of dvc.yaml, each with its source files."""
    head, mark, _ = plan.read_text().partition(_MARK)
    if not mark:
        raise ValueError(f"{plan} does not have the line {_MARK.strip()!r}")
    plan.write_text(head + mark + "\n".join([*map(_code_stage, STAGES), _parameters_stage()]))


def _code_stage(stage: str) -> str:
    return (
        f"  code-{stage}:\n    cmd: exec python -m qamoe.pipeline.code {stage}\n    deps:\n{_deps(stage)}"
        f"    outs:\n      - artifacts/code/{stage}.json\n"
    )


def _parameters_stage() -> str:
    return (
        "  tune-parameters:\n    cmd: exec python -m qamoe.pipeline.tune_parameters\n"
        f"    params: [tune, train.common, models]\n    deps:\n{_deps('tune_parameters')}"
        "    outs:\n      - artifacts/code/tune-parameters.json\n"
    )


def _deps(stage: str) -> str:
    files = (path.relative_to(PACKAGE.parent.parent).as_posix() for path in closure(f"qamoe.pipeline.{stage}"))
    return "".join(f"      - {file}\n" for file in files)


if __name__ == "__main__":
    with exit_on_user_error("source_dependencies"):
        write_dependencies()
