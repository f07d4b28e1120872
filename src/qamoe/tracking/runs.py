"""Training runs and evaluations in MLflow: logged while they happen, or later from their plain files.

A run is found by the tag qamoe.artifact_digest, which is set last: a run that has it is whole. The plain files are
the result and MLflow is its record, so a store that goes away while training only costs the record, which
`qamoe record FOLDER` makes up for; a store that does not answer before training begins is refused.
"""

import importlib.util
import json
import logging
import math
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.model_names import family
from qamoe.config.params import Params
from qamoe.errors import UserError
from qamoe.models.checkpoint_config import Calibration, CheckpointConfig, ParametersConfig
from qamoe.tracking.mlflow_store import (
    PARENT,
    connect,
    experiment_id,
    find,
    one_run,
    reason,
    store_errors_as_user_errors,
    uri,
)
from qamoe.tracking.provenance import provenance

__all__ = ["record_evaluation", "record_training", "training_run", "uri"]
log = logging.getLogger("qamoe")

ARTIFACT = "qamoe.artifact_digest"
EVALUATED = "qamoe.evaluated_digest"
MODEL_ID = "qamoe.logged_model"
_LATER = "qamoe.recorded_digest"  # tag of a run that is logged from files: of which checkpoint
_NOTE = "mlflow.note.content"
_SEEDS = "The runs under this one are its seeds, of the same parameters, data and code."
EVALUATION = "evaluate"  # the folder of a run's artifacts
# By itself MLflow names the file that was started, with its path on this machine.
_SOURCE = {"mlflow.source.name": "qamoe.pipeline.train", "mlflow.source.type": "LOCAL"}
_MOST_METRICS = 1000  # of one log_batch
_LONGEST_PARAM = 6000
_SYSTEM_SECONDS = 5
_WITHOUT = "; QAMOE_TRACKING=off trains without them"


class Record:
    """One run being written. Its methods raise what MLflow raises; `training_run` decides what that costs."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.known = {metric.step for metric in client.get_metric_history(run_id, "valid")}
        self.finished = False

    def lines(self, lines: list[dict[str, Any]], times: list[int]) -> None:
        """Epochs that the run does not have yet: every number by its name, at step epoch; times in milliseconds."""
        new = [(line, at) for line, at in zip(lines, times, strict=True) if line["epoch"] not in self.known]
        self.log([(key, value, line["epoch"], at) for line, at in new for key, value in line.items() if key != "epoch"])
        self.known |= {line["epoch"] for line, _ in new}

    def log(
        self, rows: Sequence[tuple[str, object, int, int]], tags: dict[str, str] | None = None, model: Any = None
    ) -> None:
        """Metrics (name, value, step, milliseconds) in as few calls as MLflow allows, tags with the last of them."""
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(key, float(value), at, step, model_id=model, run_id=self.run_id)
            for key, value, step, at in rows
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        chunks = [metrics[i : i + _MOST_METRICS] for i in range(0, len(metrics), _MOST_METRICS)] or [[]]
        for chunk in chunks:
            last = [RunTag(k, v) for k, v in (tags or {}).items()] if chunk is chunks[-1] else []
            self.client.log_batch(self.run_id, metrics=chunk, tags=last)

    def finish(self, folder: Path) -> None:
        """The checkpoint as a loadable model, its selection value, and last the digest that the run is found by."""
        from qamoe.inference.model_package import log_model
        from qamoe.models import checkpoint

        config = checkpoint.read_config(folder)
        assert config is not None
        digest = checkpoint.digest(folder)
        tags = {ARTIFACT: digest, "qamoe.model": config["model"], "qamoe.seed": str(config["seed"])}
        model = log_model(folder, config["model"], config["best_epoch"], tags | _SOURCE)
        step, now = config["best_epoch"], milliseconds()
        rows = [("selection", config["selection"], step, now), ("best_epoch", step, step, now)]
        self.log(rows, tags | {MODEL_ID: model, _NOTE: _note(config)}, model)
        self.finished = True


def milliseconds() -> int:
    return round(time.time() * 1000)


def _note(config: CheckpointConfig) -> str:
    """What a person reads first in the run's page."""
    about = config["stats"]["about"]
    corpus = ", ".join(f"{key} {value}" for key, value in about.items() if isinstance(value, str | int | float))
    lines = [
        f"**{config['model']}**, seed {config['seed']}, on {corpus or 'a corpus without a name'}.",
        f"Epoch {config['best_epoch']}: mean validation error {config['selection']:.4f} over the selection cells.",
        _calibrated(config["calibration"]),
    ]
    if config["trained_on_generated"]:
        lines.append("Trained on generated clips: it says nothing about real people.")
    return "\n\n".join(lines)


