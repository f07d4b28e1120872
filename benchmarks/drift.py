"""Count drift alarms on clean and on degraded clips: `python benchmarks/drift.py artifacts/train/qamoe/1`.

The clips of the test split are new clips of the same corpus. Each test takes the clips of some random sources. Prints
the number of alarms for clean clips, and for noise at severity 0.5.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import figure

from qamoe.data.arrow_store import Store
from qamoe.degradation.views import uniform_view
from qamoe.errors import exit_on_user_error
from qamoe.models import checkpoint
from qamoe.pipeline.promote import describe_split, drift_reference
from qamoe.registry import drift


def alarms(reference: pd.DataFrame, clips: pd.DataFrame, sources: np.ndarray, tests: int, sources_per_test: int) -> int:
    """Return the number of alarms in drift tests of the clips of random sources."""
    names, count = np.unique(sources), 0
    for number in range(tests):
        chosen = np.random.default_rng([1, number]).choice(names, sources_per_test, replace=False)
        new = clips[np.isin(sources, chosen)].reset_index(drop=True)
        count += drift.drift(reference, new, seed=number).alarm
    return count


def measure(folder: Path, sources_per_test: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    out = folder.resolve().parents[2]
    trained, store = checkpoint.load(folder), Store(out / "preprocess" / "test.arrow")
    reference, sources = drift_reference(trained, out), np.array(store.sources)
    for name, view, tests in (
        ("clean", uniform_view("clean", 0.0, 7, 0), 100),
        ("noise .5", uniform_view("noise", 0.5, 7, 0), 20),
    ):
        clips = describe_split(trained, store, view)
        count = alarms(reference, clips, sources, tests, sources_per_test)
        figure(f"drift: alarms in {tests} looks, {name}", count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a training folder, such as artifacts/train/qamoe/1")
    parser.add_argument("--sources", type=int, default=5, help="number of sources per test")
    options = parser.parse_args()
    with exit_on_user_error("drift.py"):
        measure(options.checkpoint, options.sources)


if __name__ == "__main__":
    main()
