"""How much code one clip crosses on its way through `qamoe predict`, in all processes, and how long functions are."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qamoe

SOURCE = Path(qamoe.__file__).parent
# Python imports this module at the start of each process, of the spawned worker's too. It appends a line for each call
# of a function of the package, and one for each answer: a print after which the file that is stdout has grown.
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
        # The bodies of modules and classes are no functions.
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
    """File, name and line of the functions that `qamoe predict` enters until the first answer, until the second, ..."""
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


def shown(functions: Entered) -> str:
    return "\n".join(f"{Path(file).relative_to(SOURCE)}:{line} {name}" for file, name, line in sorted(functions))


@pytest.fixture
def spoken_film(film: Path, tmp_path: Path) -> Path:
    """A film of a face that hums, with its words beside it."""
    path = tmp_path / "one.mp4"
    path.write_bytes(film.read_bytes())
    path.with_suffix(".txt").write_text("a lovely film")
    return path


@pytest.mark.slow
def test_a_clip_enters_few_functions_in_few_files(spoken_film: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "two.mp4"
    other.write_bytes(spoken_film.read_bytes())
    other.with_suffix(".txt").write_text("a dull film")
    second = entered(tmp_path / "profile", checkpoint_folder, spoken_film, other)[1]
    assert any("landmarks.py" in file for file, *_ in second), "the worker process is not seen"
    assert len(second) <= 60, shown(second)
    assert len({file for file, *_ in second}) <= 20, shown(second)


@pytest.mark.slow
def test_a_whole_call_enters_few_functions(spoken_film: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    whole = set().union(*entered(tmp_path / "profile", checkpoint_folder, spoken_film))
    assert len(whole) <= 200, shown(whole)


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {where: length for where, length in lengths.items() if length > 60} == {}
