"""Evaluations -> what a person looks at: artifacts/report/index.html, with its numbers in summary and metrics.json."""

from pathlib import Path

from qamoe.config.params import Params
from qamoe.pipeline import runner


def run(params: Params, out: Path) -> None:
    """Write the report and print its headline table."""
    from qamoe.report import build, tables

    written = build.write(out / "evaluate", out / "train", out / "report", out / "tune", list(params.seeds))
    tables.print_headline(written.headline)
    print(f"report: {written.page}\nnumbers: {written.summary}")


if __name__ == "__main__":
    runner.main("report", run, named_sections=[])
