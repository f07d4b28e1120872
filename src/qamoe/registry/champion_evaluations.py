"""Record evaluations of the champion after its promotion: child runs of its training run, and tags of its version."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamoe.registry.registry import Champion
from qamoe.tracking.mlflow_store import PARENT, experiment_id, find, run_of
from qamoe.tracking.provenance import provenance
from qamoe.tracking.runs import EVALUATION, Record, milliseconds, spectrum_metrics

if TYPE_CHECKING:
    import pandas as pd

_EVENT = "qamoe.champion_evaluation"  # tag of a run: a digest of the champion, the test split and the protocol
_TAG = "qamoe.today."


def existing_run(client: Any, digest: str) -> str | None:
    """Return the run id of a complete evaluation with this digest, or None."""
    run = find(client, **{_EVENT.replace(".", "__"): digest})
    return run.info.run_id if run is not None else None


def record(
    client: Any, name: str, champion: Champion, digest: str, cells: "pd.DataFrame", about: dict[str, str]
) -> str:
    """Log cells as metrics, tables and a figure in a child of the champion's training run; return the id of the child.

    If that run was deleted, the evaluation is a run without a parent in the experiment of the registered model.
    The tags qamoe.today.* of the version hold the newest headline. The digest is set last: a run that has it is
    complete.
    """
    from qamoe.evaluation.summary import summarise
    from qamoe.report import plots, tables

    version = client.get_model_version(name, champion.version)
    trained = run_of(client, version.run_id)
    tags = {"qamoe.version": champion.version, **provenance()}
    if trained is not None and trained.info.lifecycle_stage == "active":
        tags[PARENT], experiment = version.run_id, trained.info.experiment_id
    else:
        experiment = experiment_id(client, name)
    tags |= {f"qamoe.{key}": value for key, value in about.items()}
    tags |= {"mlflow.source.name": "qamoe.pipeline.evaluate_champion", "mlflow.source.type": "LOCAL"}
    title = f"{name}-v{champion.version}-{about['test_digest'][:8]}"
    run = client.create_run(experiment, tags=tags, run_name=title).info.run_id
    status = "FAILED"
    try:
        summary = summarise(cells)
        with tempfile.TemporaryDirectory() as folder:
            if tables.graded_slices(cells):
                plots.spectrum_curve({"qamoe": cells}).savefig(Path(folder) / "spectrum.png", dpi=120)
            summary.to_csv(Path(folder) / "summary.csv", index=False)
            cells.to_parquet(Path(folder) / "cells.parquet", index=False)
            client.log_artifacts(run, folder, EVALUATION)
        metrics = spectrum_metrics(cells, summary)
        now = milliseconds()
        rows = [(metric, value, step, now) for metric, value, step in metrics]
        Record(client, run).log(rows, {_EVENT: digest})
        # Their names have dots, as those of earlier versions: each tag replaces the one of the last measurement.
        dotted = [(metric.replace("/", "."), f"{value:.6g}") for metric, value, _ in metrics]
        shown = {metric: value for metric, value in dotted if metric.endswith((".mae.area", "clean.mae"))}
        shown |= {metric: value for metric, value in dotted if metric in ("mixed.mae", "mixed.accuracy")}
        for tag, value in {**shown, **about, "run": run}.items():
            client.set_model_version_tag(name, champion.version, _TAG + tag, value)
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)
    return run
