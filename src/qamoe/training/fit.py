"""The training loop, the same for every model: seeded, resumable bit for bit on a CPU, chosen on validation alone."""

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qamoe.errors import Refused
from qamoe.models import reader, text
from qamoe.models.model import Model
from qamoe.params import Params, TrainCommon, family
from qamoe.training import checkpoint
from qamoe.training.selection import Cells, calibration, predictions, selection_value, told
from qamoe.training.views import Views, rows_in_batches

log = logging.getLogger("qamoe")
RESUME = "resume.pt"


def fit(
    name: str,
    seed: int,
    params: Params,
    stats: dict[str, Any],
    inputs: dict[str, int],
    train: Views,
    valid: Views,
    cells: Cells,
    digests: dict[str, str],
    folder: Path,
    device: str,
    on_epoch: Callable[[dict[str, Any]], None],
) -> None:
    """Train one model with one seed and write its checkpoint into `folder`.

    A state of the same digests found there is resumed; one of other digests is said so in a line and left behind.
    `on_epoch` gets one flat dict an epoch. Raises Refused where the training diverges.
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
    for half_written in folder.glob(".*"):
        half_written.unlink()  # by a kill; the folder is an output
    state = _matching_state(folder / RESUME, digests, name, seed)
    if state is not None:
        model.load_state_dict(state["model"], strict=True)
        optimiser.load_state_dict(state["optimiser"])
        history, best = state["history"], state["best"]
        torch.set_rng_state(state["rng"])
        if device == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
    epochs = common.epochs if trainable else 1
    for epoch in range(len(history) + 1, epochs + 1):
        if epoch - best["epoch"] > common.patience:
            break
        started = time.perf_counter()
        losses = _one_epoch(model, optimiser, trainable, train, seed, epoch, common, device) if trainable else {}
        value = selection_value(predictions(model, valid, cells.selection, common.batch_size, device), cells)
        line = {"epoch": epoch, **losses, "valid": value, "seconds": round(time.perf_counter() - started, 3)}
        if not math.isfinite(value):
            raise Refused(
                f"{name}, seed {seed}: the validation error of epoch {epoch} is not finite, the training diverged; "
                f"train.common.lr is {common.lr:g}, a smaller one may hold."
            )
        history.append(line)
        if value < best["value"]:
            best = {"value": value, "epoch": epoch, "weights": copy.deepcopy(model.state_dict())}
        on_epoch(line)
        log.info(json.dumps({"model": name, "seed": seed, **_short(line)}))
        state = {  # resumable
            "digests": digests,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "history": history,
            "best": best,
            "rng": torch.get_rng_state(),
        }
        if device == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        checkpoint.save_state(folder / RESUME, state)
    model.load_state_dict(best["weights"], strict=True)
    config |= {"selection": best["value"], "best_epoch": best["epoch"]}
    config |= _after_training(model, valid, cells, config["modalities"], common.batch_size, device)
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
        config["text_encoder"] = reader.architecture(encoder, limit, reader.vocabulary(stats))
    elif ids and encoder.encoder != text.NAME:
        config["text_states"] = text.width(encoder.encoder)
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
    optimiser: torch.optim.Optimizer,
    trainable: list[nn.Parameter],
    train: Views,
    seed: int,
    epoch: int,
    common: TrainCommon,
    device: str,
) -> dict[str, float]:
    model.train()
    random = np.random.default_rng([seed, epoch])
    order = rows_in_batches(len(train.store), common.batch_size, random, train.lengths)
    steps = common.epochs * len(order)
    sums: dict[str, float] = {}
    for i, rows in enumerate(order):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate((epoch - 1) * len(order) + i, steps, common, group["peak"])
        batch, quality = told(model, train.degraded((epoch - 1) % len(train.views), rows), device)
        with torch.autocast(device, torch.bfloat16, enabled=common.precision == "bfloat16"):
            losses = model(batch, quality).losses
            loss = objective(losses, common)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, common.clip_norm)
        optimiser.step()
        for name, value in {"loss": loss, **{f"losses.{k}": v for k, v in losses.items()}}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(rows)
    return {name: total / len(train.store) for name, total in sums.items()}


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}


def _after_training(
    model: Model, valid: Views, cells: Cells, modalities: list[str], batch_size: int, device: str
) -> dict[str, Any]:
    """Calibration over the selection cells, and each modality's trust anchors: median r clean and under noise 1."""
    fitted = calibration(predictions(model, valid, cells.selection, batch_size, device))
    clean = predictions(model, valid, cells.clean, batch_size, device)["r"]
    worthless = predictions(model, valid, cells.worthless, batch_size, device)["r"]
    trust: dict[str, Any] = {}
    if clean is not None and worthless is not None:
        for place, modality in enumerate(modalities):
            low, high = float(np.median(worthless[..., place])), float(np.median(clean[..., place]))
            trust[modality] = {"clean": high, "worthless": low, "rescaled": low < high}
            if low >= high:
                log.info(
                    "trust in %s is r itself: clean clips have median r %.3f, worthless ones %.3f",
                    modality,
                    high,
                    low,
                )
    return {"calibration": fitted, "trust": trust}
