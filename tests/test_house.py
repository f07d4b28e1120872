"""Rules of the repository: requirements, imports, names in the documentation, and the dependencies in dvc.yaml."""

import ast
import graphlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Collection, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qamoe.config.params import load
from qamoe.pipeline import source_dependencies

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT) for folder in ("src", "flows") for path in (ROOT / folder).rglob("*.py"))
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# The folders or files (by path prefix) that may import a tool. dvc is used as a command, not as a library.
ONLY = {
    "prefect": ("flows/",),
    "dvc": (),
    "mlflow": ("src/qamoe/inference/", "src/qamoe/registry/", "src/qamoe/serving/", "src/qamoe/tracking/"),
    "optuna": ("src/qamoe/training/search.py",),
    "ray": ("src/qamoe/ray_worker_pool.py",),
    "espeakng_loader": ("src/qamoe/data/synthetic/",),
}


@cache
def imported(path: Path) -> set[str]:
    """Return the dotted names that a file of the project imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: the search for the files of a stage does not follow relative imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    """Return whether a dotted name is a package or part of it."""
    return name == package or name.startswith(f"{package}.")


def pins() -> dict[str, str]:
    """Return the locked version of each package."""
    split_lines = (line.partition("==") for line in LOCK if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in split_lines}


@pytest.mark.integration
@pytest.mark.parametrize("tool", ONLY)
def test_a_tool_is_imported_only_in_its_own_folders(tool: str) -> None:
    importers = {path.as_posix() for path in FILES if any(within(name, tool) for name in imported(path))}
    assert {path for path in importers if not path.startswith(ONLY[tool] or "-")} == set()


@pytest.mark.integration
def test_every_imported_package_is_a_requirement() -> None:
    """A package that only comes with another one, or that is left from before, may be missing for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    required = {canonicalize_name(Requirement(line).name) for line in requirements}
    distributions = packages_distributions()
    local = {"qamoe", "flows", "tests", "scripts", "__future__"} | sys.stdlib_module_names
    other_files = (path for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py"))
    files = [*FILES, *(path.relative_to(ROOT) for path in other_files)]
    imports = {(name.split(".")[0], path.as_posix()) for path in files for name in imported(path)}
    missing = {
        (name, path)
        for name, path in imports
        if name not in local and not required & {canonicalize_name(d) for d in distributions.get(name, [name])}
    }
    assert missing == set()


def module_of(name: str, modules: Collection[str]) -> str:
    """Return the module that an imported name is or belongs to, "" if it is not in `modules`."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return the modules of qamoe that each module imports, at any depth; `package` is src/qamoe or a copy of it."""
    files = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name.removeprefix("qamoe.") for name in imported(path) if name.startswith("qamoe.")}
        graph[module] = {known for name in names if (known := module_of(name, modules))} - {module}
    return graph


@pytest.mark.integration
def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter(import_graph(ROOT / "src/qamoe")).prepare()


