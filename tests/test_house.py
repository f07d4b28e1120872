"""The rules of the house: what is installed, who imports what, and that dvc.yaml lists what a stage is made of."""

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
FILES = sorted(path.relative_to(ROOT) for place in ("src", "flows") for path in (ROOT / place).rglob("*.py"))
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Who may import a tool: the folder or file, as its path begins. dvc is a command and no library here.
ONLY = {
    "prefect": ("flows/",),
    "dvc": (),
    "mlflow": ("src/qamoe/inference/", "src/qamoe/registry/", "src/qamoe/serving/", "src/qamoe/tracking/"),
    "optuna": ("src/qamoe/training/search.py",),
    "ray": ("src/qamoe/ray_worker_pool.py",),
    "espeakng_loader": ("src/qamoe/data/synthetic/",),
}


def imported(path: Path) -> set[str]:
    """Dotted names that a file of the project imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides from the search for a stage's files"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or lies in it."""
    return name == package or name.startswith(f"{package}.")


def pins() -> dict[str, str]:
    """The lock as name -> version."""
    parted = (line.partition("==") for line in LOCK if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in parted}


@pytest.mark.parametrize("tool", ONLY)
def test_a_tool_is_imported_in_its_own_room_alone(tool: str) -> None:
    importers = {path.as_posix() for path in FILES if any(within(name, tool) for name in imported(path))}
    assert {path for path in importers if not path.startswith(ONLY[tool] or "-")} == set()


def test_what_is_imported_is_asked_for() -> None:
    """A package that another one happens to bring, or that was here once, is not there for users."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = chain(asked["dependencies"], *asked["optional-dependencies"].values())
    wanted_names = {canonicalize_name(Requirement(line).name) for line in wanted}
    brought_by = packages_distributions()
    own = {"qamoe", "flows", "tests", "scripts", "__future__"} | sys.stdlib_module_names
    beside = (path for place in ("tests", "scripts") for path in (ROOT / place).rglob("*.py"))
    files = [*FILES, *(path.relative_to(ROOT) for path in beside)]
    foreign = {(name.split(".")[0], path.as_posix()) for path in files for name in imported(path)}
    unasked = {
        (name, path)
        for name, path in foreign
        if name not in own and not wanted_names & {canonicalize_name(of) for of in brought_by.get(name, [name])}
    }
    assert unasked == set()


def module_of(name: str, modules: Collection[str]) -> str:
    """The module that an imported name is, or is of."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def import_graph(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of qamoe that it imports, wherever in it; `package` is src/qamoe or a copy of it."""
    files = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = {name.removeprefix("qamoe.") for name in imported(path) if name.startswith("qamoe.")}
        graph[module] = {known for name in found if (known := module_of(name, modules))} - {module}
    return graph


def test_no_file_reaches_itself_by_imports() -> None:
    graphlib.TopologicalSorter(import_graph(ROOT / "src/qamoe")).prepare()


