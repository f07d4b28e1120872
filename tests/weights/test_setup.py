"""`make setup` fetches the weights of params.yaml; where it cannot, `make demo` runs the overlay offline."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A Python that notes how it was called, and fails where weights are fetched while a file `unreachable` exists.
PYTHON = """#!/bin/sh
echo "$@" >> called
case "$*" in *weights*) test ! -e unreachable ;; esac
"""

pytestmark = pytest.mark.integration


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which everything is installed, but no weights are fetched."""
    for name in ("Makefile", "params.yaml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def called(checkout: Path) -> list[str]:
    """Run `make demo` and return the calls of Python."""
    (checkout / "called").unlink(missing_ok=True)
    subprocess.run(["make", "demo"], cwd=checkout, check=True, env=os.environ | {"MAKEFLAGS": ""}, capture_output=True)
    return (checkout / "called").read_text().splitlines()


def test_weights_are_fetched_once_for_each_params_file(checkout: Path) -> None:
    fetch, run = "-m qamoe weights fetch", "-m flows.pipeline"
    assert called(checkout) == [fetch, run]
    assert called(checkout) == [run]
    later = (checkout / ".venv/.weights").stat().st_mtime + 10
    os.utime(checkout / "params.yaml", (later, later))
    (checkout / "unreachable").touch()
    assert called(checkout) == [fetch, f"{run} experiment=offline"]
    (checkout / "unreachable").unlink()
    os.utime(checkout / "params.yaml", (1, 1))
    assert called(checkout) == [fetch, run]
