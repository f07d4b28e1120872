"""Temporary files of a killed process are removed; those of a running process stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qamoe.files import atomic_write, remove_abandoned

KILLED = """
import os, signal, sys
from pathlib import Path
from qamoe.files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.integration
def test_only_the_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "text-train-1.npy")], check=False)
    assert killed.returncode == -9
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "text-valid-1.npy")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_write(tmp_path / "text-train-2.npy") as temporary:
        temporary.write_text("being written")
        (tmp_path / "text-train-3.npy").write_text("whole")
        (tmp_path / f".text-train-4.npy.{os.getppid()}").write_text("of another running process")
        remove_abandoned(tmp_path, "text-train-*")
    names = {path.name.split("-")[1] + path.name.split("-")[2][0] for path in tmp_path.iterdir()}
    assert names == {"train2", "train3", "train4", "valid1"}