def test_an_import_of_a_higher_package_is_a_lint_error(tmp_path: Path) -> None:
    """`make lint` holds the stack of pyproject.toml; here with one import too many, inside a function."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lint = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    for back, code in (("", 0), ("\ndef back() -> None:\n    from qamoe.pipeline import train\n", 1)):
        with (tmp_path / "src/qamoe/models/moe.py").open("a") as file:
            file.write(back)
        done = subprocess.run(lint, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert ("qamoe.models.moe -> qamoe.pipeline.train" in done.stdout) == bool(code)


DOCUMENTS = [ROOT / "README.md", *(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md")]
FOLDERS = ("src", "flows", "tests", "benchmarks", "scripts")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
# What follows `qamoe.` in names that are no modules: tags of MLflow, labels of Prefect, a key of summary.json.
TAGS = {"artifact_digest", "commit", "data_digest", "dvc_lock_digest", "missing", "rule", "state", "today"}


def prose(path: Path) -> Iterator[str]:
    """The docstrings and comments of a source; the lines of a document, without those on other projects' files."""
    text = path.read_text()
    if path.suffix == ".md":
        yield from (line for line in text.splitlines() if not line.startswith("Source:"))
        return
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    yield from (ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def is_module(dotted: str) -> bool:
    """Whether a dotted name is a package or module of the project, or a name at the top of one."""
    parent, _, name = dotted.rpartition(".")
    stem, folder = ROOT / "src" / Path(*parent.split(".")), ROOT / "src" / Path(*dotted.split("."))
    files = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    defined = any(re.search(rf"^(def |class )?{name}\b", file.read_text(), re.MULTILINE) for file in files)
    return folder.is_dir() or folder.with_suffix(".py").is_file() or defined


def dead_names(text: str) -> set[str]:
    """Modules and source files that a text names and the project does not have."""
    dotted = (name.removesuffix(".NAME") for name in re.findall(r"(?<![\w./-])qamoe(?:\.[A-Za-z_]\w*)+", text))
    names = (name for name in dotted if name.split(".")[1] not in TAGS and name != "qamoe.py")
    dead = {name for name in names if not is_module(name)}
    for path in re.findall(r"src/qamoe(?:/[\w.-]+)*|(?<![\w./*<-])(?:[\w-]+/)*\w+\.py\b", text):
        within_project = any((start / path.rstrip(".")).exists() for start in (ROOT, ROOT / "src/qamoe", ROOT / "src"))
        by_name = "/" not in path and any(source.name == path for source in SOURCES)
        if not within_project and not by_name:
            dead.add(path)
    return dead


def test_a_name_that_leads_nowhere_is_seen() -> None:
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


def test_what_documents_docstrings_and_comments_name_exists() -> None:
    named = {path.relative_to(ROOT).as_posix(): {*chain(*map(dead_names, prose(path)))} for path in DOCUMENTS + SOURCES}
    assert {path: dead for path, dead in named.items() if dead} == {}


def test_the_environment_is_read_in_settings_alone() -> None:
    reading = re.compile(r"os\.(environ|getenv)\b")
    readers = {
        path.as_posix() for path in FILES if path.parts[0] == "src" and reading.search((ROOT / path).read_text())
    }
    assert readers == {"src/qamoe/config/settings.py"}


def test_dvc_yaml_lists_the_source_files_that_each_stage_is_made_of(tmp_path: Path) -> None:
    plan = tmp_path / "dvc.yaml"
    plan.write_text((ROOT / "dvc.yaml").read_text())
    source_dependencies.write_dependencies(plan)
    assert plan.read_text() == (ROOT / "dvc.yaml").read_text(), (
        "python -m qamoe.pipeline.source_dependencies writes it anew"
    )
    listed = {name: stage["deps"] for name, stage in STAGES.items() if name.startswith("code-")}
    assert {f"code-{stage}" for stage in source_dependencies.STAGES} == set(listed)
    assert "src/qamoe/config/model_names.py" in listed["code-train"]
    assert [
        stage for stage in source_dependencies.STAGES if f"artifacts/code/{stage}.json" not in STAGES[stage]["deps"]
    ] == []


def test_a_stage_is_the_child_of_dvc_and_not_of_a_shell() -> None:
    """Not every shell (dash) becomes its last command by itself, and a shell does not end with dvc."""
    commands = [
        line.strip() for line in (ROOT / "dvc.yaml").read_text().splitlines() if line.strip().startswith("cmd:")
    ]
    assert len(commands) == len(STAGES)
    assert [line for line in commands if not line.startswith("cmd: exec ")] == []


def test_the_lock_fulfils_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    locked = pins()
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:  # an extra that takes in another
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, locked is {version}"


def test_the_lock_pins_versions_and_names_no_place() -> None:
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")  # no +cpu, no address, no option
    assert [line for line in LOCK if not line.startswith("#") and not pin.fullmatch(line)] == []
    assert len(pins()) == sum(not line.startswith("#") for line in LOCK), "a package is locked twice"


def test_compose_runs_the_servers_of_the_lock() -> None:
    """Client and server of one tool are of one version, and nothing is open to others than this machine."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services["prefect"]["image"] == f"prefecthq/prefect:{pins()['prefect']}-python3.11"
    assert f"mlflow=={pins()['mlflow']}" in services["mlflow"]["build"]["dockerfile_inline"]
    ports = [port for service in services.values() for port in service["ports"]]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_prefects_server_starts_from_what_is_installed() -> None:
    """A newer fastapi passes `pip check` and breaks every first flow call; a newer sqlalchemy, scheduling."""
    code = "import prefect.server.api.server as s; s.create_app(); import sqlalchemy; print(sqlalchemy.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.0.")


def test_setup_names_the_system_packages_that_are_absent(tmp_path: Path) -> None:
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
