"""Evaluations -> what a person looks at: artifacts/report/index.html, with its numbers in summary and metrics.json."""

from pathlib import Path

from qamoe.params import Params
from qamoe.stages import entry


def run(params: Params, out: Path) -> None:
    """Write the report and print its headline table."""
    from qamoe.reporting import report, tables

    made = report.write(out / "evaluate", out / "train", out / "report", out / "tune", list(params.seeds))
    tables.print_headline(made["headline"])
    print(f"report: {made['page']}\nnumbers: {made['summary']}")


if __name__ == "__main__":
    entry.main("report", run)
