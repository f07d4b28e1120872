"""How often drift alarms on fresh clips, and on damaged ones: `python benchmarks/drift.py artifacts/train/qamoe/1`.

Test sources were in no training, so their clips are fresh clips of the same corpus. Each look takes some sources at
random. Prints the share of alarms, clean, then under noise at severity .5.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qamoe.degradation.views import View, alike, references
from qamoe.evaluation.spectrum import predicted
from qamoe.features.store import Store
from qamoe.records import drift
from qamoe.stages.promote import reference_of
from qamoe.training import checkpoint
from qamoe.training.checkpoint import Trained
from qamoe.training.views import Views

BATCH = 64


def described(trained: Trained, store: Store, view: View) -> pd.DataFrame:
    """The test clips under a view, as scoring describes clips."""
    modalities, stats = tuple(trained.config["modalities"]), trained.config["stats"]
    split = Views(store, (view,), modalities, references(stats), None)
    clips, found = [], []
    for start in range(0, len(store), BATCH):
        batch, _, _ = split.degraded(0, range(start, min(start + BATCH, len(store))))
        clips += [{m: batch.x[m][i][batch.mask[m][i]].numpy() for m in modalities} for i in range(len(batch))]
        present = {m: mask.any(1) for m, mask in batch.mask.items()}
        found.append(pd.DataFrame(predicted(trained, trained.vectors(batch), present)))
    return drift.with_reliability(drift.describe(clips, stats), pd.concat(found, ignore_index=True))


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
    for name, view, looks in (("clean", alike("clean", 0.0, 7, 0), 100), ("noise .5", alike("noise", 0.5, 7, 0), 20)):
        clips = described(trained, store, view)
        print(f"{name}: {alarms(reference, clips, sources, looks, asked.sources)} alarms in {looks} looks")


if __name__ == "__main__":
    main()
