"""Measure speed and memory of the stage extract with one and two processes: `python benchmarks/extract.py data 5000`.

First extracts the clips of a corpus of raw media and prints how much faster than real time this is. It uses the
processor time of the stage and its workers, which other processes hardly affect. With a COUNT above 0, it then cuts
the clips into COUNT spans of one second, extracts half of them with one process and with two, and then all of them;
many spans make the start-up time negligible. MediaPipe uses two threads, so the stage with one process runs once on
one core and once on all. Prints clips per second, seconds of media per second and core, and the resident memory of the
stage with its workers (shared pages counted once): the maximum, and at five moments. Linux only.
"""

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import monotonic

import yaml
from figures import figure

from qamoe.errors import UserError, exit_on_user_error

SPAN_S = 1.0
STEP_S = 0.05
COLUMNS = ("clip_id", "source", "path", "start_s", "end_s", "text", "label", "split")


def main(corpus: Path, count: int) -> None:
    if not (corpus / "manifest.csv").is_file():
        raise UserError(f"{corpus / 'manifest.csv'} does not exist")
    with tempfile.TemporaryDirectory(prefix="qamoe-extract-") as name:
        folder = Path(name)
        rows = list(islice(spans(corpus), count))
        if len(rows) < count:
            raise UserError(f"{corpus} has {len(rows)} spans of {SPAN_S:g} s, fewer than {count}; use a larger corpus")
        params = yaml.safe_load(Path("params.yaml").read_text())
        params["extract"]["corpus"] = {"kind": "clips", "path": str(folder / "data")}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        shutil.copytree(corpus / "media", folder / "data" / "media")
        whole_clips(corpus, folder)
        if not count:
            return
        cores = os.sched_getaffinity(0)
        rates = {}
        for name, workers, allowed in (
            ("one process on one core", 1, {min(cores)}),
            ("one process on all cores", 1, cores),
            ("two processes", 2, cores),
        ):
            os.sched_setaffinity(0, allowed)  # child processes inherit it
            taken, _ = run_stage(rows[: count // 2], folder, name.replace(" ", "-"), workers)
            rates[name] = count // 2 / taken
            figure(f"extract: {name}", rates[name], "clips/s")
        one, spread, two = rates.values()
        figure("extract: rate of two processes by that of one on one core", two / one, "times", at_least=1.7)
        figure("extract: rate of two processes by that of one on all cores", two / spread, "times", at_least=1.7)
        taken, resident = run_stage(rows, folder, "all", 2)
        figure(f"extract: {count} spans, two processes", count / taken, "clips/s")
        figure("extract: media a second and core", count * SPAN_S / taken / 2, "s")
        moments = [resident[quarter * (len(resident) - 1) // 4] >> 20 for quarter in range(5)]
        figure(f"extract: {count} spans, resident at most", max(resident) >> 20, "MB")
        print(f"resident at five moments: {', '.join(map(str, moments))} MB")


def whole_clips(corpus: Path, folder: Path) -> None:
    """Extract every clip of known length with one process; print the rate by processor time, including start-up."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["end_s"]]
    seconds = sum(float(row["end_s"]) - float(row["start_s"] or 0) for row in rows)
    before = processor_s()
    run_stage(rows, folder, "whole", 1)
    used = processor_s() - before
    print(f"{len(rows)} clips, {seconds:.0f} s: {used:.1f} s of processor time", flush=True)
    figure("extract: whole clips by a core", seconds / used, "times real time", at_least=10)


def processor_s() -> float:
    """Return the processor time of all child processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spans(corpus: Path) -> Iterator[dict[str, str]]:
    """Yield rows of a manifest, one per span: the first span of every clip, then the second of every clip, etc."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        clips = [row for row in csv.DictReader(lines) if row["end_s"] and float(row["end_s"]) >= SPAN_S]
    number = 0
    while clips:
        begin = number * STEP_S
        clips = [row for row in clips if float(row["end_s"]) >= begin + SPAN_S]
        for row in clips:
            cut = {"clip_id": f"{row['clip_id']}-{number}", "start_s": f"{begin:.2f}", "end_s": f"{begin + SPAN_S:.2f}"}
            yield row | cut
        number += 1


def run_stage(rows: list[dict[str, str]], folder: Path, name: str, workers: int) -> tuple[float, list[int]]:
    """Extract the clips of these rows; return the seconds, and the resident bytes every 0.25 s."""
    with (folder / "data" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    command = [sys.executable, "-m", "qamoe", "run", "extract", "--params", str(folder / "params.yaml")]
    begin = monotonic()
    stage = subprocess.Popen([*command, "--out", str(folder / name)], env={**os.environ, "QAMOE_WORKERS": str(workers)})
    resident: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            resident.append(sum(map(proportional, descendants(stage.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = stage.wait()
    ended.set()
    watcher.join()
    if code:
        sys.exit(code)
    return monotonic() - begin, resident


def descendants(pid: int) -> list[int]:
    """Return a process and all processes below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(process for child in children for process in descendants(int(child)))]


def proportional(pid: int) -> int:
    """Return the resident bytes of a process; a page that n processes share counts as 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a folder of raw clips with a manifest.csv, such as data")
    parser.add_argument("count", type=int, help="number of spans of one second; 0: only whole clips")
    options = parser.parse_args()
    if options.count < 0:
        parser.error(f"count is {options.count}; it must be at least 0")
    with exit_on_user_error("extract.py"):
        main(options.corpus, options.count)
