"""Record training runs and evaluations in MLflow: live, or later from their files.

The tag qamoe.artifact_digest identifies a run. It is set last, so a run that has it is complete. The files are the
result; MLflow only records it. A store that does not answer before training is an error. If it fails during training,
training continues, and `qamoe record FOLDER` records the result later.
"""

import importlib.util
import json
import logging
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.params import LANDSCAPE, Params, Tracking
from qamoe.data.stats import Stats
from qamoe.errors import UserError
from qamoe.files import exclusive_lock
from qamoe.models.checkpoint_config import Calibration, CheckpointConfig, ParametersConfig
from qamoe.process_lifetime import is_dead, this_process
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
from qamoe.tracking.mlflow_store import exclusive_lock as exclusive_lock_of_store
from qamoe.tracking.provenance import provenance, user
from qamoe.tracking.titles import title, training_parameters

__all__ = ["record_evaluation", "record_training", "training_run", "uri"]
log = logging.getLogger("qamoe")

ARTIFACT = "qamoe.artifact_digest"
EVALUATED = "qamoe.evaluated_digest"
MODEL_ID = "qamoe.logged_model"
PROCESS = "qamoe.process"  # tag of a run: the process that writes it
_LATER = "qamoe.recorded_digest"  # tag of a run that is logged from files: the digest of its checkpoint
_NOTE = "mlflow.note.content"
_SEEDS = "The child runs are the training seeds, with the same parameters, data and code."
SELECTION = "valid/selection"  # metric: the validation error of the best epoch
CHECKPOINT = "checkpoint"  # prefix of a tag of a run: where its best or its last checkpoint is
CHECKPOINTS = "checkpoints"  # folder in the artifacts of a run
EVALUATION, REPORT = "evaluate", "report"  # folders in the artifacts of a run
# MLflow's default source name would reveal a path on this machine.
_SOURCE = {"mlflow.source.name": "qamoe.pipeline.train", "mlflow.source.type": "LOCAL"}
TRAINING = "training"  # tag of the seeds of a training: a digest of its parameters, data and code, and its title
_CURVES = ("train/", "valid/error", "time/", "system/")  # metrics by epoch or time
_LONGEST_DIGEST = 36  # of a data set, in MLflow
_MOST_METRICS = 1000  # MLflow's limit for one log_batch
_SYSTEM_SECONDS = 5
_WITHOUT = "; QAMOE_TRACKING=off trains without records"


