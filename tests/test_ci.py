"""The hooks of git and the workflow of GitHub run what `make lint` and `.ci/run` run, and nothing else."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
(JOB,) = WORKFLOW["jobs"].values()
SCRIPT = (ROOT / ".ci/run").read_text()


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, as they are run with the variables' defaults."""
    text = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) [?:]= (.*)$", text, re.MULTILINE))
    block = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert block is not None, f"the Makefile has no target {target}"
    lines = [line.strip() for line in block[1].splitlines()]
    for _ in variables:  # a variable may hold another one
        lines = [re.sub(r"(?<!\$)\$\((\w+)\)", lambda name: variables[name[1]], line) for line in lines]
    return lines


def test_the_hooks_run_the_commands_of_make_lint() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == recipe("lint")
    for hook in repository["hooks"]:
        assert hook["language"] == "system", f"{hook['id']} would bring a version of its own"
        assert hook["pass_filenames"] is False, f"{hook['id']} would check fewer files than make lint"
        assert re.search(hook["files"], "src/qamoe/rng.py")
        assert re.search(hook["files"], "pyproject.toml")


def test_the_workflow_runs_the_script_and_installs_the_packages_that_the_script_installs() -> None:
    steps = [step["run"] for step in JOB["steps"] if "run" in step]
    as_root = [line.strip() for line in SCRIPT.splitlines() if "apt-get" in line and not line.startswith("if ")]
    installs = [f"sudo {line.removeprefix('DEBIAN_FRONTEND=noninteractive ')}" for line in as_root]
    assert len(installs) == 2
    assert steps == [*installs, ".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_script_runs_targets_of_the_makefile() -> None:
    called = re.findall(r"\bmake (?:--[\w-]+ )*([a-z-]+)", SCRIPT)
    assert called == ["preflight", "setup", "lint", "test"]
    assert all(recipe(target) for target in called if target != "setup")


def test_the_workflow_tests_every_python_that_the_project_allows_with_torch_for_cpus() -> None:
    allowed = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}.0")]
    assert JOB["strategy"]["matrix"]["python"] == minors
    assert JOB["env"] == {"TORCH": "cpu"}
    assert "$(filter cpu,$(TORCH))" in (ROOT / "Makefile").read_text()


def test_the_workflow_may_only_read_and_has_no_secrets() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in JOB
    assert "secrets" not in (ROOT / ".github/workflows/ci.yml").read_text()
    assert set(WORKFLOW[True]) == {"push", "pull_request"}, "YAML reads the key `on` as true"
    used = {step["uses"].partition("@")[0]: step.get("with", {}) for step in JOB["steps"] if "uses" in step}
    assert set(used) == {"actions/checkout", "actions/setup-python"}
    assert used["actions/checkout"] == {"persist-credentials": False}
    assert used["actions/setup-python"]["cache"] == "pip"
    files = used["actions/setup-python"]["cache-dependency-path"].split()
    assert [file for file in files if not (ROOT / file).is_file()] == []
