"""What every benchmark does with a number: says it, compares it with its bound, and keeps it in results.jsonl.

A line a figure: name, value, unit, bound (null where there is none), limit (`at most`, `at least`), holds. Measuring a
figure anew replaces its line. Times are taken in alternation, so that what else the machine does hits all sides alike.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.jsonl"


def figure(
    name: str, value: float, unit: str = "", *, at_most: float | None = None, at_least: float | None = None
) -> bool:
    """Print and keep a figure; returns whether it holds."""
    bound, limit = (at_least, "at least") if at_least is not None else (at_most, None if at_most is None else "at most")
    holds = bound is None or (value >= bound if limit == "at least" else value <= bound)
    line = {
        "name": name,
        "value": round(value, 6),
        "unit": unit,
        "bound": bound,
        "limit": limit,
        "holds": bool(holds),
    }
    found = [each for each in kept() if each["name"] != name]
    RESULTS.write_text("".join(json.dumps(each) + "\n" for each in [*found, line]))
    print(f"{name}: {written(line)}", flush=True)
    return bool(holds)


def kept() -> list[dict[str, Any]]:
    """The figures measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def written(line: dict[str, Any]) -> str:
    """A figure as a person reads it, with its bound and whether that holds."""
    value = f"{line['value']:.4g} {line['unit']}".strip()
    if line["bound"] is None:
        return value
    return f"{value} ({line['limit']} {line['bound']:g}: {'holds' if line['holds'] else 'MISSED'})"


def table() -> str:
    """All figures as a Markdown table."""
    rows = ["| | | bound | |", "| --- | --- | --- | --- |"]
    for line in kept():
        bound = "" if line["bound"] is None else f"{line['limit']} {line['bound']:g} {line['unit']}".strip()
        holds = "" if line["bound"] is None else "holds" if line["holds"] else "**missed**"
        rows.append(f"| {line['name']} | {line['value']:.4g} {line['unit']} | {bound} | {holds} |".replace("  ", " "))
    return "\n".join(rows)


def machine() -> str:
    """Processor, cores, Python and the versions that times depend on."""
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        name = platform.processor() or platform.machine()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "numpy", "pyarrow"))
    return f"{name}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {versions}"


def alternated(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 2,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side, once a round in turn; `wait` ends what runs on a device.

    With the clock time.process_time they are the processor's, to which other processes add little.
    """
    for _ in range(warm):
        for run in sides.values():
            run()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            wait()
            begin = clock()
            run()
            wait()
            taken[name].append(clock() - begin)
    return taken


def ratio(taken: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median over rounds of one side's time by another's."""
    return statistics.median(a / b for a, b in zip(taken[over], taken[under], strict=True))


def milliseconds(taken: list[float]) -> float:
    """The median, in ms."""
    return 1000 * statistics.median(taken)
