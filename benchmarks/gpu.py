"""Measure the model on a GPU: `PYTHONPATH=src python3 benchmarks/gpu.py`, which takes a minute.

Uses batches of CMU-MOSEI's shape, with every clip at full length, already on the device. Needs only torch, numpy,
pandas, pyarrow and pydantic. Without a GPU it measures the CPU. `--short` tests the script in seconds, with clips of a
fifth of the length and without compiling, and stores no figure.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import figures
import shapes
import torch
from figures import alternated, figure, machine, milliseconds, ratio
from mult import MulT
from reading import write_store

from qamoe.data.arrow_store import Store
from qamoe.data.batch import Batch
from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.degradation.views import apply, uniform_view
from qamoe.rng import MODALITIES

SECONDS = 60
LARGE = shapes.ENCODERS.model_copy(update={"width": 256, "layers": 4, "heads": 8})
STARTED = time.monotonic()


def left() -> float:
    """Return the seconds until the script should end."""
    return SECONDS - (time.monotonic() - STARTED)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the model on a GPU, or on the CPU without one.")
    parser.add_argument("--short", action="store_true", help="only test the script; store no figure")
    short = parser.parse_args().short
    if short:
        figures.RESULTS = Path(os.devnull)
        shapes.FRAMES.update({modality: length // 5 for modality, length in shapes.FRAMES.items()})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    print(f"{torch.cuda.get_device_name() if on_gpu else 'no GPU'}; {machine()}", flush=True)
    torch.set_num_threads(1 if not on_gpu else torch.get_num_threads())
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    rounds = 1 if short else 30 if on_gpu else 2
    for clips in (32, 256) if on_gpu else (4,):
        steps(clips, device, rounds if clips < 256 else max(rounds // 3, 1), wait)
    degradation(32 if on_gpu else 4, device, rounds, wait)
    large(64 if on_gpu else 2, device, 10 if on_gpu and not short else 1, wait)
    memory(32 if on_gpu else 4, device)
    one_clip(device, wait)
    for bfloat16 in (False, True):
        if not short and left() > 20:
            compiled(32 if on_gpu else 4, device, rounds, wait, bfloat16=bfloat16)
    figure("gpu: seconds of this script", time.monotonic() - STARTED, "s")


def steps(clips: int, device: str, rounds: int, wait: Callable[[], object]) -> None:
    """Measure training steps of QA-MoE, concatenation, QA-MoE with twice the experts and MulT, in alternation."""
    batch = shapes.encoded(clips, device)
    assert batch.target is not None
    target = batch.target
    sides = {}
    doubled = shapes.QAMOE.model_copy(update={"experts": 2 * shapes.QAMOE.experts})
    for name, model, block in (
        ("concat", "concat", shapes.CONCAT),
        ("qamoe", "qamoe", shapes.QAMOE),
        ("doubled", "qamoe", doubled),
    ):
        network = shapes.model(model, block, device)
        sides[name] = shapes.stepping(network, partial(_loss, network, batch), device)
    network = shapes.model("qamoe", shapes.QAMOE, device)
    sides["bfloat16"] = shapes.stepping(network, partial(_loss, network, batch), device, bfloat16=True)
    mult = MulT(shapes.FEATURES).to(device)
    sides["mult"] = shapes.stepping(mult, lambda: (mult(batch.x) - target).abs().mean(), device)
    taken = alternated(sides, rounds, wait=wait)
    prefix = f"gpu: {clips} clips"
    figure(f"{prefix}: QA-MoE, float32", 1 / statistics.median(taken["qamoe"]), "steps/s")
    figure(f"{prefix}: QA-MoE, bfloat16", 1 / statistics.median(taken["bfloat16"]), "steps/s")
    figure(f"{prefix}: QA-MoE, clips trained on", clips / statistics.median(taken["qamoe"]), "clips/s")
    figure(f"{prefix}: float32 step by bfloat16 step", ratio(taken, "qamoe", "bfloat16"), "times")
    figure(f"{prefix}: QA-MoE step by concatenation's", ratio(taken, "qamoe", "concat"), "times", at_most=1.25)
    figure(f"{prefix}: MulT's step by QA-MoE's", ratio(taken, "mult", "qamoe"), "times", at_least=5)
    figure(f"{prefix}: step with twice the experts", ratio(taken, "doubled", "qamoe"), "times", at_most=1.15)


def _loss(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return shapes.objective(shapes.losses(network, batch))


def degradation(clips: int, device: str, rounds: int, wait: Callable[[], object]) -> None:
    """Measure the degradation of a batch against a training step, and compare its bits with those of the CPU."""
    batch, cpu_batch = shapes.frames(clips, device), shapes.frames(clips)
    network, encoded = shapes.model("qamoe", shapes.QAMOE, device), shapes.encoded(clips, device)
    references, cpu_references = shapes.references(device), shapes.references()
    taken = alternated(
        {
            "degrade": lambda: apply(batch, shapes.TRAINING, references),
            "step": shapes.stepping(network, partial(_loss, network, encoded), device),
        },
        rounds,
        wait=wait,
    )
    figure("gpu: degradation, share of a training step", 100 * ratio(taken, "degrade", "step"), "%", at_most=10)
    figure("gpu: degradation of a batch", milliseconds(taken["degrade"]), "ms")
    on_device, on_cpu = apply(batch, shapes.TRAINING, references), apply(cpu_batch, shapes.TRAINING, cpu_references)
    same = torch.equal(on_device[1].cpu(), on_cpu[1]) and all(
        torch.equal(on_device[0].x[m].cpu(), on_cpu[0].x[m])
        and torch.equal(on_device[0].mask[m].cpu(), on_cpu[0].mask[m])
        for m in on_cpu[0].x
    )
    figure("gpu: degradation, the CPU's bits (1 yes)", float(same and same_from_store(device)), at_least=1)


def same_from_store(device: str) -> bool:
    """Return whether DegradedSplit gives the same bits on the device as on the CPU, also for swaps."""
    views = (shapes.TRAINING, uniform_view("swap", 0.5, 7, 0), uniform_view("noise", 0.5, 7, 0))
    rows, same = list(range(0, 60, 4)), True
    with tempfile.TemporaryDirectory(prefix="qamoe-gpu-") as name:
        short = {m: length // 10 for m, length in shapes.FRAMES.items()}
        write_store(Path(name) / "clips.arrow", 60, short)
        store = Store(Path(name) / "clips.arrow")
        on_device, on_cpu = (
            DegradedSplit(store, views, MODALITIES, shapes.references(), None, where) for where in (device, "cpu")
        )
        for view in range(len(views)):
            (batch, lost, _), (cpu_batch, cpu_lost, _) = on_device.degraded(view, rows), on_cpu.degraded(view, rows)
            pairs = [(lost, cpu_lost), *((batch.x[m], cpu_batch.x[m]) for m in MODALITIES)]
            same = same and all(torch.equal(tensor.cpu(), cpu_tensor) for tensor, cpu_tensor in pairs)
    return same


def large(clips: int, device: str, rounds: int, wait: Callable[[], object]) -> None:
    """Measure the speed-up by bfloat16 for a model that is large enough to use the whole GPU."""
    batch = shapes.encoded(clips, device)
    sides = {}
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        network = shapes.model("qamoe", shapes.QAMOE, device, LARGE)
        sides[name] = shapes.stepping(network, partial(_loss, network, batch), device, bfloat16=bfloat16)
    taken = alternated(sides, rounds, wait=wait)
    name = f"gpu: width {LARGE.width}, {LARGE.layers} layers, {clips} clips"
    figure(f"{name}: float32", 1 / statistics.median(taken["float32"]), "steps/s")
    figure(f"{name}: float32 step by bfloat16 step", ratio(taken, "float32", "bfloat16"), "times")


def memory(clips: int, device: str) -> None:
    """Measure the peak memory of a bfloat16 step with 8 and with 64 experts, of which three are active."""
    if device != "cuda":
        return
    batch = shapes.encoded(clips, device)
    peaks = {}
    for experts in (shapes.QAMOE.experts, 8 * shapes.QAMOE.experts):
        network = shapes.model("qamoe", shapes.QAMOE.model_copy(update={"experts": experts}), device)
        step = shapes.stepping(network, partial(_loss, network, batch), device, bfloat16=True)
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[experts] = torch.cuda.max_memory_allocated() - before
        del network, step
        torch.cuda.empty_cache()
        figure(f"gpu: {clips} clips: a bfloat16 step's memory, {experts} experts", peaks[experts] / 2**20, "MiB")


@torch.no_grad()
def one_clip(device: str, wait: Callable[[], object]) -> None:
    """Measure the latency of a single clip from features."""
    network, batch = shapes.model("qamoe", shapes.QAMOE, device).eval(), shapes.encoded(1, device)
    taken = alternated({"clip": lambda: network(batch).value}, 50, wait=wait)
    figure("gpu: a single clip from features, p50", milliseconds(taken["clip"]), "ms")


def compiled(clips: int, device: str, rounds: int, wait: Callable[[], object], *, bfloat16: bool) -> None:
    """Measure torch.compile against eager mode; fullgraph reports graph breaks. Both use torch's random numbers."""
    batch, precision = shapes.encoded(clips, device), "bfloat16" if bfloat16 else "float32"
    eager = shapes.model("qamoe", shapes.QAMOE, device)
    sides = {"eager": shapes.stepping(eager, lambda: shapes.objective(eager(batch).losses), device, bfloat16=bfloat16)}
    network = shapes.model("qamoe", shapes.QAMOE, device)
    compiled_network = torch.compile(network, fullgraph=True)
    sides["compiled"] = shapes.stepping(
        network, lambda: shapes.objective(compiled_network(batch).losses), device, bfloat16=bfloat16
    )
    begin = time.monotonic()
    try:
        sides["compiled"]()
    except Exception as error:
        print(f"gpu: torch.compile, {precision}: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}")
        return
    figure(f"gpu: compiling, {precision}", time.monotonic() - begin, "s")
    taken = alternated(sides, rounds, wait=wait)
    figure(f"gpu: {clips} clips: compiled, {precision}", 1 / statistics.median(taken["compiled"]), "steps/s")
    figure(f"gpu: {clips} clips: eager step by compiled, {precision}", ratio(taken, "eager", "compiled"), "times")


if __name__ == "__main__":
    main()