@pytest.mark.integration
def test_an_import_of_a_higher_package_is_a_lint_error(tmp_path: Path) -> None:
    """`make lint` checks the layers of pyproject.toml, also for an import inside a function."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lint = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    for added, code in (("", 0), ("\ndef upward() -> None:\n    from qamoe.pipeline import train\n", 1)):
        with (tmp_path / "src/qamoe/models/moe.py").open("a") as file:
            file.write(added)
        done = subprocess.run(lint, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert ("qamoe.models.moe -> qamoe.pipeline.train" in done.stdout) == bool(code)


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "notebook"),
]
FOLDERS = ("src", "flows", "tests", "benchmarks", "scripts")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
# Names after `qamoe.` that are not modules: tags of MLflow, labels of Prefect, a key of summary.json.
TAGS = {"artifact_digest", "commit", "data_digest", "dvc_lock_digest", "missing", "rule", "state", "today"}


def prose(path: Path) -> Iterator[str]:
    """Yield the docstrings and comments of a source, or the lines of a document except those with a source."""
    text = path.read_text()
    if path.suffix == ".md":
        yield from (line for line in text.splitlines() if not line.startswith("Source:"))
        return
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    yield from (ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def is_module(dotted: str) -> bool:
    """Return whether a dotted name is a package or module of the project, or a name defined in one."""
    parent, _, name = dotted.rpartition(".")
    stem, folder = ROOT / "src" / Path(*parent.split(".")), ROOT / "src" / Path(*dotted.split("."))
    files = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    defined = any(re.search(rf"^(def |class )?{name}\b", file.read_text(), re.MULTILINE) for file in files)
    return folder.is_dir() or folder.with_suffix(".py").is_file() or defined


def dead_names(text: str) -> set[str]:
    """Return the modules and source files that a text names although the project does not have them."""
    dotted = (name.removesuffix(".NAME") for name in re.findall(r"(?<![\w./-])qamoe(?:\.[A-Za-z_]\w*)+", text))
    names = (name for name in dotted if name.split(".")[1] not in TAGS and name != "qamoe.py")
    dead = {name for name in names if not is_module(name)}
    for path in re.findall(r"src/qamoe(?:/[\w.-]+)*|(?<![\w./*<-])(?:[\w-]+/)*\w+\.py\b", text):
        within_project = any((start / path.rstrip(".")).exists() for start in (ROOT, ROOT / "src/qamoe", ROOT / "src"))
        by_name = "/" not in path and any(source.name == path for source in SOURCES)
        if not within_project and not by_name:
            dead.add(path)
    return dead


def test_dead_names_are_found() -> None:
    alive = "`python -m qamoe.pipeline.code`, qamoe.config.params.load, `qamoe.today.mae`, src/qamoe/models/, moe.py."
    assert dead_names(alive) == set()
    for dead in (
        "qamoe.records.tracking",
        "qamoe.config.params.lead",
        "src/qamoe/corpora",
        "records/gate.py",
        "hops.py",
    ):
        assert dead_names(f"as in `{dead}` and {alive}") == {dead}


@pytest.mark.integration
def test_modules_and_files_named_in_documents_and_comments_exist() -> None:
    named = {path.relative_to(ROOT).as_posix(): {*chain(*map(dead_names, prose(path)))} for path in DOCUMENTS + SOURCES}
    assert {path: dead for path, dead in named.items() if dead} == {}


def test_only_settings_reads_environment_variables() -> None:
    reading = re.compile(r"os\.(environ|getenv)\b")
    readers = {
        path.as_posix() for path in FILES if path.parts[0] == "src" and reading.search((ROOT / path).read_text())
    }
    assert readers == {"src/qamoe/config/settings.py"}


def test_dvc_yaml_lists_the_source_files_of_each_stage(tmp_path: Path) -> None:
    plan = tmp_path / "dvc.yaml"
    plan.write_text((ROOT / "dvc.yaml").read_text())
    source_dependencies.write_dependencies(plan)
    assert plan.read_text() == (ROOT / "dvc.yaml").read_text(), "run: python -m qamoe.pipeline.source_dependencies"
    listed = {name: stage["deps"] for name, stage in STAGES.items() if name.startswith("code-")}
    assert {f"code-{stage}" for stage in source_dependencies.STAGES} == set(listed)
    assert "src/qamoe/config/model_names.py" in listed["code-train"]
    assert [
        stage for stage in source_dependencies.STAGES if f"artifacts/code/{stage}.json" not in STAGES[stage]["deps"]
    ] == []


def test_a_stage_is_a_child_of_dvc_and_not_of_a_shell() -> None:
    """Without exec, a shell like dash stays between dvc and the stage, and it does not end with dvc."""
    commands = [
        line.strip() for line in (ROOT / "dvc.yaml").read_text().splitlines() if line.strip().startswith("cmd:")
    ]
    assert len(commands) == len(STAGES)
    assert [line for line in commands if not line.startswith("cmd: exec ")] == []


def test_the_lock_meets_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    locked = pins()
    for requirement in map(Requirement, requirements):
        if requirement.name == project["name"]:  # an extra that includes another one
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is locked at {version}"


def test_the_lock_pins_versions_without_addresses() -> None:
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")  # without +cpu, address or option
    assert [line for line in LOCK if not line.startswith("#") and not pin.fullmatch(line)] == []
    assert len(pins()) == sum(not line.startswith("#") for line in LOCK), "a package is locked twice"


def test_compose_runs_the_server_versions_of_the_lock() -> None:
    """Client and server have the same version, and the ports are only open to this machine."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services["prefect"]["image"] == f"prefecthq/prefect:{pins()['prefect']}-python3.11"
    assert f"mlflow=={pins()['mlflow']}" in services["mlflow"]["build"]["dockerfile_inline"]
    ports = [port for service in services.values() for port in service["ports"]]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.integration
@pytest.mark.slow
def test_prefects_server_starts_with_the_installed_packages() -> None:
    """`pip check` accepts newer versions, but a newer fastapi breaks flow calls, and a newer sqlalchemy scheduling."""
    code = "import prefect.server.api.server as s; s.create_app(); import sqlalchemy; print(sqlalchemy.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.0.")


@pytest.mark.integration
def test_setup_names_the_missing_system_packages(tmp_path: Path) -> None:
    absent = "import ctypes\n\ndef load(name, *rest, **more):\n    raise OSError(name)\n\nctypes.CDLL = load\n"
    (tmp_path / "sitecustomize.py").write_text(absent)
    done = subprocess.run(
        ["make", "preflight", f"PYTHON=env PYTHONPATH={tmp_path} {sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "apt-get install libegl1 libgles2 libgl1" in done.stderr


def test_benchmarks_measure_models_of_the_sizes_in_params(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from qamoe.models.factory import block_of

    shapes = importlib.import_module("shapes")
    models = load(ROOT / "params.yaml").models
    assert (block_of(models, "qamoe"), block_of(models, "concat")) == (shapes.QAMOE, shapes.CONCAT)
    assert shapes.ENCODERS.model_dump(exclude={"text"}) == models.encoders.model_dump(exclude={"text"})
