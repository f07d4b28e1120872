"""The training loop, the same for every model: seeded, resumable bit for bit on a CPU, chosen on validation alone.

Under torchrun every process runs it, on its share of each batch and of the validation views; the first one writes.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qamoe.config.model_names import family
from qamoe.config.params import Params, TrainCommon
from qamoe.data.batch import Batch
from qamoe.dataset.degraded_split import DegradedSplit, rows_in_batches
from qamoe.degradation.features import State
from qamoe.errors import UserError
from qamoe.models import checkpoint, text_encoder_finetuned, text_encoder_frozen
from qamoe.models.model import Model
from qamoe.models.training_step import Step
from qamoe.training.distributed import WHOLE, BatchShare
from qamoe.training.selection import (
    Cells,
    calibration,
    injected_severity,
    predictions,
    selection_value,
    with_oracle_quality,
)

log = logging.getLogger("qamoe")
RESUME = "resume.pt"


def fit(
    name: str,
    seed: int,
    params: Params,
    stats: dict[str, Any],
    inputs: dict[str, int],
    train: DegradedSplit,
    valid: DegradedSplit,
    cells: Cells,
    digests: dict[str, str],
    folder: Path,
    device: str,
    on_epoch: Callable[[dict[str, Any]], None],
    parts: BatchShare = WHOLE,
) -> None:
    """Train one model with one seed and write its checkpoint into `folder`.

    A state of the same digests found there is resumed; one of other digests is said so in a line and left behind.
    `on_epoch` gets one flat dict an epoch. `parts` says how batches are spread. Raises UserError where the training
    diverges.
    """
    common = params.train.common
    torch.manual_seed(seed)
    config = _config(name, seed, params, stats, inputs, digests)
    model = checkpoint.make(name, config).to(device)
    encoder = params.models.encoders.text
    if "text_encoder" in config:
        model.encode.reader.load_pretrained(encoder)  # type: ignore[union-attr, operator]
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(_groups(model, common.lr, encoder.lr), common.lr, weight_decay=common.weight_decay)
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {"value": math.inf, "epoch": 0, "weights": copy.deepcopy(model.state_dict())}
    for half_written in folder.glob(".*") if parts.first else ():
        half_written.unlink()  # by a kill; the folder is an output
    state = _matching_state(folder / RESUME, digests, name, seed)
    if state is not None:
        model.load_state_dict(state["model"], strict=True)
        optimiser.load_state_dict(state["optimiser"])
        history, best = state["history"], state["best"]
    wrapped = parts.wrapped(model)
    epochs = common.epochs if trainable else 1
    for epoch in range(len(history) + 1, epochs + 1):
        if epoch - best["epoch"] > common.patience:
            break
        started = time.perf_counter()
        losses = {}
        if trainable:
            losses = _one_epoch(model, wrapped, optimiser, trainable, train, seed, epoch, common, device, parts)
        value = selection_value(_predictions(model, valid, cells.selection, common.batch_size, device, parts), cells)
        line = {"epoch": epoch, **losses, "valid": value}
        if not math.isfinite(value):
            raise UserError(
                f"{name}, seed {seed}: the validation error of epoch {epoch} is not finite, the training diverged; "
                f"train.common.lr is {common.lr:g}, a smaller one may hold."
            )
        history.append(line)
        if value < best["value"]:
            best = {"value": value, "epoch": epoch, "weights": copy.deepcopy(model.state_dict())}
        timed = {**line, "seconds": round(time.perf_counter() - started, 3)}  # of no file: it differs from run to run
        on_epoch(timed)
        log.info(json.dumps({"model": name, "seed": seed, **_short(timed)}))
        state = {  # resumable; random numbers are drawn anew in every epoch
            "digests": digests,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "history": history,
            "best": best,
        }
        if parts.first:
            checkpoint.save_state(folder / RESUME, state)
    model.load_state_dict(best["weights"], strict=True)
    config |= {"selection": best["value"], "best_epoch": best["epoch"]}
    config |= _after_training(model, valid, cells, config["modalities"], common.batch_size, device, parts)
    if parts.first:
        checkpoint.save(folder, model, config, history)
        (folder / RESUME).unlink(missing_ok=True)


def _config(
    name: str,
    seed: int,
    params: Params,
    stats: dict[str, Any],
    inputs: dict[str, int],
    digests: dict[str, str],
) -> dict[str, Any]:
    config = checkpoint.described(params, name, seed, digests)
    config |= {key: stats[key] for key in ("target_mean", "target_std", "class_shares") if key in stats}
    encoder = params.models.encoders.text
    ids = "text" in inputs and "vocabulary" in stats["text"]
    if ids and encoder.finetune and family(name) != "mean":
        limit = params.preprocess.max_frames.text
        config["text_encoder"] = text_encoder_finetuned.architecture(
            encoder, limit, text_encoder_finetuned.vocabulary(stats)
        )
    elif ids and encoder.encoder != text_encoder_frozen.NAME:
        config["text_states"] = text_encoder_frozen.width(encoder.encoder)
    return config | {
        "stats": stats,
        "task": stats["task"],
        "modalities": list(inputs),
        "inputs": inputs,
        "trained_on_generated": stats["generated"],
    }


def _matching_state(path: Path, digests: dict[str, str], name: str, seed: int) -> dict[str, Any] | None:
    state = checkpoint.load_state(path)
    if state is None:
        return None
    changed = [what for what, value in digests.items() if state["digests"].get(what) != value]
    if changed:
        log.info(
            "%s, seed %d: starts anew, since its unfinished state has other %s",
            name,
            seed,
            ", ".join(changed),
        )
        return None
    log.info("%s, seed %d: goes on after epoch %d", name, seed, len(state["history"]))
    return state


def _groups(model: nn.Module, lr: float, encoder_lr: float) -> list[dict[str, Any]]:
    """What is trained, by learning rate (`peak`, that at the end of warm-up): a text encoder has one of its own."""
    own = [p for name, p in model.named_parameters() if name.startswith("encode.reader.")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("encode.reader.")]
    groups = [{"params": rest or [nn.Parameter(torch.zeros(1))], "peak": lr}]
    return [*groups, {"params": own, "peak": encoder_lr}] if own else groups


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


def _one_epoch(
    model: Model,
    wrapped: nn.Module,
    optimiser: torch.optim.Optimizer,
    trainable: list[nn.Parameter],
    train: DegradedSplit,
    seed: int,
    epoch: int,
    common: TrainCommon,
    device: str,
    parts: BatchShare,
) -> dict[str, float]:
    """`wrapped` gives its losses (Parts.wrapped). Returns their means over the epoch by name."""
    model.train()
    # Dropout alone draws from torch's stream; it begins anew, so that a resumed training needs no state of it.
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, parts.process]).generate_state(1)[0]))
    random = np.random.default_rng([seed, epoch])
    order = rows_in_batches(len(train.store), common.batch_size, random, train.lengths)
    steps = common.epochs * len(order)
    sums: dict[str, float] = {}
    view = (epoch - 1) % len(train.views)
    for i, rows in enumerate(order):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate((epoch - 1) * len(order) + i, steps, common, group["peak"])
        own = [(_given(model, train.degraded(view, some), device), weight) for some, weight in parts.of(rows)]
        forward = partial(_forward, seed=seed, epoch=epoch, device=device, common=common)
        alone = getattr(wrapped, "module", wrapped)
        summed = _summing([partial(forward, alone, batch) for batch, _ in own], parts)
        optimiser.zero_grad(set_to_none=True)
        for batch, weight in own:
            losses, loss = forward(wrapped, batch, summed)
            (weight * loss).backward()
            for name, value in {"loss": loss, **{f"losses.{k}": v for k, v in losses.items()}}.items():
                sums[name] = sums.get(name, 0.0) + weight * float(value.detach()) * len(rows)
        nn.utils.clip_grad_norm_(trainable, common.clip_norm)
        optimiser.step()
    totals = parts.summed(torch.tensor(list(sums.values()), dtype=torch.float64, device=device))
    return dict(zip(sums, (totals / (len(train.store) * parts.processes)).tolist(), strict=True))


def _given(model: Model, degraded: tuple[Batch, Tensor, State], device: str) -> tuple[Batch, Tensor | None, Tensor]:
    """A degraded batch, the quality that the model is told of it, and the damage that teaches it."""
    return *with_oracle_quality(model, degraded, device), injected_severity(model, degraded, device)


def _forward(
    wrapped: nn.Module,
    given: tuple[Batch, Tensor | None, Tensor],
    summed: Callable[[Tensor], Tensor],
    seed: int,
    epoch: int,
    device: str,
    common: TrainCommon,
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses by name and their weighted sum; `summed` as Step has it."""
    batch, quality, severity = given
    with torch.autocast(device, torch.bfloat16, enabled=common.precision == "bfloat16"):
        losses = wrapped(batch, quality, Step(seed, epoch, batch.keys, summed, severity))
        return losses, objective(losses, common)