def _calibrated(calibration: Calibration) -> str:
    if "temperature" in calibration:
        return f"Class logits are divided by {calibration['temperature']:.2f} (temperature, validation)."
    return f"A 90 % interval reaches {calibration['sigmas']['0.9']:.2f} sigma (split-conformal, validation)."


def flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names, the same as `dvc exp run -S` takes; lists as JSON."""
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in flat(value, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: (values if isinstance(values, str) else json.dumps(values))[:_LONGEST_PARAM]}


def _begin(client: Any, experiment: str, config: ParametersConfig, tags: dict[str, str]) -> str:
    """The unfinished run of this training, whatever ended it, or else a new one with all that is known before it."""
    from mlflow.entities import Param

    name, seed, digests = config["model"], config["seed"], config["digests"]
    shared = {"qamoe.model": name} | {f"qamoe.{what}_digest": value for what, value in digests.items()}
    identity = shared | {"qamoe.seed": str(seed)}
    # Two people may train the same thing at once: only this machine's and folder's own run is continued.
    identity["qamoe.place"] = parameters.digest(platform.node(), str(Path.cwd()))
    experiment_number = experiment_id(client, experiment)
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    unfinished = client.search_runs(
        [experiment_number], f"{wanted} and attributes.status != 'FINISHED'", order_by=["attributes.start_time DESC"]
    )
    for run in unfinished:
        # One that is being logged from other files is another checkpoint's, whatever both say they were made of.
        if run.data.tags.get(_LATER, tags.get(_LATER)) == tags.get(_LATER):
            return run.info.run_id
    above, created = one_run(
        client, experiment_number, name, shared | {"qamoe.role": "model"}, _SOURCE | {_NOTE: _SEEDS} | tags
    )
    if created:
        client.set_terminated(above, "FINISHED")
    run = client.create_run(
        experiment_number, tags=_SOURCE | identity | tags | {PARENT: above}, run_name=f"{name}-seed{seed}"
    )
    models = {part: config["models"][part] for part in ("encoders", family(name))}
    values = flat(
        {
            "model": name,
            "seed": seed,
            "extract": config["extract"],
            "preprocess": {"max_frames": config["max_frames"]},
            "train": {"common": config["train"]},
            "models": models,
        }
    )
    client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in values.items()])
    return run.info.run_id


@contextmanager
def _active(record: Record, system_metrics: bool) -> Iterator[None]:
    """Make a run the active one of this thread, as log_model wants it, and say how it ended.

    It is FINISHED only with its checkpoint in it; what was left unfinished can be gone on with later.
    """
    import mlflow

    if system_metrics:
        mlflow.set_system_metrics_sampling_interval(_SYSTEM_SECONDS)
        mlflow.set_system_metrics_samples_before_logging(1)
    mlflow.start_run(run_id=record.run_id, nested=True, log_system_metrics=system_metrics)
    status = "FAILED"
    try:
        yield
        status = "FINISHED" if record.finished else "FAILED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        try:
            mlflow.end_run(status)
        except Exception as error:
            log.warning("the end of run %s was not recorded: %s", record.run_id, reason(error))


class Training:
    """What a training calls: `epoch` with each line of its history, `finish` with its folder. Neither ever raises."""

    def __init__(self, record: Record | None) -> None:
        self.record = record
        self.waiting: list[tuple[dict[str, Any], int]] = []
        self.said = False

    def epoch(self, line: dict[str, Any]) -> None:
        """Log one flat line; what a store does not take is kept for the next one."""
        if self.record is None:
            return
        self.waiting.append((line, milliseconds()))
        try:
            self.record.lines([line for line, _ in self.waiting], [at for _, at in self.waiting])
            self.waiting = []
        except Exception as error:
            if not self.said:
                log.warning("the records do not answer, training goes on: %s", reason(error))
            self.said = True

    def finish(self, folder: Path) -> None:
        """Log the finished checkpoint."""
        if self.record is None:
            return
        try:
            self.record.lines([line for line, _ in self.waiting], [at for _, at in self.waiting])
            self.record.finish(folder)
        except Exception as error:
            _not_recorded(folder, error)


def _not_recorded(folder: Path, error: Exception) -> None:
    log.warning("%s is not recorded (%s); later: qamoe record %s", folder, reason(error), folder)


@contextmanager
def training_run(params: Params, name: str, seed: int, digests: dict[str, str]) -> Iterator[Training]:
    """Record one training while it runs; a training that was killed goes on in the run that it had.

    The run ends FINISHED, FAILED after an exception, KILLED after Ctrl-C. With QAMOE_TRACKING=off nothing is
    recorded and MLflow is not imported. Raises UserError, before anything is trained, where the store does not answer.
    """
    if settings.untracked():
        yield Training(None)
        return
    from qamoe.models.checkpoint import parameters_config

    client = connect(_WITHOUT)
    with store_errors_as_user_errors(_WITHOUT):
        config = parameters_config(params, name, seed, digests)
        record = Record(client, _begin(client, params.registry.name, config, provenance()))
    with _active(record, system_metrics=importlib.util.find_spec("psutil") is not None):
        yield Training(record)


def record_training(client: Any, folder: Path, experiment: str) -> str:
    """The run of a finished checkpoint, logged from its files where there is none yet; returns the run's id."""
    from qamoe.models import checkpoint

    config = checkpoint.read_config(folder)
    if config is None:
        raise UserError(f"There is no finished checkpoint in {folder}: {checkpoint.CONFIG} is missing.")
    digest = checkpoint.digest(folder)
    found = find(client, qamoe__artifact_digest=digest)
    if found is not None:
        return found.info.run_id
    lines = [json.loads(line) for line in (folder / checkpoint.HISTORY).read_text().splitlines()]
    later = {"qamoe.recorded": "later, from its files", _LATER: digest}
    record = Record(client, _begin(client, experiment, config, later))
    ended = (folder / checkpoint.CONFIG).stat().st_mtime
    with _active(record, system_metrics=False):
        record.lines(lines, [round(1000 * ended)] * len(lines))  # nobody has written down when an epoch ended
        record.finish(folder)
    return record.run_id


