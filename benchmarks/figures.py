"""Print the figures of benchmarks, compare them with their bounds, and store them in results.jsonl.

results.jsonl has one line per figure: name, value, unit, bound (may be null), limit (`at most`, `at least`), holds. A
new measurement replaces the line of a figure. Compared times are measured in alternation, so other load on the machine
affects all of them equally.
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
    """Print and store a figure; return whether its bound holds."""
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
    others = [other for other in stored() if other["name"] != name]
    RESULTS.write_text("".join(json.dumps(entry) + "\n" for entry in [*others, line]))
    print(f"{name}: {formatted(line)}", flush=True)
    return bool(holds)


def stored() -> list[dict[str, Any]]:
    """Return the figures in results.jsonl."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def formatted(line: dict[str, Any]) -> str:
    """Format a figure with its bound, and whether the bound holds."""
    value = f"{line['value']:.4g} {line['unit']}".strip()
    if line["bound"] is None:
        return value
    return f"{value} ({line['limit']} {line['bound']:g}: {'holds' if line['holds'] else 'MISSED'})"


def table() -> str:
    """Return all figures as a Markdown table."""
    rows = ["| | | bound | |", "| --- | --- | --- | --- |"]
    for line in stored():
        bound = "" if line["bound"] is None else f"{line['limit']} {line['bound']:g} {line['unit']}".strip()
        holds = "" if line["bound"] is None else "holds" if line["holds"] else "**missed**"
        rows.append(f"| {line['name']} | {line['value']:.4g} {line['unit']} | {bound} | {holds} |".replace("  ", " "))
    return "\n".join(rows)


def machine() -> str:
    """Describe the processor, the number of cores, Python and the packages that affect times."""
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
    """Return the seconds of each side, measured once per round in turn. wait: blocks until a device has finished.

    With the clock time.process_time, the seconds are processor time, which other processes hardly affect.
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
    """Return the median over rounds of the time of side `over` divided by that of side `under`."""
    return statistics.median(a / b for a, b in zip(taken[over], taken[under], strict=True))


def milliseconds(taken: list[float]) -> float:
    """Return the median in milliseconds."""
    return 1000 * statistics.median(taken)
