"""Measure a training step, a single prediction and the cost of more experts: `python benchmarks/model.py`.

Takes three minutes on one core. Uses batches of CMU-MOSEI's shape, with every clip at full length, and of the sample
corpus's shape. A step sees one view of each clip, so the ratio of two steps is also that of two views.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import shapes
import torch
from figures import alternated, figure, milliseconds, ratio
from mult import MulT
from torch import nn

from qamoe.config import params as params_file
from qamoe.config.block import Block
from qamoe.data.batch import Batch
from qamoe.models import text_encoder_frozen
from qamoe.models.factory import block_of
from qamoe.models.moe import Experts

SAMPLE = {"text": 15, "audio": 60, "vision": 15}  # frames of the longer clips of the sample corpus


def main() -> None:
    params = params_file.load(Path("params.yaml"))
    sizes = params.models.encoders.model_dump(exclude={"text"})
    if (sizes, block_of(params.models, "qamoe"), block_of(params.models, "concat")) != (
        shapes.ENCODERS.model_dump(exclude={"text"}),
        shapes.QAMOE,
        shapes.CONCAT,
    ):
        sys.exit("model.py: the sizes in params.yaml and benchmarks/shapes.py differ; make them equal")
    torch.set_num_threads(1)
    steps("MOSEI's shape", shapes.encoded(16), rounds=9)
    steps("MOSEI's shape", shapes.encoded(4), rounds=3, mult=True)
    steps("sample corpus's shape", cut(shapes.encoded(32), SAMPLE), rounds=50)
    one_clip()
    memory_for_backward()
    graphs()


def cut(batch: Batch, frames: dict[str, int]) -> Batch:
    """Return the batch with only the first frames of each modality."""
    x = {m: batch.x[m][:, :length].contiguous() for m, length in frames.items()}
    return batch.with_x(**x).with_mask(**{m: batch.mask[m][:, :length] for m, length in frames.items()})


def steps(name: str, batch: Batch, rounds: int, *, mult: bool = False) -> None:
    """Measure training steps in alternation, by processor time.

    Compares QA-MoE with MulT if `mult` is set, otherwise QA-MoE with concatenation and QA-MoE with twice the experts.
    """
    assert batch.target is not None
    target = batch.target
    sides = {"qamoe": training("qamoe", shapes.QAMOE, batch)}
    prefix = f"model, {name}, {len(batch)} clips"
    if mult:  # a larger batch would take gigabytes
        reference = MulT(shapes.FEATURES)
        sides["mult"] = shapes.stepping(reference, lambda: (reference(batch.x) - target).abs().mean())
        taken = alternated(sides, rounds, warm=1, clock=time.process_time)
        figure(f"{prefix}: MulT's step by QA-MoE's", ratio(taken, "mult", "qamoe"), "times", at_least=5)
        return
    sides["concat"] = training("concat", shapes.CONCAT, batch)
    sides["doubled"] = training("qamoe", shapes.QAMOE.model_copy(update={"experts": 2 * shapes.QAMOE.experts}), batch)
    taken = alternated(sides, rounds, clock=time.process_time)
    figure(f"{prefix}: QA-MoE's step", milliseconds(taken["qamoe"]), "ms")
    figure(f"{prefix}: QA-MoE's step by concatenation's", ratio(taken, "qamoe", "concat"), "times", at_most=1.25)
    figure(f"{prefix}: step with 16 experts by that with 8", ratio(taken, "doubled", "qamoe"), "times", at_most=1.15)


def training(name: str, block: Block, batch: Batch) -> Callable[[], None]:
    """Return a function that makes a training step of a new model on a batch."""
    network = shapes.model(name, block)
    return shapes.stepping(network, partial(loss, network, batch))


def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
    return shapes.objective(shapes.losses(network, batch))


@torch.no_grad()
def one_clip() -> None:
    """Measure the prediction of one clip from the features that the model reads, and its frozen text encoder."""
    network = shapes.model("qamoe", shapes.QAMOE).eval()
    long = shapes.encoded(1)
    short = cut(long, SAMPLE)
    ids = shapes.frames(1)
    short_ids = cut(ids, SAMPLE)
    sides: dict[str, Callable[[], object]] = {
        "MOSEI's shape": lambda: network(long).value,
        "sample corpus's shape": lambda: network(short).value,
        "encode 50": lambda: text_encoder_frozen.encode(ids.x["text"], ids.mask["text"]),
        "encode 15": lambda: text_encoder_frozen.encode(short_ids.x["text"], short_ids.mask["text"]),
    }
    taken = alternated(sides, 60, warm=5)
    for name in ("MOSEI's shape", "sample corpus's shape"):
        figure(f"model: a single clip from features, {name}, p50", milliseconds(taken[name]), "ms", at_most=5)
    for tokens in (50, 15):
        figure(f"model: MiniLM's states of {tokens} new tokens, p50", milliseconds(taken[f"encode {tokens}"]), "ms")


def memory_for_backward() -> None:
    """Measure the bytes that 8 and 64 experts, three of them active, save for the backward pass."""
    saved_bytes = {}
    for experts in (8, 64):
        mixture = Experts(shapes.ENCODERS.width, shapes.QAMOE.hidden, experts)
        parameters = {p.data_ptr() for p in mixture.parameters()}
        sizes: list[int] = []
        weights = torch.zeros(32, 3, experts)
        weights[..., : shapes.QAMOE.active] = 1 / shapes.QAMOE.active
        x = torch.randn(32, 3, shapes.ENCODERS.width, requires_grad=True)

        def count(saved: torch.Tensor, excluded: set[int] = parameters, sizes: list[int] = sizes) -> torch.Tensor:
            if saved.data_ptr() not in excluded:
                sizes.append(saved.nbytes)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            mixture(x, weights, shapes.QAMOE.active)
        saved_bytes[experts] = sum(sizes)
    figure("model: memory kept by 8 experts, 3 active, 32 clips", saved_bytes[8] / 2**20, "MiB")
    figure("model: memory kept by 64 experts by that of 8", saved_bytes[64] / saved_bytes[8], "times", at_most=1.1)


def graphs() -> None:
    """Count the graph breaks of torch.compile in a training pass."""
    batch, breaks = shapes.encoded(2), 0
    for model, block in (("qamoe", shapes.QAMOE), ("concat", shapes.CONCAT)):
        explanation = torch._dynamo.explain(shapes.model(model, block))(batch)
        breaks += explanation.graph_break_count
    figure("model: graph breaks under torch.compile", breaks, at_most=0)


if __name__ == "__main__":
    main()
