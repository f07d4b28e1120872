"""The training loop, the same for every model: seeded, resumable bit for bit on a CPU, chosen on validation alone.

Under torchrun every process runs it, on its share of each batch and of the validation views; the first one writes.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qamoe.config.params import Params, TrainCommon
from qamoe.data.batch import Batch
from qamoe.data.stats import Stats
from qamoe.dataset.degraded_split import DegradedSplit, feature_sizes, rows_in_batches
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
EpochLine = dict[str, Any]  # epoch, loss, losses.<name>, valid, and seconds where it is not written


@dataclass(frozen=True)
class TrainingJob:
    """One model with one seed: what it is trained on, where, and the folder that its checkpoint goes to.

    `cells` are those of `valid` that choose the epoch, `digests` what the checkpoint is made of, and `share` says how
    batches are spread.
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

    @property
    def common(self) -> TrainCommon:
        return self.params.train.common

    @property
    def name(self) -> str:
        """As lines of the log and errors call it."""
        return f"{self.model}, seed {self.seed}"

    def config(self) -> UntrainedConfig:
        """Its model.json, without what training finds out."""
        return checkpoint.untrained_config(
            self.params, self.model, self.seed, self.stats, feature_sizes(self.stats), self.digests
        )


class _Part(NamedTuple):
    """A part of a degraded batch (B clips): the quality that the model is told of it (B, M), None for all but the
    oracle; the damage that teaches it (B, M); and the weight of its mean loss in that of this process."""

    batch: Batch
    quality: Tensor | None
    severity: Tensor
    weight: float


