"""The training loop of all models: seeded, resumable bit for bit on a CPU, and selected on validation clips only.

Under torchrun every process runs it, on its share of each batch and of the validation views; the first one writes.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qamoe.config.params import Params, TrainCommon
from qamoe.data.batch import Batch
from qamoe.data.stats import Stats
from qamoe.dataset.degraded_split import DegradedSplit, feature_sizes
from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.models.checkpoint_config import CheckpointConfig, TrustAnchors, UntrainedConfig
from qamoe.models.training_step import Step
from qamoe.training.distributed import WHOLE_BATCH, BatchShare
from qamoe.training.selection import (
    Cells,
    SplitPredictions,
    calibration,
    injected_severity,
    predictions,
    selection_value,
    with_oracle_quality,
)

log = logging.getLogger("qamoe")
RESUME = "resume.pt"
_GAIN = 1e-4  # schedule plateau: the smallest improvement of the selection value that counts
_PATIENCE = 3  # schedule plateau: epochs in a row without an improvement after which the learning rate is halved
_LOGGED = 10  # epochs of a training that are logged after the first; the history and MLflow have every epoch
EpochLine = dict[str, Any]  # epoch, loss, losses.<name>, valid; and seconds, which is not written to files


class Diverged(UserError):
    """The validation error of a training is not finite; a search goes on with its next trial."""


@dataclass(frozen=True)
class TrainingJob:
    """One model with one seed: its data, parameters and device, and the folder for its checkpoint.

    `cells` are the cells of `valid` that select the epoch. `digests` identify the checkpoint's data, code and
    parameters. `share` is this process's share of each batch. `trial` is its number in a search.
    """

    model: str
    seed: int
    params: Params
    stats: Stats
    train: DegradedSplit
    valid: DegradedSplit
    cells: Cells
    digests: dict[str, str]
    folder: Path
    device: str
    share: BatchShare = WHOLE_BATCH
    trial: int | None = None

    @property
    def common(self) -> TrainCommon:
        return self.params.train.common

    @property
    def name(self) -> str:
        """The name of this job in log lines and errors."""
        return f"{self.model}, seed {self.seed}" if self.trial is None else f"trial {self.trial}"

    def config(self) -> UntrainedConfig:
        """Return its model.json without the results of training."""
        return checkpoint.untrained_config(
            self.params, self.model, self.seed, self.stats, feature_sizes(self.stats), self.digests
        )


class _Part(NamedTuple):
    """A part of a degraded batch (B clips).

    It has the true quality (B, M) for the oracle and None for other models, the injected severity (B, M), and the
    weight of its mean loss in this process's loss.
    """

    batch: Batch
    quality: Tensor | None
    severity: Tensor
    weight: float


class Trainer:
    """Trains a job's model epoch by epoch and writes the checkpoint of the best epoch; start with `run`.

    A state with the same digests in the job's folder is resumed. A state with other digests is ignored, with a log
    line. `on_epoch` gets one flat dict per epoch.
    """

    def __init__(self, job: TrainingJob, on_epoch: Callable[[EpochLine], None]) -> None:
        self.job, self.on_epoch = job, on_epoch
        torch.manual_seed(job.seed)
        self.config = job.config()
        self.model = checkpoint.make(job.model, self.config).to(job.device)
        encoder = job.params.models.encoders.text
        if "text_encoder" in self.config:
            self.model.encode.reader.load_pretrained(encoder)  # type: ignore[union-attr, operator]
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.model, job.common.lr, encoder.lr),
            job.common.lr,
            weight_decay=job.common.weight_decay,
        )
        self.history: list[EpochLine] = []
        self.best: dict[str, Any] = {"value": math.inf, "epoch": 0, "weights": copy.deepcopy(self.model.state_dict())}
        self._resume()
        self.losses_of = job.share.wrapped(self.model)

    def run(self) -> SplitPredictions:
        """Train the remaining epochs and write the checkpoint. Raises Diverged if the training diverges.

        Returns the best epoch's predictions of the selection cells.
        """
        while not self.ended():
            number = len(self.history) + 1
            started = time.perf_counter()
            line = {"epoch": number, **self.epoch(number), "valid": self.validate(number)}
            self._keep_best(line)
            # No file has the seconds, because they differ from run to run.
            self._report({**line, "seconds": round(time.perf_counter() - started, 3)})
            self._save_state()
        return self.finish()

    def epoch(self, number: int) -> dict[str, float]:
        """Train on every clip once and return the mean losses by name; an untrainable model has none."""
        if not self.trainable:
            return {}
        job, share = self.job, self.job.share
        self.model.train()
        # Only dropout draws from torch's generator. Seeding it in every epoch makes its state unnecessary for resuming.
        torch.manual_seed(int(np.random.SeedSequence([job.seed, number, share.process]).generate_state(1)[0]))
        random = np.random.default_rng([job.seed, number])
        batches = job.train.batches((number - 1) % len(job.train.views), job.common.batch_size, random)
        steps = job.common.epochs * len(batches)
        peaks = self._peaks(number)
        sums: dict[str, float] = {}
        for index, rows in enumerate(batches):
            for group, peak in zip(self.optimiser.param_groups, peaks, strict=True):
                group["lr"] = learning_rate((number - 1) * len(batches) + index, steps, job.common, peak)
            for losses in self._step(number, rows):
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
        totals = share.summed(torch.tensor(list(sums.values()), dtype=torch.float64, device=job.device))
        return dict(zip(sums, (totals / (len(job.train.store) * share.processes)).tolist(), strict=True))

    def validate(self, number: int) -> float:
        """Return the validation error over the selection cells after that epoch."""
        value = selection_value(self._predictions(self.job.cells.selection), self.job.cells)
        if not math.isfinite(value):
            raise Diverged(
                f"{self.job.name}: the training diverged, the validation error of epoch {number} is not finite; "
                f"try a smaller train.common.lr than {self.job.common.lr:g}."
            )
        return value

    def finish(self) -> SplitPredictions:
        """Calibrate the best epoch's model, write it as the checkpoint, and return what `run` returns."""
        self.model.load_state_dict(self.best["weights"], strict=True)
        cells = self.job.cells
        selected = self._predictions(cells.selection)
        clean, fully_degraded = (self._predictions(views).r for views in (cells.clean, cells.fully_degraded))
        config: CheckpointConfig = {
            **self.config,
            "selection": self.best["value"],
            "best_epoch": self.best["epoch"],
            "calibration": calibration(selected),
            "trust": _trust_anchors(self.job, clean, fully_degraded, self.config["modalities"]),
        }
        if self.job.share.first:
            checkpoint.save(self.job.folder, self.model.state_dict(), config, self.history)
            (self.job.folder / RESUME).unlink(missing_ok=True)
        return selected

    def save_unfinished(self, folder: Path, which: Literal["best", "last"]) -> None:
        """Write a checkpoint of the best or the last epoch so far; it has no calibration and no trust."""
        epoch, value, weights = self.best["epoch"], self.best["value"], self.best["weights"]
        if which == "last":
            epoch, value, weights = self.history[-1]["epoch"], self.history[-1]["valid"], self.model.state_dict()
        config: CheckpointConfig = {
            **self.config,
            "selection": value,
            "best_epoch": epoch,
            "calibration": {},
            "trust": {},
            "finished": False,
        }
        checkpoint.save(folder, weights, config, self.history)

    def ended(self) -> bool:
        """Whether no epoch is left: all have run, or with schedule plateau, `patience` epochs in a row brought no gain.

        A gain is a new best that is lower by 1e-4; the kept epoch is that of the lowest value. The other schedules fall
        to 0 at the last epoch, and a training that ends half-way down has not converged.
        """
        done, common = len(self.history), self.job.common
        idle = (epochs_without_gain([line["valid"] for line in self.history]) or [0])[-1]
        stopped = common.schedule == "plateau" and idle >= common.patience
        return done >= (common.epochs if self.trainable else 1) or stopped

    def _resume(self) -> None:
        """Load the state of an interrupted training with the same digests, if the folder has one."""
        for half_written in self.job.folder.glob(".*") if self.job.share.first else ():
            half_written.unlink()  # temporary files of an interrupted run must not be in the output
        state = _matching_state(self.job)
        if state is not None:
            self.model.load_state_dict(state["model"], strict=True)
            self.optimiser.load_state_dict(state["optimiser"])
            self.history, self.best = state["history"], state["best"]

    def _save_state(self) -> None:
        """Write what `_resume` reads. Random generators are seeded in every epoch and need no state."""
        state = {
            "digests": self.job.digests,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "best": self.best,
        }
        if self.job.share.first:
            checkpoint.save_state(self.job.folder / RESUME, state)

    def _keep_best(self, line: EpochLine) -> None:
        self.history.append(line)
        if line["valid"] < self.best["value"]:
            weights = copy.deepcopy(self.model.state_dict())
            self.best = {"value": line["valid"], "epoch": line["epoch"], "weights": weights}

    def _report(self, line: EpochLine) -> None:
        self.on_epoch(line)
        epochs = self.job.common.epochs
        if line["epoch"] == 1 or line["epoch"] % max(1, epochs // _LOGGED) == 0:
            losses = f"loss {line['loss']:.4f}, " if "loss" in line else ""
            log.info(
                "%s: epoch %d of %d, %svalidation error %.4f",
                *(self.job.name, line["epoch"], epochs, losses, line["valid"]),
            )

    def _peaks(self, number: int) -> list[float]:
        """Return the peak learning rate of each parameter group in that epoch, from the epochs before it alone."""
        common, encoder = self.job.common, self.job.params.models.encoders.text
        idle = epochs_without_gain([line["valid"] for line in self.history]) if common.schedule == "plateau" else []
        share = 0.5 ** sum(epochs > 0 and epochs % _PATIENCE == 0 for epochs in idle)
        rates = [group["peak"] * share for group in self.optimiser.param_groups]
        return [rates[0], *(0.0 if number <= encoder.frozen_epochs else rate for rate in rates[1:])]

    def _step(self, number: int, rows: np.ndarray) -> list[dict[str, float]]:
        """Take one optimiser step on a batch; return each part's losses by name, as sums over clips."""
        parts = [self._part(number, part, weight) for part, weight in self.job.share.split(rows)]
        not_averaged = getattr(self.losses_of, "module", self.losses_of)
        forwards = [partial(self._forward, not_averaged, part, number) for part in parts]
        summed = _summed_over_parts(forwards, self.job.share)
        self.optimiser.zero_grad(set_to_none=True)
        sums = []
        for part in parts:
            losses, loss = self._forward(self.losses_of, part, number, summed)
            (part.weight * loss).backward()
            named = {"loss": loss, **{f"losses.{name}": value for name, value in losses.items()}}
            sums.append({name: part.weight * float(value.detach()) * len(rows) for name, value in named.items()})
        nn.utils.clip_grad_norm_(self.trainable, self.job.common.clip_norm)
        self.optimiser.step()
        return sums

    def _part(self, number: int, rows: Sequence[int], weight: float) -> _Part:
        """Return rows of the training split under the view of that epoch."""
        train, device = self.job.train, self.job.device
        degraded = train.degraded((number - 1) % len(train.views), rows)
        batch, quality = with_oracle_quality(self.model, degraded, device)
        return _Part(batch, quality, injected_severity(self.model, degraded, device), weight)

    def _forward(
        self, losses_of: nn.Module, part: _Part, number: int, summed: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of a part by name and their weighted sum; `summed` as in Step."""
        common = self.job.common
        with torch.autocast(self.job.device, torch.bfloat16, enabled=common.precision == "bfloat16"):
            step = Step(self.job.seed, number, part.batch.keys, summed, part.severity)
            losses = losses_of(part.batch, part.quality, step)
            return losses, objective(losses, common, self.model.loss_weights)

    def _predictions(self, views: tuple[int, ...]) -> SplitPredictions:
        """Predict the validation split; each process predicts its share of the views."""
        job = self.job
        shared = predictions(self.model, job.valid, job.share.views(views), job.common.batch_size, job.device)
        arrays = {name: array for name, array in vars(shared).items() if name != "target"}
        return SplitPredictions(shared.target, **job.share.gathered(arrays, len(views)))


def _matching_state(job: TrainingJob) -> dict[str, Any] | None:
    state = checkpoint.load_state(job.folder / RESUME)
    if state is None:
        return None
    changed = [what for what, digest in job.digests.items() if state["digests"].get(what) != digest]
    if changed:
        log.info("%s: starts from the beginning, because its saved state has other %s", job.name, ", ".join(changed))
        return None
    log.info("%s: resumes after epoch %d", job.name, len(state["history"]))
    return state


def _parameter_groups(model: nn.Module, lr: float, encoder_lr: float) -> list[dict[str, Any]]:
    """Return the parameters by peak learning rate (at the end of warm-up); a fine-tuned text encoder has its own."""
    encoder = [p for name, p in model.named_parameters() if name.startswith("encode.reader.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("encode.reader.")]
    groups = [{"params": rest or [nn.Parameter(torch.zeros(1))], "peak": lr}]
    return [*groups, {"params": encoder, "peak": encoder_lr}] if encoder else groups


def learning_rate(step: int, steps: int, common: TrainCommon, peak: float | None = None) -> float:
    """Return the learning rate of a step: linear warm-up to `peak` (train.common.lr), then the decay of the schedule.

    plateau: the rate stays at `peak`, which the trainer halves between epochs.
    """
    highest = common.lr if peak is None else peak
    warm = max(1, round(common.warmup_share * steps))
    if step < warm:
        return highest * (step + 1) / warm
    if common.schedule == "plateau":
        return highest
    if common.schedule == "linear":
        return highest * (steps - step) / max(1, steps - warm)
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def epochs_without_gain(values: Sequence[float]) -> list[int]:
    """Return after each epoch how many epochs in a row have not improved the selection value by 1e-4, 0 if it has."""
    counts: list[int] = []
    lowest = math.inf
    for value in values:
        gained = lowest - value >= _GAIN
        counts.append(0 if gained else counts[-1] + 1)
        lowest = value if gained else lowest
    return counts


def objective(losses: dict[str, Tensor], common: TrainCommon, of_model: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of a prediction's losses.

    The weight of `task` is 1; the model's own weights take precedence over those of train.common.loss.
    """
    weights = {"task": 1.0, **common.loss.model_dump(), **of_model}
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def _summed_over_parts(forwards: Sequence[Callable[..., Any]], share: BatchShare) -> Callable[[Tensor], Tensor]:
    """Return the function `summed` of Step, which sums a count over all parts of a batch.

    With several parts per process, each part is first run forward without gradient, and the random state is restored:
    the loss of each part needs the counts of all. A model that counts nothing skips this after its first part.
    """
    if share.parts == 1:
        return share.summed
    counts: list[Tensor] = []

    def record(count: Tensor) -> Tensor:
        counts.append(count)
        return count

    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        for forward in forwards:
            forward(record)
            if not counts:
                return share.summed
    total = share.summed(torch.stack(counts).sum(0))
    return lambda count: total


def _trust_anchors(
    job: TrainingJob, clean: np.ndarray | None, fully_degraded: np.ndarray | None, modalities: list[str]
) -> dict[str, TrustAnchors]:
    """Return each modality's trust anchors: its median r (V, N, M) under the clean and the fully degraded views."""
    anchors: dict[str, TrustAnchors] = {}
    if clean is None or fully_degraded is None:
        return anchors
    for column, modality in enumerate(modalities):
        present = job.valid.store.lengths(modality) > 0
        # r of a clip without the modality depends on its other modalities.
        used = present if present.any() else ~present
        low, high = (float(np.median(r[:, used, column])) for r in (fully_degraded, clean))
        anchors[modality] = {"clean": high, "fully_degraded": low, "rescaled": low < high}
        if low >= high:
            log.info(
                "%s: trust in %s does not follow damage: the median r of clean clips is %.3f, that of fully"
                " degraded ones is %.3f; more epochs or clips may change that",
                *(job.name, modality, high, low),
            )
    return anchors