class Record:
    """Write one run. Its methods pass on MLflow's exceptions; `training_run` handles them."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.known = {metric.step for metric in client.get_metric_history(run_id, metric_name("valid"))}
        self.finished = False

    def lines(self, lines: list[dict[str, Any]], times: list[int]) -> None:
        """Log the epochs that the run does not have yet: each number of a line under its key; times in milliseconds."""
        new = [(line, at) for line, at in zip(lines, times, strict=True) if line["epoch"] not in self.known]
        self.log(
            [
                (metric_name(key), value, line["epoch"], at)
                for line, at in new
                for key, value in line.items()
                if key != "epoch"
            ]
        )
        self.known |= {line["epoch"] for line, _ in new}

    def log(
        self, rows: Sequence[tuple[str, object, int, int]], tags: dict[str, str] | None = None, model: Any = None
    ) -> None:
        """Log metrics (name, value, step, milliseconds) in as few calls as MLflow allows, and tags with the last."""
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

    def keep(self, which: Literal["best", "last"], save: Callable[[Path, Literal["best", "last"]], None]) -> None:
        """Log a checkpoint of an unfinished training; the tag checkpoint_<which> is its address.

        There are two places, and the tag names the complete one: a kill may leave the other half written.
        """
        tag = f"{CHECKPOINT}_{which}"
        known = self.client.get_run(self.run_id).data.tags.get(tag, "")
        place = f"{CHECKPOINTS}/{which}/{'b' if known.endswith('a') else 'a'}"
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), which)
            self.client.log_artifacts(self.run_id, folder, place)
        self.client.set_tag(self.run_id, tag, f"runs:/{self.run_id}/{place}")

    def finish(self, folder: Path) -> None:
        """Log the checkpoint as a loadable model, its selection value, and last the digest that identifies the run."""
        from qamoe.inference.model_package import log_model
        from qamoe.models import checkpoint

        config = checkpoint.read_config(folder)
        assert config is not None
        digest = checkpoint.digest(folder)
        tags = {ARTIFACT: digest, "qamoe.model": config["model"], "qamoe.seed": str(config["seed"])}
        model = log_model(folder, config["model"], config["best_epoch"], tags | _SOURCE)
        step, now = config["best_epoch"], milliseconds()
        rows = [(SELECTION, config["selection"], step, now), ("valid/best_epoch", step, step, now)]
        best = {f"{CHECKPOINT}_best": f"models:/{model}"}
        self.log(rows, tags | best | {MODEL_ID: model, _NOTE: _note(config)}, model)
        self.finished = True
        _log_means(self.client, self.client.get_run(self.run_id))


def metric_name(key: str) -> str:
    """Return the name in MLflow of a key of a training's history; a run's page has a section for what precedes `/`."""
    named = {"valid": "valid/error", "seconds": "time/epoch_seconds"}
    return named.get(key, f"train/{key.replace('losses.', 'loss.')}")


def milliseconds() -> int:
    return round(time.time() * 1000)


def _note(config: CheckpointConfig) -> str:
    """Return the description of a run, which MLflow shows at the top of its page."""
    lines = [
        f"**{config['model']}**, seed {config['seed']}, on {_corpus(config['stats']['about'])}.",
        f"Epoch {config['best_epoch']}: mean validation error {config['selection']:.4f} over the selection cells.",
        _calibrated(config["calibration"]),
    ]
    if config["trained_on_generated"]:
        lines.append("Trained on generated clips; not validated on recordings of people.")
    return "\n\n".join(lines)


def _corpus(about: Mapping[str, Any]) -> str:
    """Describe a corpus: `240 clips of corpus sample (generator qamoe-sample, seed 7)`."""
    clips = f"{about['clips']} clips of " if "clips" in about else ""
    name = f"corpus {about['corpus']}" if "corpus" in about else "a corpus without a name"
    known = {key: value for key, value in about.items() if key not in ("clips", "corpus")}
    further = ", ".join(f"{key} {value}" for key, value in known.items() if isinstance(value, str | int | float))
    return f"{clips}{name} ({further})" if further else f"{clips}{name}"


def _calibrated(calibration: Calibration) -> str:
    if "temperature" in calibration:
        return f"Class logits are divided by {calibration['temperature']:.2f} (temperature, validation)."
    return f"Half-width of the 90 % interval: {calibration['sigmas']['0.9']:.2f} sigma (split-conformal, validation)."


def _begin(client: Any, experiment: str, config: ParametersConfig, stats: Stats, tags: dict[str, str]) -> str:
    """Return the unfinished run of this training, or create one with its parameters, data and tags."""
    name, seed, digests = config["model"], config["seed"], config["digests"]
    shared = {"qamoe.model": name} | {f"qamoe.{part}_digest": value for part, value in digests.items()}
    identity = shared | {"qamoe.seed": str(seed)}
    # The same training may run on another machine or in another folder at the same time; never continue that run.
    identity["qamoe.place"] = parameters.digest(platform.node(), str(Path.cwd()))
    experiment_number = experiment_id(client, experiment)
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    unfinished = client.search_runs(
        [experiment_number], f"{query} and attributes.status != 'FINISHED'", order_by=["attributes.start_time DESC"]
    )
    for run in unfinished:
        # A run that is logged from the files of another checkpoint may have the same parameters and data.
        if run.data.tags.get(_LATER, tags.get(_LATER)) == tags.get(_LATER):
            client.set_tag(run.info.run_id, PROCESS, this_process())
            return run.info.run_id
    named = title(config)
    tags = _SOURCE | user() | {"model": name, "corpus": corpus_name(stats)} | tags
    parent, created = one_run(
        client, experiment_number, named, shared | {"qamoe.role": "model"}, {_NOTE: _SEEDS} | tags
    )
    if created:
        _describe(client, parent, config, stats)
        client.set_terminated(parent, "FINISHED")
    # The same title may stand for other parameters after a commit, so what is grouped by it has a digest. It is first,
    # because a table cuts long names at their end.
    tags[TRAINING] = f"{parameters.digest(shared)[:6]} {named}"
    run = client.create_run(
        experiment_number,
        tags=identity | tags | {PARENT: parent, PROCESS: this_process()},
        run_name=f"{name} seed{seed}{named.removeprefix(name)}",
    )
    _describe(client, run.info.run_id, config, stats, {"seed": str(seed)})
    return run.info.run_id


def corpus_name(stats: Stats) -> str:
    """Return the name of a corpus, followed by that of its file if it is one file."""
    about = stats["about"]
    file = [Path(about["file"]).stem] if isinstance(about.get("file"), str) else []
    return " ".join([str(about.get("corpus", "corpus")), *file])


def _describe(
    client: Any, run: str, config: ParametersConfig, stats: Stats, further: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Log the parameters and the training data of a run; the data by its digest, without reading it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    values = {**training_parameters(config), **further}
    client.log_batch(run, params=[Param(key, value) for key, value in values.items()])
    digest = config["digests"].get("data", "")[:_LONGEST_DIGEST]
    about, clips = (json.dumps(stats[key], default=str) for key in ("about", "clips"))
    data = Dataset(corpus_name(stats), digest, "qamoe", about, profile=clips)
    inputs = [DatasetInput(data, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])]
    try:
        client.log_inputs(run, inputs)
    except Exception:  # a training that began at the same time wrote the same data first; MLflow finds it now
        client.log_inputs(run, inputs)


def _log_means(client: Any, run: Any) -> None:
    """Log in the parent of a seed the means over its seeds, and their number; curves stay with the seeds."""
    parent = run.data.tags.get(PARENT)
    if parent is None:
        return
    with exclusive_lock_of_store():
        seeds = client.search_runs([run.info.experiment_id], f"tags.`{PARENT}` = '{parent}'")
        measured = [seed.data.metrics for seed in seeds if ARTIFACT in seed.data.tags]
        values: dict[str, list[float]] = {}
        for metrics in measured:
            for name, value in metrics.items():
                if f"{name}.area" not in metrics and not name.startswith(_CURVES):
                    values.setdefault(name, []).append(value)
        now = milliseconds()
        rows = [(name, sum(numbers) / len(numbers), 0, now) for name, numbers in values.items()]
        Record(client, parent).log([*rows, ("seeds", len(measured), 0, now)])


@contextmanager
def _active(record: Record, system_metrics: bool) -> Iterator[None]:
    """Make a run the active run of this thread, which log_model requires, and record how it ended.

    Its status is FINISHED only if it holds its checkpoint; an unfinished run can be continued later.
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
            log.warning("the final status of run %s was not recorded: %s", record.run_id, reason(error))