def record_evaluation(folder: Path, evaluated: Path, experiment: str = "qa-moe") -> None:
    """Record what `evaluate` wrote about a checkpoint; without records, or with QAMOE_TRACKING=off, it only goes on.

    `experiment` is where a checkpoint that has no run yet gets one.
    """
    if settings.untracked():
        return
    try:
        log_evaluation(connect(), folder, evaluated, experiment)
    except Exception as error:
        _not_recorded(folder, error)


def log_evaluation(client: Any, folder: Path, evaluated: Path, experiment: str) -> bool:
    """The spectrum as metrics, table and figure, in the run of its checkpoint; False where it is there already."""
    import pandas as pd

    from qamoe.evaluation.summary import summarise

    digest = (evaluated / "digest").read_text()
    run = client.get_run(record_training(client, folder, experiment))
    if run.data.tags.get(EVALUATED) == digest:
        return False
    cells = pd.read_parquet(evaluated / "cells.parquet")
    summary = summarise(cells)
    with tempfile.TemporaryDirectory() as temporary:
        _draw(cells, run.data.tags["qamoe.model"], Path(temporary) / "spectrum.png")
        summary.to_csv(Path(temporary) / "summary.csv", index=False)
        cells.to_parquet(Path(temporary) / "cells.parquet", index=False)
        client.log_artifacts(run.info.run_id, temporary, EVALUATION)
    now = milliseconds()
    rows = [(name, value, step, now) for name, value, step in spectrum_metrics(cells, summary)]
    record = Record(client, run.info.run_id)
    record.log(rows, {EVALUATED: digest}, run.data.tags[MODEL_ID])
    return True


def _draw(cells: Any, model: str, path: Path) -> None:
    from qamoe.report import plots, tables

    if tables.graded_slices(cells):
        plots.spectrum_curve({model: cells}).savefig(path, dpi=120)


def spectrum_metrics(cells: Any, summary: Any) -> list[tuple[str, float, int]]:
    """(name, value, step): `missing.mae` at step 100 x severity, `missing.mae.area`, `clean.mae`, `mixed.mae`."""
    means = cells.groupby(["slice", "metric", "severity"], dropna=False, sort=False)["value"].mean()
    rows = []
    for (name, metric, severity), value in means.items():
        rows.append((f"{name}.{metric}", float(value), 0 if math.isnan(severity) else round(100 * severity)))
    for line in summary.to_dict("records"):
        if not math.isnan(line["area09"]):  # a curve; the other slices are one number, which they have
            rows += [
                (f"{line['slice']}.{line['metric']}.{what}", line[what], 0) for what in ("area", "area09", "worst")
            ]
    return rows
