"""Files are written whole or not at all, also on a full disk; leftovers of killed processes go; locks are exclusive."""

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from qamoe.config.params import load
from qamoe.data import arrow_store
from qamoe.dataset import text_cache
from qamoe.errors import UserError
from qamoe.extractors import worker_pool
from qamoe.files import atomic_write, exclusive_lock, remove_abandoned, write_text
from qamoe.models import checkpoint
from qamoe.models.text_encoder_frozen import NAME
from tests.fixtures import disks

PARAMS = Path(__file__).parents[1] / "params.yaml"

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
        remove_abandoned(tmp_path, ".text-train-*.[0-9]*")
    names = {path.name.split("-")[1] + path.name.split("-")[2][0] for path in tmp_path.iterdir()}
    assert names == {"train2", "train3", "train4", "valid1"}


def writers(trained: Path) -> dict[str, Callable[[Path], object]]:
    """Everything that writes a file by another library's means: kind -> a function that writes into a folder."""
    loaded = checkpoint.load(trained)
    frames = np.zeros((600, 100), np.float32)

    def features(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_pool, "_extract", lambda *_: frames)
            job = worker_pool.Job("a", "audio", folder, 0.0, None)
            worker_pool._make_part(load(PARAMS).extract.audio, job, folder / "part")

    return {
        "text": lambda folder: write_text(folder / "a.txt", "words " * 5000),
        "weights": lambda folder: checkpoint.save(folder / "trained", loaded.model.state_dict(), loaded.config, []),
        "resumable state": lambda folder: checkpoint.save_state(
            folder / "resume.pt", {"frames": torch.from_numpy(frames)}
        ),
        "encoded text": lambda folder: text_cache.encode([[np.arange(1000, 1040)]], folder / "text.npy", "cpu", NAME),
        "features": features,
        "store": lambda folder: arrow_store.write(
            folder / "a.arrow",
            pa.schema([("frames", arrow_store.frames_type(100))]),
            [{"frames": frames}],
            {},
        ),
    }


@pytest.mark.integration
def test_on_a_full_disk_every_file_keeps_its_content(
    small_disk: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """numpy loses such an error, torch and safetensors raise errors of their own, a memory map kills the process."""
    kinds = writers(tiny_checkpoint(tmp_path / "trained"))
    for write in kinds.values():
        write(small_disk)
    written = {file: file.read_bytes() for file in small_disk.rglob("*") if file.is_file()}
    disks.fill(small_disk)
    for kind, write in kinds.items():
        with pytest.raises(UserError) as refused:
            write(small_disk)
        assert "No space left" in str(refused.value), kind
        assert str(small_disk) in str(refused.value), kind
    (small_disk / "ballast").unlink()
    unfinished = small_disk / "trained" / checkpoint.CONFIG  # a checkpoint is not finished until all files are new
    assert {file: file.read_bytes() for file in small_disk.rglob("*") if file.is_file()} == {
        file: content for file, content in written.items() if file != unfinished
    }


@pytest.mark.integration
def test_a_second_process_waits_for_the_lock_of_a_killed_one(tmp_path: Path) -> None:
    holding = "import sys; from pathlib import Path; from qamoe.files import exclusive_lock\n"
    holding += "with exclusive_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holding, str(tmp_path)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipe) as first, subprocess.Popen(command, **pipe) as second:  # type: ignore[call-overload]
        outputs = [process.stdout for process in (first, second)]
        (ready,), _, _ = select.select(outputs, [], [])
        holder = (first, second)[outputs.index(ready)]
        waiting = second if holder is first else first
        assert ready.readline() == "held\n"
        assert select.select([waiting.stdout], [], [], 0.2)[0] == [], "both hold the lock"
        holder.kill()
        assert waiting.stdout.readline() == "held\n"
        waiting.kill()


def test_a_folder_that_does_not_exist_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.*No such file"), exclusive_lock(tmp_path / "absent"):
        pass
