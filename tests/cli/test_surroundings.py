"""Each command under hostile surroundings: one sentence, no traceback, and one bad file costs itself alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer.main

from qamoe.cli.app import app

ROOT = Path(__file__).parents[2]
# Root may read and write everything; without these capabilities it is a user like any other.
WITHOUT_RIGHTS = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    if os.geteuid() == 0
    else []
)
CLOSED = "exec >&-; exec "  # a shell that closes stdout and becomes the command

NOT_UTF_8 = os.fsdecode(b"caf\xe9.mp4")

# Each command, writing to the folder OUT, or to the file that it names below it.
WRITING = {
    "run extract": ["--out", "OUT"],
    "run preprocess": ["--out", "OUT"],
    "run train": ["--out", "OUT"],
    "run evaluate": ["--out", "OUT"],
    "run report": ["--out", "OUT"],
    "run tune": ["--out", "OUT"],
    "promote": ["--out", "OUT"],
    "rollback": ["--params", "OUT/params.yaml"],
    "evaluate-champion": ["--out", "OUT"],
    "score": ["clips", "--out", "OUT"],
    "accept-tuned": ["--out", "OUT"],
    "table": ["--out", "OUT"],
    "compare": ["qamoe", "concat", "--out", "OUT"],
    "diagnose": ["qamoe", "--out", "OUT"],
    "sample": ["OUT/corpus", "--clips", "4"],
    "export": ["OUT/model.pt2", "--folder", "CHECKPOINT"],
    "ingest": ["clips", "--data", "OUT"],
    "record": ["OUT/train/qamoe/1"],
    "check": ["OUT"],
    "predict": ["OUT/clip.mp4", "--folder", "CHECKPOINT"],
    "serve": ["--folder", "OUT"],
    "versions": ["--params", "OUT/params.yaml"],
    "experiment": ["OUT"],
    "relink": [],
    "weights fetch": ["--params", "OUT/params.yaml"],
}
WITHOUT_A_FOLDER = {"weights list", "weights verify"}
QUICK = ("score", "check")


def names(group: Any, prefix: str = "") -> set[str]:
    """Return all commands of the command line."""
    found: set[str] = set()
    for name, command in group.commands.items():
        found |= names(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name}
    return found


def test_the_table_has_every_command() -> None:
    assert set(WRITING) | WITHOUT_A_FOLDER == names(typer.main.get_command(app))


@pytest.fixture
def qamoe(tmp_path: Path, checkpoint_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a folder with params.yaml, as a user without rights beyond those of the files."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "clips").mkdir(exist_ok=True)
    environment = {"PYTHONPATH": f"{ROOT / 'src'}", "QAMOE_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "QAMOE_WORKERS": "1"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}

    def run(*arguments: str | bytes | Path, shell: str = "", **changed: str) -> subprocess.CompletedProcess[str]:
        command = [*WITHOUT_RIGHTS, sys.executable, "-m", "qamoe", *arguments]
        if shell:
            command = ["sh", "-c", f'{shell} "$@"', "sh", *command]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment | changed, capture_output=True, text=True, check=False
        )

    return run


def assert_one_sentence(done: subprocess.CompletedProcess[str], *values: str) -> None:
    shown = done.stdout + done.stderr
    assert done.returncode in (1, 2), shown
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown
    assert [value for value in values if value not in shown.replace("\n", "")] == [], shown
    assert len(done.stderr.splitlines()) <= 4, done.stderr  # a box of the command line has three lines


def _refused(qamoe: Any, name: str, out: Path, checkpoint: Path) -> None:
    arguments = [a.replace("OUT", str(out)).replace("CHECKPOINT", str(checkpoint)) for a in WRITING[name]]
    assert_one_sentence(qamoe(*name.split(), *arguments))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WRITING]
)
@pytest.mark.parametrize("kind", ["a file in place of the folder", "a folder that may not be written", "no rights"])
def test_an_unusable_folder_is_one_sentence(
    qamoe: Any, tmp_path: Path, checkpoint_folder: Path, kind: str, name: str
) -> None:
    out = tmp_path / "out"
    if kind == "a file in place of the folder":
        out.write_text("")
    else:
        out.mkdir()
        out.chmod(0o555 if "written" in kind else 0o000)
        out = out / "below"
    _refused(qamoe, name, out, checkpoint_folder)


@pytest.mark.slow
def test_an_unreadable_clip_and_a_name_that_is_not_utf_8_cost_themselves(
    qamoe: Any, tmp_path: Path, checkpoint_folder: Path, film: Path
) -> None:
    good, secret, odd = (tmp_path / "clips" / name for name in ("a.mp4", "b.mp4", NOT_UTF_8))
    for path in (good, secret, odd):
        shutil.copy(film, path)
    secret.chmod(0)
    listed = qamoe("check", "clips")
    assert_one_sentence(listed, "b.mp4: not readable", "the name is not UTF-8", "2 media files")
    arguments = ["--folder", str(checkpoint_folder)]
    done = qamoe("predict", *arguments, good, secret, odd)
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["score"] is not None for row in rows] == [True, False, True]
    assert "not readable" in rows[1]["reasons"]["clip"]


def test_score_leaves_out_a_clip_that_it_may_not_read(
    tmp_path: Path, checkpoint_folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """In this process, as root too: the model is no registered one, and the file is no file that anyone can read."""
    from qamoe.pipeline import score
    from qamoe.serving import model_loader

    served = model_loader.open_model("", checkpoint_folder)
    monkeypatch.setattr(model_loader, "open_model", lambda model, folder: served)
    monkeypatch.setenv("QAMOE_WORKERS", "1")
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(film, clips / "a.mp4")
    shutil.copy(film, clips / NOT_UTF_8)
    (clips / "b.mp4").write_bytes(b"x")
    monkeypatch.setattr(
        "qamoe.extractors.worker_pool.file_digest",
        lambda path: (
            (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(path)))
            if path.name == "b.mp4"
            else "0" * 64
        ),
    )
    score.run(clips, tmp_path / "out", "")
    rows = pd.read_parquet(tmp_path / "out/scores.parquet").set_index("clip_id")
    assert list(rows.index) == ["a.mp4", "b.mp4"]
    assert rows.loc["a.mp4", "problem"] == ""
    assert rows.loc["b.mp4", "problem"] != ""


OUTPUT = {
    "help": ["--help"],
    "check": ["check", "clips"],
    "predict": ["predict", "--text", "hello", "--folder", "CHECKPOINT"],
}


@pytest.mark.parametrize("name", ["help", "check", pytest.param("predict", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shell", ["exec >&-; exec", "exec >/dev/full; exec", ""])
def test_stdout_of_any_kind_causes_no_traceback(qamoe: Any, checkpoint_folder: Path, shell: str, name: str) -> None:
    arguments = [argument.replace("CHECKPOINT", str(checkpoint_folder)) for argument in OUTPUT[name]]
    done = qamoe(*arguments, shell=shell, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "full" in shell:
        assert (done.returncode, "No space left" in done.stderr) == (2, True)


def test_a_file_that_a_command_opens_does_not_become_its_closed_stdout(tmp_path: Path) -> None:
    program = (
        "from qamoe.terminal import open_streams; open_streams(); import os\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); os.system('echo lost'); assert file.fileno() > 2"
    )
    command = ["sh", "-c", f'{CLOSED} "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == ""


def test_a_reader_that_closes_the_pipe_ends_a_command_quietly(qamoe: Any) -> None:
    done = qamoe("check", "clips", shell='"$@" 2>err | true; cat err >&2; exit; ')
    assert done.stderr == ""


def test_characters_that_the_encoding_lacks_are_escaped(qamoe: Any, tmp_path: Path, film: Path) -> None:
    shutil.copy(film, tmp_path / "clips/é.mp4")
    done = qamoe("check", "clips", PYTHONIOENCODING="ascii")
    assert "\\xe9.mp4" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_text_in_another_encoding_is_refused(qamoe: Any, film: Path, checkpoint_folder: Path) -> None:
    text = os.fsdecode(b"caf\xe9")
    done = qamoe("predict", str(film), "--folder", str(checkpoint_folder), "--text", text)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--text is caf" in done.stderr


def test_ctrl_c_ends_a_command_with_one_line(tmp_path: Path) -> None:
    """The command waits for a pipe that nobody writes to, so it is interrupted while it works."""
    os.mkfifo(tmp_path / "params.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "qamoe", "experiment", "x"],
        cwd=tmp_path,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/x.yaml").touch()
    with (tmp_path / "params.yaml").open("w"):  # opens when the command reads
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "qamoe: stopped.\n")
