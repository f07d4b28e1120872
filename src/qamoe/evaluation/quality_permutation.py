"""Permuted quality: predict slice mixed again, each clip with the reliabilities of another clip.

If the error does not rise, the model does not use its quality. Records keep the older name "broken quality": the file
broken.parquet, the keys `<model>.broken.*` of summary.json, and the report's page.
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
    """Return the rows whose r each row of mixed gets, as row numbers (draws, clips); no row keeps its own r.

    The rows form a random circle, and each takes the r of its neighbour: one circle of all rows, or with `within` one
    circle per draw.
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
    """Predict slice mixed under permuted r; yield one table per draw, permutation and value of `within`.

    `rows` are the predictions of `cell` (slice mixed) in order of draw and clip id. In the yielded rows, `draw` is the
    number of the permutation, `within` says whether it stayed within a draw, and r and trust are the permuted ones.
    """
    modalities = trained.config["modalities"]
    r = rows[[f"r_{m}" for m in modalities]].to_numpy(np.float32)
    clips = len(split.store)
    variants = [(within, number) for within in (False, True) for number in range(permutations)]
    donors_of = {variant: donors(len(cell.views), clips, variant[1], seed, within=variant[0]) for variant in variants}
    batches, sort = batched(split.store)
    positions = np.empty(clips, np.int64)  # in clip-id order, for each clip in batch order
    positions[sort] = np.arange(clips)
    replaced = {"draw", "prediction", "variance", "routing", *(f"{v}_{m}" for v in ("r", "trust") for m in MODALITIES)}
    kept = rows[[column for column in map(str, rows) if column not in replaced and not column.startswith("p_")]]
    encodings = Encodings([trained], split, batches, cell.views, device)
    for draw, view in enumerate(cell.views):
        rows_of_draw = kept.iloc[draw * clips : (draw + 1) * clips].reset_index(drop=True)
        encoded = encodings.of(view)
        for (within, number), donor in donors_of.items():
            quality = torch.from_numpy(r[donor[draw, positions]])
            columns = predicted(trained, *of_checkpoint(encoded, 0), quality)
            yield rows_of_draw.assign(draw=number, within=within).join(
                pd.DataFrame(columns).iloc[sort].reset_index(drop=True)
            )
