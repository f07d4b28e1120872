"""Lint, type check and the unit tests that start no process, side by side: `make check`."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BIN = Path(sys.executable).parent
# Folders of integration tests (tests/conftest.py), whose imports alone take seconds.
WITHOUT = [f"--ignore=tests/{folder}" for folder in ("cli", "end_to_end", "flows", "pipeline", "serving")]
CHECKS: dict[str, list[str | Path]] = {
    "ruff check": [BIN / "ruff", "check"],
    "ruff format": [BIN / "ruff", "format", "--check"],
    "import order": [BIN / "lint-imports", "--no-cache"],
    "mypy": [BIN / "mypy"],
    "unit tests": [sys.executable, "-m", "pytest", *WITHOUT, "-m", "not integration and not slow and not real_data"],
}


def run(name: str) -> bool:
    """Run one check and print its output where it fails; returns whether it passed."""
    done = subprocess.run(CHECKS[name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(f"{name}: failed\n{done.stdout}", flush=True)
    else:
        print(f"{name}: {(done.stdout.strip().splitlines() or ['passed'])[-1]}", flush=True)
    return done.returncode == 0


def main() -> None:
    """Run all checks; exit code 1 where one fails."""
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        passed = list(pool.map(run, CHECKS))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
