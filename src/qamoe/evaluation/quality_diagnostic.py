"""Does a model need the right r for the right clip? The diagnostic of Moon et al. (INTERSPEECH 2026, arXiv 2606.26473).

Model and inputs are frozen, and each modality's r is exchanged between the clips that have the modality, within one
draw of slice mixed. Every intervention keeps the values of r and changes only whose they are:

- native: each clip has its own r
- permuted: each clip has the r of another
- corruption: r falls as the injected severity rises. A positive control
- correctness: r is in the order of how right the prediction from that modality alone is. An upper control, not a
  method, because it reads the target

Our decision: the controls give out the model's own values of r by rank. r is continuous, and how the published controls
scale theirs is not known in detail.
"""

import numpy as np
import pandas as pd

from qamoe.evaluation.metrics import classes_of, labels_of
from qamoe.evaluation.quality_permutation import MixedDraw
from qamoe.evaluation.summary import INTERVENTIONS
from qamoe.models.calibration import present_labels
from qamoe.models.checkpoint import Trained
from qamoe.rng import MODALITIES


def exchanged(r: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return r (N,) with each value moved to the next place of a random circle; from N = 2 on, none stays."""
    circle = random.permutation(len(r))
    moved = np.empty_like(r)
    moved[circle] = np.roll(r[circle], 1)
    return moved


def in_order_of(key: np.ndarray, r: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the values of r (N,) in the order of key (N,): the smallest where key is smallest; ties at random."""
    shuffled = random.permutation(len(r))
    ordered = np.empty_like(r)
    ordered[shuffled[np.argsort(key[shuffled], kind="stable")]] = np.sort(r)
    return ordered


def diagnose(trained: Trained, draw: MixedDraw, permutations: int, seed: int) -> pd.DataFrame:
    """Predict a draw of mixed under every intervention, the permuted one `permutations` times.

    Returns the rows of diagnostic.parquet: clip, target, prediction and the r that was given. Random numbers depend on
    seed, draw, modality, intervention and number alone, so they are the same for all models.
    """
    modalities = trained.config["modalities"]
    r = draw.rows[[f"r_{m}" for m in modalities]].to_numpy(np.float32)
    keys = {
        "corruption": -draw.rows[[f"severity_{m}" for m in modalities]].to_numpy(float),
        "correctness": np.stack([_rightness(trained, draw, row) for row in np.eye(len(modalities))], 1),
    }
    tables = []
    for number, name in [(0, "native"), *((n, "permuted") for n in range(permutations)), *((0, k) for k in keys)]:
        given = r.copy()
        for index, modality in enumerate(modalities):
            stream = (MODALITIES.index(modality), INTERVENTIONS.index(name), number)
            random = np.random.default_rng([seed, draw.number, *stream])
            has = _present(draw, modality)
            if name == "permuted":
                given[has, index] = exchanged(r[has, index], random)
            elif name in keys:
                given[has, index] = in_order_of(keys[name][has, index], r[has, index], random)
        columns = draw.under(trained, given)
        shown = columns[["prediction", *classes_of(columns), *labels_of(columns), *(f"r_{m}" for m in modalities)]]
        clips = draw.rows[["clip_id", "source", "slice", "cell", "draw", "target"]]
        tables.append(clips.assign(intervention=name, permutation=number).join(shown))
    return pd.concat(tables, ignore_index=True)


def _present(draw: MixedDraw, modality: str) -> np.ndarray:
    """Return which clips (N,) have frames of a modality, and are not told by an empty mask that they have none."""
    return (draw.rows[f"frames_{modality}"] > 0).to_numpy() & draw.present[modality].numpy()[draw.sort]


def _rightness(trained: Trained, draw: MixedDraw, quality: np.ndarray) -> np.ndarray:
    """Return how right each clip (N,) is predicted when all clips have the r of `quality` (M,).

    That is minus the absolute error, or the probability of the target's class, or the mean one of the right labels.
    """
    columns = draw.under(trained, np.tile(quality, (len(draw.rows), 1)))
    target = draw.rows["target"].to_numpy()
    if classes := classes_of(columns):
        return columns[classes].to_numpy(float)[np.arange(len(target)), target.astype(int)]
    if labels := labels_of(columns):
        presence = columns[labels].to_numpy(float)
        return np.asarray(np.where(present_labels(target, len(labels)), presence, 1 - presence).mean(1))
    return -np.abs(columns["prediction"].to_numpy(float) - target)
