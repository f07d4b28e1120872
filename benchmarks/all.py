"""Run all benchmarks of this folder and print their figures as a table: `python benchmarks/all.py`.

Takes half an hour on two cores and needs the results of `make demo`. Earlier figures are deleted first. A new
benchmark is one file here, plus a line in ARGUMENTS if it has arguments. The exit code is 1 if a benchmark failed or
missed a bound.
"""

import subprocess
import sys
import time
from pathlib import Path

from figures import RESULTS, figure, machine, stored, table

HERE = Path(__file__).parent
ARGUMENTS = {
    "drift.py": ["artifacts/train/qamoe/1"],
    "extract.py": ["data", "1000"],
    "level.py": ["artifacts/train/qamoe/1", "data"],
    "rollback.py": ["artifacts"],
    "serve.py": ["artifacts/train/qamoe/1", "data"],
}
# Helpers, the benchmarks that need a GPU or data that may not be part of the project, and a study without bounds.
SKIPPED = {"all.py", "figures.py", "gpu.py", "mult.py", "ravdess.py", "shapes.py", "words_in_voice.py"}


def main() -> None:
    RESULTS.unlink(missing_ok=True)
    begin, failed = time.monotonic(), []
    for path in sorted(HERE.glob("*.py")):
        if path.name in SKIPPED:
            continue
        print(f"\n{path.name}", flush=True)
        if subprocess.run([sys.executable, str(path), *ARGUMENTS.get(path.name, [])], check=False).returncode:
            failed.append(path.name)
    figure("all benchmarks", (time.monotonic() - begin) / 60, "min", at_most=30)
    print(f"\n{machine()}\n\n{table()}")
    missed = [line["name"] for line in stored() if not line["holds"]]
    for name in failed:
        print(f"failed: {name}")
    for name in missed:
        print(f"missed: {name}")
    sys.exit(bool(failed or missed))


if __name__ == "__main__":
    main()
