"""Every benchmark of this folder, one after the other, and their figures as a table: `python benchmarks/all.py`.

Two cores, half an hour, after `make demo`. What was measured before is forgotten first. A new benchmark is one file
here, and a line in ARGUMENTS where it takes some. The exit code is not 0 where one failed or a bound was missed.
"""

import subprocess
import sys
import time
from pathlib import Path

from figures import RESULTS, figure, kept, machine, table

HERE = Path(__file__).parent
ARGUMENTS = {
    "drift.py": ["artifacts/train/qamoe/1"],
    "extract.py": ["data", "1000"],
    "rollback.py": ["artifacts"],
    "serve.py": ["artifacts/train/qamoe/1", "data"],
}
NONE = {"all.py", "figures.py", "gpu.py", "mult.py", "shapes.py"}  # of themselves, or for a machine with a GPU


def main() -> None:
    RESULTS.unlink(missing_ok=True)
    begin, failed = time.monotonic(), []
    for path in sorted(HERE.glob("*.py")):
        if path.name in NONE:
            continue
        print(f"\n{path.name}", flush=True)
        if subprocess.run([sys.executable, str(path), *ARGUMENTS.get(path.name, [])], check=False).returncode:
            failed.append(path.name)
    figure("all benchmarks", (time.monotonic() - begin) / 60, "min", at_most=30)
    print(f"\n{machine()}\n\n{table()}")
    missed = [line["name"] for line in kept() if not line["holds"]]
    for name in failed:
        print(f"failed: {name}")
    for name in missed:
        print(f"missed: {name}")
    sys.exit(bool(failed or missed))


if __name__ == "__main__":
    main()
