"""What works without the extras of pyproject.toml, and what a command says that needs one."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qamoe.errors import EXTRAS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Python imports this module at the start of each process, of the process that reads media too.
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}


class Visible:
    find_distributions, invalidate_caches = PathFinder.find_distributions, PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)


sys.meta_path[:] = [Visible if finder is PathFinder else finder for finder in sys.meta_path]
"""


def installed_with(*extras: str) -> set[str]:
    """The distributions that pip installs for the project with these extras, and with nothing else."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    waiting = [Requirement(line) for line in lines]
    found: dict[str, set[str]] = {}
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        new = {"", *wanted.extras} - found.get(name, set())
        found.setdefault(name, set()).update(new)
        try:
            required = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # for another Python or system than this one
            continue
        waiting += [
            requirement
            for requirement in required
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in new)
        ]
    return set(found)


def modules_outside(distributions: set[str]) -> set[str]:
    """The top-level modules that none of these distributions brings."""
    brought = packages_distributions().items()
    return {m for m, by in brought if not {canonicalize_name(d) for d in by} & {*distributions, "qamoe"}}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[str]], dict[str, str]]:
    """Environment variables of processes that cannot import some modules."""

    def make(hidden: Iterable[str]) -> dict[str, str]:
        folder = tmp_path / "hidden"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HIDE.format(hidden=set(hidden)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QAMOE_", "MLFLOW_"))}
        paths = os.pathsep.join([str(folder), str(ROOT / "src")])
        return kept | {"PYTHONPATH": paths, "QAMOE_DEVICE": "cpu", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}

    return make


def test_the_table_of_extras_is_that_of_pyproject() -> None:
    """Each module that src imports and that only an extra installs, with the extra that names its package."""
    nodes = [node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"qamoe"}
    extra_of = {
        canonicalize_name(Requirement(line).name): extra
        for extra, lines in PROJECT["optional-dependencies"].items()
        for line in lines
    }
    always = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    expected = {"ray": "ray", "faster_whisper": "speech"}  # may be absent here
    for module, distributions in packages_distributions().items():
        names_of = {canonicalize_name(name) for name in distributions}
        if module in imported and not names_of & always:
            (expected[module],) = {extra_of[name] for name in names_of if name in extra_of}
    assert expected == EXTRAS | {"ray": "ray"}, "qamoe.ray_worker_pool says itself what to install for ray"


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("versions", "mlflow"),
        ("record train/qamoe/1", "mlflow"),
        ("serve --folder train/qamoe/1", "fastapi"),
        pytest.param("serve --folder train/qamoe/1 --port 0", "uvicorn", marks=pytest.mark.slow),
        ("sample data-new --clips 4", "espeakng_loader"),
        pytest.param("run tune", "optuna", marks=pytest.mark.slow),
        ("accept-tuned", "ruamel"),
    ],
)
def test_a_command_that_needs_an_extra_says_which(
    command: str,
    package: str,
    environment: Callable[[Iterable[str]], dict[str, str]],
    tiny_checkpoint: Callable[..., Path],
    tiny_corpus: Callable[..., None],
    tmp_path: Path,
) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    tiny_checkpoint(tmp_path / "train/qamoe/1")
    tiny_corpus(tmp_path / "artifacts")
    (tmp_path / "artifacts/tune").mkdir()
    (tmp_path / "artifacts/tune/best_params.yaml").write_text("train: {common: {lr: 0.002}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "qamoe", *command.split()],
        cwd=tmp_path,
        env=environment([package]) | {"QAMOE_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert package in line
    assert f"[{EXTRAS[package]}]" in line


@pytest.mark.slow
def test_a_checkpoint_predicts_without_any_extra(
    environment: Callable[[Iterable[str]], dict[str, str]], checkpoint_folder: Path, film: Path, tmp_path: Path
) -> None:
    hidden = modules_outside(installed_with())
    assert {"fastapi", "mlflow", "optuna", "prefect", "dvc", "boto3", "espeakng_loader"} <= hidden
    film_with_words = tmp_path / "film.mp4"
    film_with_words.write_bytes(film.read_bytes())
    film_with_words.with_suffix(".txt").write_text("a lovely film")
    done = subprocess.run(
        [sys.executable, "-m", "qamoe", "predict", "--folder", checkpoint_folder, film_with_words],
        cwd=tmp_path,
        env=environment(hidden),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer["score"], float)
    assert None not in answer["trust"].values(), answer["reasons"]


@pytest.mark.slow
def test_a_checkpoint_is_served_with_the_extra_serve_alone(
    environment: Callable[[Iterable[str]], dict[str, str]], checkpoint_folder: Path, tmp_path: Path
) -> None:
    hidden = modules_outside(installed_with("serve"))
    assert {"mlflow", "optuna", "prefect", "dvc", "boto3", "espeakng_loader"} <= hidden
    command = [sys.executable, "-m", "qamoe", "serve", "--folder", str(checkpoint_folder), "--port", "0"]
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment(hidden), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        started = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:(\d+)", started)
        assert address is not None, started + server.stdout.read()
        connection = HTTPConnection("127.0.0.1", int(address[1]), timeout=120)
        body = json.dumps({"clips": [{"text": "a lovely film"}]})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        (clip,) = json.loads(answer.read())["clips"]
        assert isinstance(clip["score"], float)
    finally:
        server.terminate()
        server.wait()