def _summing(forwards: Sequence[Callable[..., Any]], parts: BatchShare) -> Callable[[Tensor], Tensor]:
    """What sums a count over all parts of a batch, for the forwards that follow.

    Several parts one after the other go forward twice, the first time without gradient and with the random state put
    back: what is counted in all of them is a factor of the loss of each. Models that count nothing are spared it.
    """
    if parts.each == 1:
        return parts.summed
    seen: list[Tensor] = []

    def note(own: Tensor) -> Tensor:
        seen.append(own)
        return own

    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        for forward in forwards:
            forward(note)
            if not seen:
                return parts.summed
    total = parts.summed(torch.stack(seen).sum(0))
    return lambda own: total


def _predictions(
    model: Model, valid: DegradedSplit, places: tuple[int, ...], batch_size: int, device: str, parts: BatchShare
) -> dict[str, Any]:
    """`predictions`, to which each process brings its share of the views."""
    own = predictions(model, valid, parts.share(places), batch_size, device)
    target = own.pop("target")
    return {**parts.gathered(own, len(places)), "target": target}


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}


def _after_training(
    model: Model,
    valid: DegradedSplit,
    cells: Cells,
    modalities: list[str],
    batch_size: int,
    device: str,
    parts: BatchShare,
) -> dict[str, Any]:
    """Calibration over the selection cells, and each modality's trust anchors: median r, clean and fully degraded."""
    fitted = calibration(_predictions(model, valid, cells.selection, batch_size, device, parts))
    clean = _predictions(model, valid, cells.clean, batch_size, device, parts)["r"]
    fully_degraded = _predictions(model, valid, cells.fully_degraded, batch_size, device, parts)["r"]
    trust: dict[str, Any] = {}
    if clean is not None and fully_degraded is not None:
        for place, modality in enumerate(modalities):
            present = valid.store.lengths(modality) > 0
            own = present if present.any() else ~present  # r of a clip that lacks it is about the others
            low, high = (float(np.median(r[:, own, place])) for r in (fully_degraded, clean))
            trust[modality] = {"clean": high, "fully_degraded": low, "rescaled": low < high}
            if low >= high:
                log.info(
                    "trust in %s is r itself: clean clips have median r %.3f, fully degraded ones %.3f",
                    modality,
                    high,
                    low,
                )
    return {"calibration": fitted, "trust": trust}
