"""Evaluations -> what a person looks at: artifacts/report/index.html, and its numbers in summary.json and metrics.json."""

import sys
from pathlib import Path

from qamoe.params import Params
from qamoe.stages import entry


def run(params: Params, out: Path) -> None:
    """Write the report and print its headline table."""
    from qamoe.reporting import report

    report.write(out / "evaluate", out / "train", out / "report")
    sys.stdout.flush()


if __name__ == "__main__":
    entry.main("report", run)
