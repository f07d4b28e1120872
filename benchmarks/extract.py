"""How fast the stage extract is, with one process and with two, and what memory it takes. Linux.

    python benchmarks/extract.py data 5000

Extracts the clips of a corpus of raw media as they are and prints how much faster than real time that is, by the
processor time of the stage with its workers, which other work on the machine hardly changes. Then cuts them into
spans of one second, as many as asked (0: ends here), and extracts the first half of them with one process and with
two, so that starting is little of it, then all of them. MediaPipe has two threads of its own, so the stage
with one process is run on one core, and again on all. Prints clips a second, seconds of media a second and core, and
the resident memory of the stage with its workers (pages that they share counted once): highest, and at five moments.
"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from itertools import islice
from pathlib import Path
from time import monotonic

import yaml
from figures import figure

SPAN_S = 1.0
STEP_S = 0.05
COLUMNS = ("clip_id", "source", "path", "start_s", "end_s", "text", "label", "split")


def main(corpus: str, count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="qamoe-extract-") as name:
        folder = Path(name)
        rows = list(islice(spans(Path(corpus)), count))
        if len(rows) < count:
            sys.exit(f"{corpus} has {len(rows)} such spans, not {count}; take a larger corpus.")
        params = yaml.safe_load(Path("params.yaml").read_text())
        params["extract"]["corpus"] = {"kind": "clips", "path": str(folder / "data")}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        shutil.copytree(Path(corpus) / "media", folder / "data" / "media")
        whole_clips(Path(corpus), folder)
        if not count:
            return
        cores = os.sched_getaffinity(0)
        rates = {}
        for name, workers, allowed in (
            ("one process on one core", 1, {min(cores)}),
            ("one process on all cores", 1, cores),
            ("two processes", 2, cores),
        ):
            os.sched_setaffinity(0, allowed)  # what is started takes it over
            taken, _ = extracted(rows[: count // 2], folder, name.replace(" ", "-"), workers)
            rates[name] = count // 2 / taken
            figure(f"extract: {name}", rates[name], "clips/s")
        one, spread, two = rates.values()
        figure("extract: rate of two processes by that of one on one core", two / one, "times", at_least=1.7)
        figure("extract: rate of two processes by that of one on all cores", two / spread, "times", at_least=1.7)
        taken, resident = extracted(rows, folder, "all", 2)
        figure(f"extract: {count} spans, two processes", count / taken, "clips/s")
        figure("extract: media a second and core", count * SPAN_S / taken / 2, "s")
        moments = [resident[place * (len(resident) - 1) // 4] >> 20 for place in range(5)]
        figure(f"extract: {count} spans, resident at most", max(resident) >> 20, "MB")
        print(f"resident along the way: {', '.join(map(str, moments))} MB")


def whole_clips(corpus: Path, folder: Path) -> None:
    """Extract every clip of a known length, one process, and print the rate by processor time, start-up included."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["end_s"]]
    seconds = sum(float(row["end_s"]) - float(row["start_s"] or 0) for row in rows)
    before = processor_s()
    extracted(rows, folder, "whole", 1)
    took = processor_s() - before
    print(f"{len(rows)} clips, {seconds:.0f} s: {took:.1f} s of processor time", flush=True)
    figure("extract: whole clips by a core", seconds / took, "times real time", at_least=10)


def processor_s() -> float:
    """Processor time of all processes that were started here and have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spans(corpus: Path) -> "csv.DictReader[str]":
    """Rows of a manifest, one a span: the first of every clip, then the second of every clip, and so on."""
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


def extracted(rows: list[dict[str, str]], folder: Path, name: str, workers: int) -> tuple[float, list[int]]:
    """Extract the clips of these rows anew; returns the seconds it took, and bytes resident, once a quarter second."""
    with (folder / "data" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    command = [sys.executable, "-m", "qamoe", "run", "extract", "--params", str(folder / "params.yaml")]
    begin = monotonic()
    stage = subprocess.Popen([*command, "--out", str(folder / name)], env={**os.environ, "QAMOE_WORKERS": str(workers)})
    resident: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.25):
            resident.append(sum(map(proportional, family(stage.pid))))

    watcher = threading.Thread(target=look)
    watcher.start()
    code = stage.wait()
    ended.set()
    watcher.join()
    if code:
        sys.exit(code)
    return monotonic() - begin, resident


def family(pid: int) -> list[int]:
    """A process and all that came from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(member for child in children for member in family(int(child)))]


def proportional(pid: int) -> int:
    """Bytes resident of a process, a page that n processes share counted as 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