class Training:
    """Record one training: call `epoch` and `keep` after each epoch, then `finish` with its folder.

    No method raises if the store fails. record: None records nothing.
    """

    def __init__(self, record: Record | None, rule: Tracking | None = None) -> None:
        self.record = record
        self.rule = rule
        self.kept = 0  # the best epoch whose checkpoint was logged
        self.pending: list[tuple[dict[str, Any], int]] = []
        self.warned = False

    def epoch(self, line: dict[str, Any]) -> None:
        """Log one flat line; keep it for the next call if the store fails."""
        if self.record is None:
            return
        self.pending.append((line, milliseconds()))
        try:
            self.record.lines([line for line, _ in self.pending], [at for _, at in self.pending])
            self.pending = []
        except Exception as error:
            self._warn(error)

    def keep(self, epoch: int, best: int, last: bool, save: Callable[[Path, Literal["best", "last"]], None]) -> None:
        """Log the checkpoints of params.yaml's tracking.keep_checkpoints, if it is their turn after this epoch.

        best: the epoch of the best checkpoint so far. last: whether no epoch is left. `save(folder, which)` writes one.
        """
        if self.record is None or self.rule is None or not (last or epoch % self.rule.keep_every == 0):
            return
        wanted: list[Literal["best", "last"]] = []
        if self.rule.keep_checkpoints != "none" and best != self.kept:
            wanted.append("best")
        if self.rule.keep_checkpoints == "best_and_last":
            wanted.append("last")
        try:
            for which in wanted:
                self.record.keep(which, save)
            self.kept = best
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.warned:
            log.warning("the MLflow store does not answer, training continues: %s", reason(error))
        self.warned = True

    def finish(self, folder: Path) -> None:
        """Log the finished checkpoint."""
        if self.record is None:
            return
        try:
            self.record.lines([line for line, _ in self.pending], [at for _, at in self.pending])
            self.record.finish(folder)
        except Exception as error:
            _not_recorded(folder, error)
            return
        if self.kept:
            self._delete_best(self.record)

    def _delete_best(self, record: Record) -> None:
        """Delete the best checkpoints so far, which the finished one replaces."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        try:
            address = record.client.get_run(record.run_id).info.artifact_uri
            get_artifact_repository(address).delete_artifacts(f"{CHECKPOINTS}/best")
        except Exception as error:
            log.warning("%s/best of run %s was not deleted: %s", CHECKPOINTS, record.run_id, reason(error))


def _not_recorded(folder: Path, error: Exception) -> None:
    log.warning("%s was not recorded (%s); to record it later: qamoe record %s", folder, reason(error), folder)


@contextmanager
def training_run(params: Params, name: str, seed: int, digests: dict[str, str], stats: Stats) -> Iterator[Training]:
    """Record one training while it runs; a training that was killed continues in its own run. stats: of its data.

    The run ends FINISHED, FAILED after an exception, or KILLED after Ctrl-C. With QAMOE_TRACKING=off nothing is
    recorded and MLflow is not imported. Raises UserError before training if the store does not answer.
    """
    if settings.untracked():
        yield Training(None)
        return
    from qamoe.models.checkpoint import parameters_config

    client = connect(_WITHOUT)
    with store_errors_as_user_errors(_WITHOUT):
        config = parameters_config(params, name, seed, digests)
        record = Record(client, _begin(client, params.registry.name, config, stats, provenance()))
    with _active(record, system_metrics=importlib.util.find_spec("psutil") is not None):
        yield Training(record, params.tracking)


def end_runs_of_dead_processes(client: Any) -> None:
    """Give the status KILLED to runs that a process of this machine began and, having been killed, did not end."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags.get(PROCESS, "")):
            client.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def runs_end_with_their_processes() -> Iterator[None]:
    """End the runs of dead processes: first those of earlier commands, then, if the body is interrupted, its own.

    Raises UserError if the store does not answer.
    """
    if not settings.untracked():
        client = connect(_WITHOUT)
        with store_errors_as_user_errors(_WITHOUT):
            end_runs_of_dead_processes(client)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not settings.untracked():
            end_runs_of_dead_processes(connect())
        raise


