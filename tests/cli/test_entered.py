"""The number of functions that `qamoe predict` enters for one clip, in all processes, and the length of functions."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qamoe

SOURCE = Path(qamoe.__file__).parent
# Python imports this module at the start of each process, including the spawned worker. It logs one line per call of a
# function of the package, and one line per answer: a print after which the file behind stdout has grown.
PROFILER = """
import inspect, os, sys, threading, time

source, log = {source!r}, os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
anonymous = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
size = 0


def note(line):
    os.write(log, f"{{time.monotonic_ns()}}\\t{{line}}\\n".encode())


def profile(frame, event, arg):
    global size
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(source):
        # Skip the bodies of modules and classes.
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_name not in anonymous:
            note(f"{{code.co_filename}}\\t{{code.co_qualname}}\\t{{code.co_firstlineno}}")
    elif event == "c_return" and arg is print and os.fstat(1).st_size > size:
        size = os.fstat(1).st_size
        note("answer")


threading.setprofile(profile)
sys.setprofile(profile)
"""
Entered = set[tuple[str, ...]]


def entered(folder: Path, checkpoint: Path, *clips: Path) -> list[Entered]:
    """Return the functions (file, name, line) that `qamoe predict` enters, one set per answer."""
    folder.mkdir()
    log, answers = folder / "log", folder / "answers"
    (folder / "sitecustomize.py").write_text(PROFILER.format(source=f"{SOURCE}{os.sep}", log=str(log)))
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{SOURCE.parent}"}
    command = [sys.executable, "-m", "qamoe", "predict", "--folder", checkpoint, *clips]
    with answers.open("w") as stdout:
        subprocess.run(list(map(str, command)), env=environment, stdout=stdout, check=True)
    assert len(answers.read_text().splitlines()) == len(clips)
    functions: list[Entered] = [set()]
    for _, *event in sorted((line.split("\t") for line in log.read_text().splitlines()), key=lambda line: int(line[0])):
        if event == ["answer"]:
            functions.append(set())
        else:
            functions[-1].add(tuple(event))
    return functions


def listing(functions: Entered) -> str:
    return "\n".join(f"{Path(file).relative_to(SOURCE)}:{line} {name}" for file, name, line in sorted(functions))


@pytest.fixture
def talking_clip(film: Path, tmp_path: Path) -> Path:
    """Write a video of a face with audio, and a transcript next to it."""
    path = tmp_path / "one.mp4"
    path.write_bytes(film.read_bytes())
    path.with_suffix(".txt").write_text("a lovely film")
    return path


@pytest.mark.slow
def test_a_clip_enters_few_functions_in_few_files(talking_clip: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "two.mp4"
    other.write_bytes(talking_clip.read_bytes())
    other.with_suffix(".txt").write_text("a dull film")
    second = entered(tmp_path / "profile", checkpoint_folder, talking_clip, other)[1]
    assert any("landmarks.py" in file for file, *_ in second), "the calls of the worker process are missing"
    assert len(second) <= 75, listing(second)
    assert len({file for file, *_ in second}) <= 22, listing(second)


@pytest.mark.slow
def test_a_whole_call_enters_few_functions(talking_clip: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    whole = set().union(*entered(tmp_path / "profile", checkpoint_folder, talking_clip))
    assert len(whole) <= 200, listing(whole)


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {function: length for function, length in lengths.items() if length > 60} == {}