class Trainer:
    """Trains a job's model epoch by epoch, and writes the checkpoint of the best one: `run` is the recipe.

    A state of the same digests in the job's folder is resumed; one of other digests is said so in a line and left
    behind. `on_epoch` gets one flat dict an epoch.
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

    def run(self) -> None:
        """Train what is left to train and write the checkpoint. Raises UserError where the training diverges."""
        for number in self._epochs_left():
            started = time.perf_counter()
            line = {"epoch": number, **self.epoch(number), "valid": self.validate(number)}
            self._keep_best(line)
            # The seconds are of no file: they differ from run to run.
            self._report({**line, "seconds": round(time.perf_counter() - started, 3)})
            self._save_state()
        self.finish()

    def epoch(self, number: int) -> dict[str, float]:
        """Train on every clip once; returns the mean losses by name, of a model that learns nothing none."""
        if not self.trainable:
            return {}
        job, share = self.job, self.job.share
        self.model.train()
        # Dropout alone draws from torch's stream; it begins anew, so that a resumed training needs no state of it.
        torch.manual_seed(int(np.random.SeedSequence([job.seed, number, share.process]).generate_state(1)[0]))
        random = np.random.default_rng([job.seed, number])
        batches = rows_in_batches(len(job.train.store), job.common.batch_size, random, job.train.lengths)
        steps = job.common.epochs * len(batches)
        sums: dict[str, float] = {}
        for place, rows in enumerate(batches):
            self._set_learning_rate((number - 1) * len(batches) + place, steps)
            for losses in self._step(number, rows):
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
        totals = share.summed(torch.tensor(list(sums.values()), dtype=torch.float64, device=job.device))
        return dict(zip(sums, (totals / (len(job.train.store) * share.processes)).tolist(), strict=True))

    def validate(self, number: int) -> float:
        """The validation error over the selection cells after that epoch."""
        value = selection_value(self._predictions(self.job.cells.selection), self.job.cells)
        if not math.isfinite(value):
            raise UserError(
                f"{self.job.name}: the validation error of epoch {number} is not finite, the training diverged; "
                f"train.common.lr is {self.job.common.lr:g}, a smaller one may hold."
            )
        return value

    def finish(self) -> None:
        """Calibrate the best epoch's model and write it as the checkpoint."""
        self.model.load_state_dict(self.best["weights"], strict=True)
        cells = self.job.cells
        fitted = calibration(self._predictions(cells.selection))
        clean, fully_degraded = (self._predictions(views).r for views in (cells.clean, cells.fully_degraded))
        config: CheckpointConfig = {
            **self.config,
            "selection": self.best["value"],
            "best_epoch": self.best["epoch"],
            "calibration": fitted,
            "trust": _trust_anchors(clean, fully_degraded, self.job.valid, self.config["modalities"]),
        }
        if self.job.share.first:
            checkpoint.save(self.job.folder, self.model, config, self.history)
            (self.job.folder / RESUME).unlink(missing_ok=True)

    def _resume(self) -> None:
        """Go on from the state that a killed training of the same digests left in the folder."""
        for half_written in self.job.folder.glob(".*") if self.job.share.first else ():
            half_written.unlink()  # by a kill; the folder is an output
        state = _matching_state(self.job)
        if state is not None:
            self.model.load_state_dict(state["model"], strict=True)
            self.optimiser.load_state_dict(state["optimiser"])
            self.history, self.best = state["history"], state["best"]

    def _save_state(self) -> None:
        """Write what `_resume` reads; random numbers are drawn anew in every epoch and need no state."""
        state = {
            "digests": self.job.digests,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "best": self.best,
        }
        if self.job.share.first:
            checkpoint.save_state(self.job.folder / RESUME, state)

    def _epochs_left(self) -> Iterator[int]:
        """Numbers of the epochs to come, until none has been the best for as many as patience allows."""
        last = self.job.common.epochs if self.trainable else 1
        for number in range(len(self.history) + 1, last + 1):
            if number - self.best["epoch"] > self.job.common.patience:
                return
            yield number

    def _keep_best(self, line: EpochLine) -> None:
        self.history.append(line)
        if line["valid"] < self.best["value"]:
            weights = copy.deepcopy(self.model.state_dict())
            self.best = {"value": line["valid"], "epoch": line["epoch"], "weights": weights}

    def _report(self, line: EpochLine) -> None:
        self.on_epoch(line)
        short = {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
        log.info(json.dumps({"model": self.job.model, "seed": self.job.seed, **short}))

    def _set_learning_rate(self, step: int, steps: int) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, self.job.common, group["peak"])

    def _step(self, number: int, rows: np.ndarray) -> list[dict[str, float]]:
        """One step of the optimiser on a batch; returns each part's losses by name, as sums over clips."""
        parts = [self._part(number, part, weight) for part, weight in self.job.share.split(rows)]
        not_averaged = getattr(self.losses_of, "module", self.losses_of)
        counting = [partial(self._forward, not_averaged, part, number) for part in parts]
        summed = _summed_over_parts(counting, self.job.share)
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
        """Rows of the training split under the view of that epoch."""
        train, device = self.job.train, self.job.device
        degraded = train.degraded((number - 1) % len(train.views), rows)
        batch, quality = with_oracle_quality(self.model, degraded, device)
        return _Part(batch, quality, injected_severity(self.model, degraded, device), weight)

    def _forward(
        self, losses_of: nn.Module, part: _Part, number: int, summed: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a part by name and their weighted sum; `summed` as Step has it."""
        common = self.job.common
        with torch.autocast(self.job.device, torch.bfloat16, enabled=common.precision == "bfloat16"):
            step = Step(self.job.seed, number, part.batch.keys, summed, part.severity)
            losses = losses_of(part.batch, part.quality, step)
            return losses, objective(losses, common)

    def _predictions(self, views: tuple[int, ...]) -> SplitPredictions:
        """`predictions` of the validation split, to which each process brings its share of the views."""
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
        log.info("%s: starts anew, since its unfinished state has other %s", job.name, ", ".join(changed))
        return None
    log.info("%s: goes on after epoch %d", job.name, len(state["history"]))
    return state


def _parameter_groups(model: nn.Module, lr: float, encoder_lr: float) -> list[dict[str, Any]]:
    """What is trained, by learning rate (`peak`, that at the end of warm-up): a text encoder has one of its own."""
    encoder = [p for name, p in model.named_parameters() if name.startswith("encode.reader.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("encode.reader.")]
    groups = [{"params": rest or [nn.Parameter(torch.zeros(1))], "peak": lr}]
    return [*groups, {"params": encoder, "peak": encoder_lr}] if encoder else groups


def learning_rate(step: int, steps: int, common: TrainCommon, peak: float | None = None) -> float:
    """Linear warm-up to `peak` (train.common.lr), then a cosine or a line to zero."""
    highest = common.lr if peak is None else peak
    warm = max(1, round(common.warmup_share * steps))
    if step < warm:
        return highest * (step + 1) / warm
    if common.schedule == "linear":
        return highest * (steps - step) / max(1, steps - warm)
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def objective(losses: dict[str, Tensor], common: TrainCommon) -> Tensor:
    """The weighted sum of a prediction's losses; the task's own weight is 1."""
    weights = {"task": 1.0, **common.loss.model_dump()}
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def _summed_over_parts(forwards: Sequence[Callable[..., Any]], share: BatchShare) -> Callable[[Tensor], Tensor]:
    """What sums a count over all parts of a batch, for the forwards that follow.

    Several parts one after the other go forward twice, the first time without gradient and with the random state put
    back: what is counted in all of them is a factor of the loss of each. Models that count nothing are spared it.
    """
    if share.parts == 1:
        return share.summed
    counts: list[Tensor] = []

    def note(count: Tensor) -> Tensor:
        counts.append(count)
        return count

    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        for forward in forwards:
            forward(note)
            if not counts:
                return share.summed
    total = share.summed(torch.stack(counts).sum(0))
    return lambda count: total


def _trust_anchors(
    clean: np.ndarray | None, fully_degraded: np.ndarray | None, valid: DegradedSplit, modalities: list[str]
) -> dict[str, TrustAnchors]:
    """Each modality's trust anchors: its median r (V, N, M) under the clean and under the fully degraded views."""
    anchors: dict[str, TrustAnchors] = {}
    if clean is None or fully_degraded is None:
        return anchors
    for column, modality in enumerate(modalities):
        present = valid.store.lengths(modality) > 0
        counted = present if present.any() else ~present  # r of a clip that lacks it is about the others
        low, high = (float(np.median(r[:, counted, column])) for r in (fully_degraded, clean))
        anchors[modality] = {"clean": high, "fully_degraded": low, "rescaled": low < high}
        if low >= high:
            log.info(
                "trust in %s is r itself: clean clips have median r %.3f, fully degraded ones %.3f", modality, high, low
            )
    return anchors