def record_training(client: Any, folder: Path, experiment: str) -> str:
    """Return the run id of a finished checkpoint; log the run from its files if it does not exist.

    Raises UserError for a folder without a finished checkpoint.
    """
    from qamoe.models import checkpoint

    config = checkpoint.read_config(folder)
    if config is None:
        raise UserError(f"no finished checkpoint in {folder}: {checkpoint.CONFIG} does not exist")
    with exclusive_lock(folder):  # two commands record a checkpoint once
        return _record_training(client, folder, experiment, config)


def _record_training(client: Any, folder: Path, experiment: str, config: CheckpointConfig) -> str:
    from qamoe.models import checkpoint

    end_runs_of_dead_processes(client)
    digest = checkpoint.digest(folder)
    existing = find(client, qamoe__artifact_digest=digest)
    if existing is not None:
        return existing.info.run_id
    lines = [json.loads(line) for line in (folder / checkpoint.HISTORY).read_text().splitlines()]
    later = {"qamoe.recorded": "later, from its files", _LATER: digest}
    record = Record(client, _begin(client, experiment, config, config["stats"], later))
    ended = (folder / checkpoint.CONFIG).stat().st_mtime
    with _active(record, system_metrics=False):
        record.lines(lines, [round(1000 * ended)] * len(lines))  # the files do not hold the end of each epoch
        record.finish(folder)
    return record.run_id


