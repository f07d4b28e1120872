"""What a training step, a single prediction and further experts cost: `python benchmarks/model.py`, three minutes.

One core. Batches of CMU-MOSEI's shape, every clip at full length, and of the sample corpus's. A step sees one view of
each clip, so a step's ratio is that of a view.
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

from qamoe.config import params as parameters
from qamoe.config.block import Block
from qamoe.data.batch import Batch
from qamoe.models import text_encoder_frozen
from qamoe.models.factory import block_of
from qamoe.models.moe import Experts

SAMPLE = {"text": 15, "audio": 60, "vision": 15}  # frames of the sample corpus's longer clips


def main() -> None:
    params = parameters.load(Path("params.yaml"))
    sizes = params.models.encoders.model_dump(exclude={"text"})
    if (sizes, block_of(params.models, "qamoe"), block_of(params.models, "concat")) != (
        shapes.ENCODERS.model_dump(exclude={"text"}),
        shapes.QAMOE,
        shapes.CONCAT,
    ):
        sys.exit("params.yaml has other sizes than benchmarks/shapes.py; make them equal first.")
    torch.set_num_threads(1)
    steps("MOSEI's shape", shapes.encoded(16), rounds=9)
    steps("MOSEI's shape", shapes.encoded(4), rounds=3, mult=True)
    steps("sample corpus's shape", cut(shapes.encoded(32), SAMPLE), rounds=50)
    one_clip()
    kept_for_the_gradient()
    graphs()


def cut(batch: Batch, frames: dict[str, int]) -> Batch:
    """The first frames of each modality alone."""
    x = {m: batch.x[m][:, :length].contiguous() for m, length in frames.items()}
    return batch.with_x(**x).with_mask(**{m: batch.mask[m][:, :length] for m, length in frames.items()})


def steps(name: str, batch: Batch, rounds: int, *, mult: bool = False) -> None:
    """Training steps in alternation, by the processor's time: QA-MoE's and MulT's, or QA-MoE's, concatenation's and
    QA-MoE's of twice the experts."""
    assert batch.target is not None
    target = batch.target
    sides = {"qamoe": training("qamoe", shapes.QAMOE, batch)}
    here = f"model, {name}, {len(batch)} clips"
    if mult:  # takes gigabytes for a larger batch
        reference = MulT(shapes.FEATURES)
        sides["mult"] = shapes.stepping(reference, lambda: (reference(batch.x) - target).abs().mean())
        taken = alternated(sides, rounds, warm=1, clock=time.process_time)
        figure(f"{here}: MulT's step by QA-MoE's", ratio(taken, "mult", "qamoe"), "times", at_least=5)
        return
    sides["concat"] = training("concat", shapes.CONCAT, batch)
    sides["doubled"] = training("qamoe", shapes.QAMOE.model_copy(update={"experts": 2 * shapes.QAMOE.experts}), batch)
    taken = alternated(sides, rounds, clock=time.process_time)
    figure(f"{here}: QA-MoE's step", milliseconds(taken["qamoe"]), "ms")
    figure(f"{here}: QA-MoE's step by concatenation's", ratio(taken, "qamoe", "concat"), "times", at_most=1.25)
    figure(f"{here}: step with 16 experts by that with 8", ratio(taken, "doubled", "qamoe"), "times", at_most=1.15)


def training(name: str, block: Block, batch: Batch) -> Callable[[], None]:
    """What makes a training step of a fresh model on a batch."""
    network = shapes.model(name, block)
    return shapes.stepping(network, partial(loss, network, batch))


def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
    return shapes.objective(shapes.losses(network, batch))


@torch.no_grad()
def one_clip() -> None:
    """One clip at a time: from features as the model reads them, and the frozen text encoder's share before that."""
    network = shapes.model("qamoe", shapes.QAMOE).eval()
    whole = shapes.encoded(1)
    short = cut(whole, SAMPLE)
    ids = shapes.frames(1)
    few = cut(ids, SAMPLE)
    sides: dict[str, Callable[[], object]] = {
        "MOSEI's shape": lambda: network(whole).value,
        "sample corpus's shape": lambda: network(short).value,
        "read 50": lambda: text_encoder_frozen.encode(ids.x["text"], ids.mask["text"]),
        "read 15": lambda: text_encoder_frozen.encode(few.x["text"], few.mask["text"]),
    }
    taken = alternated(sides, 60, warm=5)
    for name in ("MOSEI's shape", "sample corpus's shape"):
        figure(f"model: a single clip from features, {name}, p50", milliseconds(taken[name]), "ms", at_most=5)
    for tokens in (50, 15):
        figure(f"model: MiniLM's states of {tokens} new tokens, p50", milliseconds(taken[f"read {tokens}"]), "ms")


def kept_for_the_gradient() -> None:
    """Bytes that the experts keep for the backward pass, with 8 and with 64 of them and the same three active."""
    found = {}
    for experts in (8, 64):
        mixture = Experts(shapes.ENCODERS.width, shapes.QAMOE.hidden, experts)
        own, sizes = {p.data_ptr() for p in mixture.parameters()}, []
        weights = torch.zeros(32, 3, experts)
        weights[..., : shapes.QAMOE.active] = 1 / shapes.QAMOE.active
        x = torch.randn(32, 3, shapes.ENCODERS.width, requires_grad=True)

        def keep(saved: torch.Tensor, own: set[int] = own, sizes: list[int] = sizes) -> torch.Tensor:
            if saved.data_ptr() not in own:
                sizes.append(saved.nbytes)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            mixture(x, weights, shapes.QAMOE.active)
        found[experts] = sum(sizes)
    figure("model: memory kept by 8 experts, 3 active, 32 clips", found[8] / 2**20, "MiB")
    figure("model: memory kept by 64 experts by that of 8", found[64] / found[8], "times", at_most=1.1)


def graphs() -> None:
    """Graph breaks that torch.compile meets in a training pass."""
    batch, breaks = shapes.encoded(2), 0
    for model, block in (("qamoe", shapes.QAMOE), ("concat", shapes.CONCAT)):
        found = torch._dynamo.explain(shapes.model(model, block))(batch)
        breaks += found.graph_break_count
    figure("model: graph breaks under torch.compile", breaks, at_most=0)


if __name__ == "__main__":
    main()
