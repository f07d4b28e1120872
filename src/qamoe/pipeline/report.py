"""Write the report on the evaluations: artifacts/report/index.html, with its numbers in summary and metrics.json.

MLflow gets the page too, among the files of the runs that it is about.
"""

from pathlib import Path
from typing import Any

from qamoe.config.params import Params
from qamoe.errors import UserError


def run(params: Params, out: Path) -> dict[str, Any]:
    """Write the report, print its headline table and return the paths of the page and of its numbers.

    Raises UserError for a model in `seeds` that was not evaluated.
    """
    from qamoe.report import build, tables
    from qamoe.tracking.runs import record_report

    for name in params.seeds:
        if not any((out / "evaluate" / name).glob("*/cells.parquet")):
            raise UserError(f"Model {name} of seeds has no cells in {out / 'evaluate'}; run the stage evaluate first.")
    written = build.write(out / "evaluate", out / "train", out / "report", out / "tune", list(params.seeds))
    folders = [out / "train" / name / str(seed) for name, seeds in params.seeds.items() for seed in seeds]
    record_report(written.page, folders)
    tables.print_headline(written.headline)
    return {"page": str(written.page), "summary": str(written.summary)}