def record_evaluation(folder: Path, evaluated: Path, experiment: str = "qa-moe") -> None:
    """Record the output of `evaluate` for a checkpoint; only warn if the store fails.

    With QAMOE_TRACKING=off nothing is recorded. experiment: where to create the run of a checkpoint that has none.
    """
    if settings.untracked():
        return
    try:
        log_evaluation(connect(), folder, evaluated, experiment)
    except Exception as error:
        _not_recorded(folder, error)


def log_evaluation(client: Any, folder: Path, evaluated: Path, experiment: str) -> bool:
    """Log an evaluation as metrics, tables and a figure in the run of its checkpoint; return False if it was logged."""
    import pandas as pd

    from qamoe.evaluation.summary import summarise

    digest = (evaluated / "digest").read_text()
    run = client.get_run(record_training(client, folder, experiment))
    if run.data.tags.get(EVALUATED) == digest:
        return False
    cells = pd.read_parquet(evaluated / "cells.parquet")
    summary = summarise(cells)
    with tempfile.TemporaryDirectory() as temporary:
        _draw(cells, run.data.tags["qamoe.model"], Path(temporary))
        summary.to_csv(Path(temporary) / "summary.csv", index=False)
        cells.to_parquet(Path(temporary) / "cells.parquet", index=False)
        client.log_artifacts(run.info.run_id, temporary, EVALUATION)
    now = milliseconds()
    rows = [(name, value, step, now) for name, value, step in spectrum_metrics(cells, summary)]
    record = Record(client, run.info.run_id)
    record.log(rows, {EVALUATED: digest}, run.data.tags[MODEL_ID])
    _log_means(client, run)
    return True


def record_report(page: Path, folders: Iterable[Path]) -> None:
    """Log the page of the report in the runs of these checkpoints and in their parents; only warn if the store fails.

    Checkpoints without a run are left out. With QAMOE_TRACKING=off nothing is recorded.
    """
    from qamoe.models import checkpoint

    if settings.untracked():
        return
    try:
        client = connect()
        found = [find(client, qamoe__artifact_digest=checkpoint.digest(folder)) for folder in folders]
        seeds = [run for run in found if run is not None]
        parents = {run.data.tags[PARENT] for run in seeds if PARENT in run.data.tags}
        for run_id in {run.info.run_id for run in seeds} | parents:
            client.log_artifact(run_id, str(page), REPORT)
    except Exception as error:
        log.warning("%s was not recorded: %s", page, reason(error))


def _draw(cells: Any, model: str, folder: Path) -> None:
    """Draw spectrum.png from the curves of an evaluation, and landscape.png, if it has these slices."""
    from qamoe.report import landscape, plots, tables

    if tables.graded_slices(cells):
        plots.spectrum_curve({model: cells}).savefig(folder / "spectrum.png", dpi=120)
    if grids := landscape.grids(cells.assign(model=model)):
        plots.landscape(grids).savefig(folder / "landscape.png", dpi=120)


def spectrum_metrics(cells: Any, summary: Any) -> list[tuple[str, float, int]]:
    """Return (name, value, step), such as `missing/mae` at step 100 x severity, `missing/mae.area` and `mixed/mae`.

    `landscape/mae` is the volume.
    """
    means = cells.groupby(["slice", "metric", "severity"], dropna=False, sort=False)["value"].mean()
    rows = []
    for (name, metric, severity), value in means.drop(LANDSCAPE, level="slice", errors="ignore").items():
        rows.append((f"{name}/{metric}", float(value), 0 if math.isnan(severity) else round(100 * severity)))
    for line in summary.to_dict("records"):
        if line["slice"] == LANDSCAPE:
            rows.append((f"{LANDSCAPE}/{line['metric']}", line["area"], 0))
        if not math.isnan(line["area09"]):  # only curves have an area; other slices are a single value
            rows += [
                (f"{line['slice']}/{line['metric']}.{statistic}", line[statistic], 0)
                for statistic in ("area", "area09", "worst")
            ]
    return rows
