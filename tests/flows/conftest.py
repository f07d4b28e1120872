"""Provide a small DVC repository to run flows in, and one Prefect server for all tests of flows."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flows  # noqa: F401  # telemetry is off before Prefect is imported

# Each stage adds a line to ran.txt, which DVC does not track; tests count the runs there.
PIPELINE = """
stages:
  extract:
    cmd: exec python stage.py extract
    deps: [code-extract.txt, corpus.txt]
    outs: [extract.txt]
  train:
    matrix:
      model: [mean, qamoe]
    cmd: exec python stage.py train ${item.model}
    deps: [code-train.txt, extract.txt]
    outs:
      - train-${item.model}.txt
  report:
    cmd: exec python stage.py report
    deps: [code-report.txt, train-mean.txt, train-qamoe.txt]
    outs: [report.txt]
  code-extract:
    cmd: grep -v '^#' stage.py >code-extract.txt
    deps: [stage.py]
    outs: [code-extract.txt]
  code-train:
    cmd: grep -v '^#' stage.py >code-train.txt
    deps: [stage.py]
    outs: [code-train.txt]
  code-report:
    cmd: grep -v '^#' stage.py >code-report.txt
    deps: [stage.py]
    outs: [code-report.txt]
"""
STAGE = """
import sys
from pathlib import Path

name = "-".join(sys.argv[1:])
corpus = Path("corpus.txt").read_text()
if "bad" in corpus:
    sys.exit(f"{sys.argv[1]}: corpus.txt is bad; any other content is allowed")
with open("ran.txt", "a") as file:
    print(name, file=file)
Path(f"{name}.txt").write_text(corpus)
print(f"{name} says hello")
"""


def dvc(*arguments: str) -> None:
    """Run a dvc command that must succeed."""
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with three stages, one of them a matrix; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    dvc("init", "--quiet", "--no-scm")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "corpus.txt").write_text("good")
    return tmp_path


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a temporary Prefect server with its own database."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield str(PREFECT_API_URL.value())
