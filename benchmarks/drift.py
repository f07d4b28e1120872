"""How often drift alarms on fresh clips, and on damaged ones: `python benchmarks/drift.py artifacts/train/qamoe/1`.

Test sources were in no training, so their clips are fresh clips of the same corpus. Each look takes some sources at
random. Prints the share of alarms, clean, then under noise at severity .5.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import figure

from qamoe.data.arrow_store import Store
from qamoe.degradation.views import uniform_view
from qamoe.models import checkpoint
from qamoe.pipeline.promote import described, reference_of
from qamoe.registry import drift


def alarms(reference: pd.DataFrame, clips: pd.DataFrame, sources: np.ndarray, looks: int, at_once: int) -> int:
    """How many of `looks` at the clips of `at_once` random sources alarm."""
    names, count = np.unique(sources), 0
    for look in range(looks):
        chosen = np.random.default_rng([1, look]).choice(names, at_once, replace=False)
        seen = clips[np.isin(sources, chosen)].reset_index(drop=True)
        count += drift.drift(reference, seen, seed=look).alarm
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--sources", type=int, default=5, help="in each look")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.checkpoint.parents[2]
    trained, store = checkpoint.load(asked.checkpoint), Store(out / "preprocess" / "test.arrow")
    reference, sources = reference_of(trained, out), np.array(store.sources)
    for name, view, looks in (
        ("clean", uniform_view("clean", 0.0, 7, 0), 100),
        ("noise .5", uniform_view("noise", 0.5, 7, 0), 20),
    ):
        clips = described(trained, store, view)
        count = alarms(reference, clips, sources, looks, asked.sources)
        figure(f"drift: alarms in {looks} looks, {name}", count)


if __name__ == "__main__":
    main()
