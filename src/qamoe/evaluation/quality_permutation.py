"""Permuted quality: predict slice mixed again, each clip with the reliabilities of another clip.

If the error does not rise, the model does not use its quality. Records keep the older name "broken quality": the file
broken.parquet, the keys `<model>.broken.*` of summary.json, and the report's page.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.evaluation.encoding_cache import Encodings, of_checkpoint
from qamoe.evaluation.metrics import classes_of, labels_of
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


def all_donors(draws: int, clips: int, permutations: int, seed: int) -> dict[tuple[bool, int], np.ndarray]:
    """Return `donors` of every permutation across and within draws, by (within, number of the permutation)."""
    return {
        (within, number): donors(draws, clips, number, seed, within=within)
        for within in (False, True)
        for number in range(permutations)
    }


class MixedDraw(NamedTuple):
    """One draw of slice mixed, encoded once for every r under which it is predicted.

    `rows` are its predictions (N) in clip-id order. vectors (N, D) and present (N,), whether any frame is valid, are by
    modality and in batch order; `sort` puts them in clip-id order.
    """

    number: int
    rows: pd.DataFrame
    vectors: dict[str, Tensor]
    present: dict[str, Tensor]
    sort: np.ndarray

    def under(self, trained: Trained, r: np.ndarray) -> pd.DataFrame:
        """Return the columns of `protocol.predicted` under r (N, M); both are in clip-id order."""
        quality = np.empty(r.shape, np.float32)
        quality[self.sort] = r
        columns = predicted(trained, self.vectors, self.present, torch.from_numpy(quality))
        return pd.DataFrame(columns).iloc[self.sort].reset_index(drop=True)


def mixed_draws(
    trained: Trained, split: DegradedSplit, cell: Cell, rows: pd.DataFrame, device: str
) -> Iterator[MixedDraw]:
    """Yield the draws of `cell` (slice mixed); `rows` are its predictions in order of draw and clip id."""
    batches, sort = batched(split.store)
    encodings = Encodings([trained], split, batches, cell.views, device)
    clips = len(split.store)
    for number, view in enumerate(cell.views):
        of_draw = rows.iloc[number * clips : (number + 1) * clips].reset_index(drop=True)
        yield MixedDraw(number, of_draw, *of_checkpoint(encodings.of(view), 0), sort)


def permuted_quality(
    trained: Trained, draw: MixedDraw, r: np.ndarray, donors_of: dict[tuple[bool, int], np.ndarray]
) -> Iterator[pd.DataFrame]:
    """Predict a draw of mixed under permuted r; yield one table per permutation and value of `within`.

    r: of all rows of mixed, (draws * clips, M). donors_of: from `all_donors`. In the yielded rows, `draw` is the
    number of the permutation, and r and trust are the permuted ones.
    """
    replaced = {"draw", "prediction", "variance", "routing", *(f"{v}_{m}" for v in ("r", "trust") for m in MODALITIES)}
    replaced |= {*classes_of(draw.rows), *labels_of(draw.rows)}
    kept = [column for column in map(str, draw.rows) if column not in replaced]
    for (within, number), donor_rows in donors_of.items():
        columns = draw.under(trained, r[donor_rows[draw.number]])
        yield draw.rows[kept].assign(draw=number, within=within).join(columns)
