"""Measure the degradation of a training batch, and check its bits: `python benchmarks/degradation.py`.

Takes a minute on one core, with the training views of params.yaml and batches of CMU-MOSEI's and the sample corpus's
shape. The bits must be equal on every machine, so the inputs are made from integers. benchmarks/gpu.py compares the
bits of a GPU with those of the CPU.
"""

import hashlib
import time
from functools import partial

import shapes
import torch
from figures import alternated, figure, milliseconds, ratio
from model import SAMPLE, cut, loss
from torch import Tensor

from qamoe.data.batch import Batch
from qamoe.degradation.features import KINDS
from qamoe.degradation.views import apply, uniform_view
from qamoe.rng import Draws

DIGEST = "3506f9c0239d48707114bd1889b70a487b7ac509b404bff8d8fd376198b097f3"


def main() -> None:
    torch.set_num_threads(1)
    for name, clips, encoded, rounds in (
        ("MOSEI's shape", shapes.frames(32), shapes.encoded(32), 7),
        ("sample corpus's shape", cut(shapes.frames(32), SAMPLE), cut(shapes.encoded(32), SAMPLE), 40),
    ):
        share(name, clips, encoded, rounds)
    sha256 = digest()
    figure("degradation: the bits of every machine (1 yes)", float(sha256 == DIGEST), at_least=1)
    if sha256 != DIGEST:
        print(f"SHA-256 {sha256}")


def share(name: str, clips: Batch, encoded: Batch, rounds: int) -> None:
    """Measure the degradation of a batch against a training step on it."""
    network, references = shapes.model("qamoe", shapes.QAMOE), shapes.references()
    sides = {
        "degrade": lambda: apply(clips, shapes.TRAINING, references),
        "step": shapes.stepping(network, partial(loss, network, encoded)),
    }
    taken = alternated(sides, rounds, clock=time.process_time)
    prefix = f"degradation, {name}, {len(clips)} clips"
    figure(f"{prefix}: a training view", milliseconds(taken["degrade"]), "ms")
    figure(f"{prefix}: share of QA-MoE's step", 100 * ratio(taken, "degrade", "step"), "%", at_most=10)


def digest() -> str:
    """Return the SHA-256 of a batch under every kind of degradation and under a training view."""
    batch = from_integers(shapes.frames(8))
    references, result = shapes.references(), hashlib.sha256()

    def partner(modality: str, draws: Draws) -> tuple[Tensor, Tensor]:
        return batch.x[modality].roll(1, 0), batch.mask[modality].roll(1, 0)

    for view in (shapes.TRAINING, *(uniform_view(kind, 0.37, 7, 1) for kind in KINDS)):
        degraded, lost, _ = apply(batch, view, references, partner)
        for part in (*degraded.x.values(), *degraded.mask.values(), lost):
            result.update(part.contiguous().numpy().tobytes())
    return result.hexdigest()


def from_integers(batch: Batch) -> Batch:
    """Return the batch with frames and ids that are exact on every machine, and clips of several lengths."""
    x: dict[str, Tensor] = {}
    for m, frames in batch.x.items():
        drawn = Draws(1, batch.keys, m, "state", 1).words(frames[0].numel()).view(frames.shape)
        x[m] = drawn % shapes.VOCABULARY if m == "text" else (drawn >> 8).float() * 2.0**-23 - 1
    lengths = torch.arange(1, len(batch) + 1)[:, None] / len(batch)
    mask = {m: torch.arange(valid.shape[1]) < lengths * valid.shape[1] for m, valid in batch.mask.items()}
    return batch.with_x(**x).with_mask(**mask)


if __name__ == "__main__":
    main()
