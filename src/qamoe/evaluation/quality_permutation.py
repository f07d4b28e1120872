"""Permuted quality: slice mixed once more, each clip with the reliabilities of another one.

If that does not hurt, the model does not use its quality. What is recorded keeps an older name, broken quality: the
file broken.parquet, the keys `<model>.broken.*` of summary.json, and the words on the report's page.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.evaluation.encoding_cache import Encodings, of_checkpoint
from qamoe.evaluation.protocol import Cell, batched, predicted
from qamoe.models.checkpoint import Trained
from qamoe.rng import MODALITIES


def donors(draws: int, clips: int, permutation: int, seed: int, *, within: bool) -> np.ndarray:
    """Whose r each row of mixed gets, as (draws, clips) row numbers; no row keeps its own.

    The rows are put in a random circle and each takes from its neighbour: all rows in one, whose severities all
    differ, or with `within` those of each draw apart.
    """
    random = np.random.default_rng([seed, permutation, within])
    rows = np.arange(draws * clips).reshape(draws if within else 1, -1)
    donor_rows = np.empty(draws * clips, np.int64)
    for group in rows:
        circle = random.permutation(group)
        donor_rows[circle] = np.roll(circle, 1)
    return donor_rows.reshape(draws, clips)


def permuted_quality(
    trained: Trained, split: DegradedSplit, cell: Cell, rows: pd.DataFrame, permutations: int, seed: int, device: str
) -> Iterator[pd.DataFrame]:
    """Predictions of slice mixed under permuted r, a frame for each of its draws, permutations and ways.

    `rows` are the predictions of `cell` (slice mixed) in order of draw and clip id. In what is yielded `draw` is the
    number of the permutation, `within` whether it stayed within a draw, and r and trust are those that were given.
    """
    modalities = trained.config["modalities"]
    r = rows[[f"r_{m}" for m in modalities]].to_numpy(np.float32)
    clips = len(split.store)
    ways = [(within, number) for within in (False, True) for number in range(permutations)]
    donors_of = {way: donors(len(cell.views), clips, way[1], seed, within=way[0]) for way in ways}
    batches, sort = batched(split.store)
    place = np.empty(clips, np.int64)  # in clip-id order, of each clip in order of the batches
    place[sort] = np.arange(clips)
    replaced = {"draw", "prediction", "variance", "routing", *(f"{v}_{m}" for v in ("r", "trust") for m in MODALITIES)}
    kept = rows[[column for column in map(str, rows) if column not in replaced and not column.startswith("p_")]]
    encodings = Encodings([trained], split, batches, cell.views, device)
    for draw, view in enumerate(cell.views):
        here = kept.iloc[draw * clips : (draw + 1) * clips].reset_index(drop=True)
        encoded = encodings.of(view)
        for (within, number), donor in donors_of.items():
            quality = torch.from_numpy(r[donor[draw, place]])
            columns = predicted(trained, *of_checkpoint(encoded, 0), quality)
            yield here.assign(draw=number, within=within).join(pd.DataFrame(columns).iloc[sort].reset_index(drop=True))
