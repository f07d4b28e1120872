"""DVC's cache.type symlink: data/ holds links into the cache, and the corpus is checked and extracted as usual."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import copy_checkout, dvc
from tests.end_to_end.services import environment

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_a_corpus_of_links_is_checked_and_extracted(untouched: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(untouched, tmp_path / "checkout")
    dvc(checkout, "config", "--local", "cache.type", "symlink")
    dvc(checkout, "checkout", "--relink", "data.dvc")
    assert all(file.is_symlink() for file in (checkout / "data/media").iterdir())

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, cwd=checkout, env=environment(checkout, tmp_path), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "0 warnings, 0 errors" in run("qamoe", "check", "data")
    run("dvc", "repro", "extract")
    assert "up to date" in run("dvc", "status", "extract")
    assert (checkout / "artifacts/extract/problems.csv").read_text().count("\n") == 1
