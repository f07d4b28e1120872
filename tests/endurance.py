"""What must hold under kills, full disks, two commands at once: hours on two cores.

    python tests/endurance.py                     # everything
    python tests/endurance.py kills --count 20    # one part, with another count
    python tests/endurance.py disks --seed 3

Full disks need a user who may mount one. Prints one line per case that failed, then a summary as JSON; exit code 1 if
any case failed.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.end_to_end.conftest import make_untouched, small_params  # noqa: E402
from tests.end_to_end.services import environment  # noqa: E402
from tests.fixtures import disks  # noqa: E402

COUNTS = {"kills": 200, "disks": 40, "pairs": 32}
LONGEST_S = 600  # only ends a case that hangs
TEMPORARY = re.compile(r"\.[0-9]+$|\.making$|\.tmp$|\.part$|\.lock$|^\.copy-|^qamoe-")
# Their bytes differ from run to run: databases, logs, the cache and the locks of tools.
_VOLATILE = re.compile(
    r"^(mlflow\.db|mlartifacts/|tmp/|home/|\.dvc/(tmp|cache)/|\.git/|artifacts/tune/study\.db)|__pycache__|\.pyc$"
)


@dataclass(frozen=True)
class Operation:
    """A command that is interrupted: from which state it starts, and what of its earlier results is removed."""

    state: str
    command: tuple[str, ...]
    removed: tuple[str, ...] = ()
    serves: bool = False


QAMOE = (sys.executable, "-m", "qamoe")
OPERATIONS = {
    "extract": Operation("repeated", (*QAMOE, "run", "extract"), ("artifacts/extract",)),
    "train": Operation("repeated", (*QAMOE, "run", "train"), ("artifacts/train", "artifacts/states/train")),
    "evaluate": Operation("repeated", (*QAMOE, "run", "evaluate"), ("artifacts/evaluate", "artifacts/states")),
    "ingest": Operation("repeated", (*QAMOE, "ingest", "inbox")),
    "promote": Operation("repeated", (*QAMOE, "promote")),
    "score": Operation("promoted", (*QAMOE, "score", "inbox")),
    "serve": Operation("promoted", (*QAMOE, "serve", "--port", "0"), serves=True),
    "dvc repro": Operation("untouched", (sys.executable, "-m", "dvc", "repro", "--quiet")),
}
# Further commands that write; each is also started twice at once.
FURTHER = {
    "tune": Operation("repeated", (*QAMOE, "run", "tune"), ("artifacts/tune",)),
    "report": Operation("repeated", (*QAMOE, "run", "report"), ("artifacts/report",)),
    "accept-tuned": Operation("repeated", (*QAMOE, "accept-tuned")),
    "record": Operation("repeated", (*QAMOE, "record", "artifacts/train/qamoe/1"), ("mlflow.db", "mlartifacts")),
    "export": Operation("promoted", (*QAMOE, "export", "model.pt2")),
    "sample": Operation("untouched", (*QAMOE, "sample", "data-new", "--clips", "8")),
    "evaluate-champion": Operation("promoted", (*QAMOE, "evaluate-champion")),
}
WRITERS = {name: operation for name, operation in (OPERATIONS | FURTHER).items() if not operation.serves}
PAIRS = [*((name, name) for name in WRITERS), ("record", "promote"), ("promote", "record")]


class Checkout:
    """A checkout at one fixed path, because records hold absolute paths; `states` are copies of its content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "checkout"
        self.states = folder / "states"
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, bytes]] = {}

    def environment(self) -> dict[str, str]:
        """Return the environment of a user whose home and temporary folder lie in the checkout."""
        home, temporary = self.path / "home", self.path / "tmp"
        for folder in (home, temporary):
            folder.mkdir(exist_ok=True)
        return environment(self.path, home, HOME=str(home), TMPDIR=str(temporary), QAMOE_WORKERS="2")

    def start(self, command: tuple[str, ...]) -> "subprocess.Popen[str]":
        """Start a command in a session of its own."""
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, cwd=self.path, env=self.environment(), text=True, start_new_session=True, **pipes
        )

    def run(self, command: tuple[str, ...]) -> tuple[int, str, str]:
        """Run a command to its end; return exit code, stdout and stderr."""
        with self.start(command) as process:
            out, error = process.communicate(timeout=LONGEST_S)
        return process.returncode, out, error

    def save(self, state: str) -> None:
        shutil.copytree(self.path, self.states / state, symlinks=True)

    def restore(self, state: str) -> None:
        """Make the content that of a state; the folder itself stays, because a disk may be mounted on it."""
        for path in self.path.iterdir():
            disks.remove(path)
        shutil.copytree(self.states / state, self.path, symlinks=True, dirs_exist_ok=True)

    def prepare(self, operation: Operation) -> None:
        self.restore(operation.state)
        for name in operation.removed:
            disks.remove(self.path / name)

    def content(self) -> dict[str, bytes]:
        """Return the bytes of every file that is the same in every run."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        named = ((path.relative_to(self.path).as_posix(), path) for path in files)
        return {name: path.read_bytes() for name, path in named if not _VOLATILE.search(name)}

    def query(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.path / "mlflow.db")) as store:
            return [row[0] for row in store.execute(sql)]


def build(folder: Path) -> Checkout:
    """Run the pipeline of a small corpus with one epoch, keep its states, and measure each operation undisturbed."""
    checkout = Checkout(folder)
    params = small_params()
    params["train"]["common"] |= {"epochs": 1, "patience": 1}
    params["seeds"] = {"mean": [1], "qamoe": [1, 2]}
    params["tune"]["epochs"] = 1
    make_untouched(checkout.path, params, _empty_records(folder))
    _write_inbox(checkout.path / "inbox", checkout.path / "data")
    checkout.save("untouched")
    _must(checkout, OPERATIONS["dvc repro"].command)
    checkout.save("repeated")
    _must(checkout, OPERATIONS["promote"].command)
    checkout.save("promoted")
    for name, operation in (OPERATIONS | FURTHER).items():
        checkout.prepare(operation)
        began = time.monotonic()
        _finish(checkout, operation)
        checkout.seconds[name] = time.monotonic() - began
        checkout.expected[name] = checkout.content()
    return checkout


def _empty_records(folder: Path) -> Path:
    """Return a record store without runs, made in its own process, which has no other store."""
    path = folder / "mlflow.db"
    code = "from qamoe.tracking.mlflow_store import connect; connect()"
    done = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{path}"}
    subprocess.run([sys.executable, "-c", code], env=done, check=True, cwd=ROOT)
    return path


def _must(checkout: Checkout, command: tuple[str, ...]) -> None:
    code, out, error = checkout.run(command)
    if code:
        raise SystemExit(f"{' '.join(command)} failed undisturbed: {out}{error}")


def _write_inbox(inbox: Path, data: Path) -> None:
    """Write six new clips: copies of media of the corpus with another ending."""
    (inbox / "media").mkdir(parents=True)
    rows = ["clip_id,source,path,start_s,end_s,text,label,split"]
    for number, media in enumerate(sorted((data / "media").iterdir())[:6]):
        (inbox / "media" / f"{number}.mp4").write_bytes(media.read_bytes() + b"\0" * (number + 1))
        rows.append(f"new-{number},new-{number},media/{number}.mp4,,,a dull day,{number / 3 - 1:.1f},test")
    (inbox / "manifest.csv").write_text("\n".join(rows) + "\n")


def _finish(checkout: Checkout, operation: Operation) -> str | None:
    """Run an operation to its end, a server until it answers; return what went wrong."""
    if not operation.serves:
        code, out, error = checkout.run(operation.command)
        return None if code == 0 else f"exit code {code}: {(out + error)[-2000:]}"
    with checkout.start(operation.command) as process:
        assert process.stdout is not None
        ready = any("http://" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=LONGEST_S)
    return None if ready else f"the server did not start: {error[-2000:]}"


def faults(checkout: Checkout, name: str) -> list[str]:
    """Finish an interrupted operation and return every difference from one that ran undisturbed."""
    operation = (OPERATIONS | FURTHER)[name]
    failed = _finish(checkout, operation)
    if failed is not None:
        return [failed]
    found = []
    content, expected = checkout.content(), checkout.expected[name]
    for path in sorted({*content, *expected}):
        if content.get(path) != expected.get(path):
            what = "is missing" if path not in content else "is left over" if path not in expected else "differs"
            found.append(f"{path} {what}")
    left = [path for path in checkout.path.rglob("*") if TEMPORARY.search(path.name) and ".git" not in path.parts]
    found += [f"left over: {path.relative_to(checkout.path)}" for path in left if ".dvc" not in path.parts]
    if running := checkout.query("SELECT name FROM runs WHERE status = 'RUNNING'"):
        found.append(f"runs that are RUNNING: {running}")
    champions = checkout.query("SELECT version FROM registered_model_aliases WHERE alias = 'champion'")
    if len(champions) != (operation.state == "promoted" or name == "promote"):
        found.append(f"champions: {champions}")
    return found


def killed(checkout: Checkout, draws: random.Random) -> tuple[str, list[str]]:
    """Kill one operation at a random moment, finish it, and return a name of the case and its faults."""
    name = draws.choice(list(OPERATIONS))
    operation = OPERATIONS[name]
    moment, whole_group = draws.uniform(0, checkout.seconds[name]), draws.random() < 0.5
    case = f"{name} killed after {moment:.2f} s{' with its processes' if whole_group else ''}"
    checkout.prepare(operation)
    with checkout.start(operation.command) as process:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            if whole_group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.communicate(timeout=LONGEST_S)  # returns when no process of the session holds the output
    return case, faults(checkout, name)


def filled(checkout: Checkout, draws: random.Random) -> tuple[str, list[str]]:
    """Run one operation on a disk with little room, make room, finish it; return a name of the case and its faults."""
    name = draws.choice(list(WRITERS))
    operation = WRITERS[name]
    share = draws.random() ** 2
    size = 1 << 30
    if not disks.mounted(checkout.path, size):
        raise SystemExit("this user may not mount a disk")
    try:
        checkout.prepare(operation)
        grown = sum(map(len, checkout.expected[name].values())) - sum(map(len, checkout.content().values()))
        room = max(0, int(share * max(grown, 1 << 20) * 1.5))
        disks.fill(checkout.path, but=room)
        case = f"{name} with {room >> 10} KiB of room"
        code, _, error = checkout.run(operation.command)
        found = ["a traceback: " + error[-2000:]] if code and "Traceback" in error else []
        (checkout.path / "ballast").unlink()
        return case, found + faults(checkout, name)
    finally:
        disks.unmount(checkout.path)


def together(checkout: Checkout, draws: random.Random) -> tuple[str, list[str]]:
    """Start two commands that write the same place at once, then finish the first."""
    first, second = draws.choice(PAIRS)
    checkout.prepare(WRITERS[first])
    both = [checkout.start(WRITERS[name].command) for name in (first, second)]
    found = []
    for process in both:
        out, error = process.communicate(timeout=LONGEST_S)
        if "Traceback" in error:
            found.append(f"a traceback: {(out + error)[-2000:]}")
    return f"{first} and {second} at once", found + faults(checkout, first)


PARTS: dict[str, Callable[[Checkout, random.Random], tuple[str, list[str]]]] = {
    "kills": killed,
    "disks": filled,
    "pairs": together,
}


def run(part: str, checkout: Checkout, count: int, seed: int, report: Callable[[str], object] = print) -> int:
    """Run that many cases of a part; report each fault and return the number of cases with faults."""
    failed = 0
    for number in range(count):
        case, found = PARTS[part](checkout, random.Random(f"{seed}.{part}.{number}"))
        for fault in found:
            report(f"{part} {number}, {case}: {fault}")
        failed += bool(found)
    return failed


def main() -> int:
    """Parse the arguments, run the parts, print a summary."""
    parser = argparse.ArgumentParser(prog="python tests/endurance.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(COUNTS)} (default: all)")
    parser.add_argument("--count", type=int, help="cases of each part (default: the full counts)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in COUNTS]:
        parser.error(f"unknown part {unknown[0]!r}; allowed are {', '.join(COUNTS)}")
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        checkout = build(Path(folder))
        summary = {}
        for part in arguments.parts or COUNTS:
            count = arguments.count or COUNTS[part]
            began = time.monotonic()
            failed = run(part, checkout, count, arguments.seed, lambda line: print(line, flush=True))
            summary[part] = {"cases": count, "failed": failed, "seconds": round(time.monotonic() - began)}
            print(json.dumps({part: summary[part]}), flush=True)
    return int(any(part["failed"] for part in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
