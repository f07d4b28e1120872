"""Choose the partner of a swapped clip: another clip of the same split, from another source if possible."""

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from qamoe.rng import Draws


class SwapPartners:
    """Swap partners in a split. They do not depend on the order of its clips."""

    def __init__(self, clip_ids: Sequence[str], sources: Sequence[str]) -> None:
        self.clip_ids = clip_ids
        self.sources = sources

    @cached_property
    def _order(self) -> np.ndarray:
        """Row numbers in clip-id order."""
        return np.array(sorted(range(len(self.clip_ids)), key=self.clip_ids.__getitem__), np.int64)

    @cached_property
    def _positions_by_source(self) -> dict[str, np.ndarray]:
        """Source -> positions of its clips in clip-id order."""
        positions: dict[str, list[int]] = {}
        for position, row in enumerate(self._order):
            positions.setdefault(self.sources[row], []).append(position)
        return {source: np.array(of_source) for source, of_source in positions.items()}

    def of(self, rows: Collection[int], draws: Draws) -> list[int]:
        """Return the partner's row for each of `rows`. In a split of one clip, that clip is its own partner.

        `draws` belong to the clips of `rows`. Element 1 of the draws chooses uniformly among the candidates in clip-id
        order; element 0 decides whether the clip is swapped.
        """
        words = draws.words(2)[:, 1].tolist()
        partners = []
        for row, word in zip(rows, words, strict=True):
            excluded = self._positions_by_source[self.sources[row]]
            if len(excluded) == len(self._order):
                excluded = excluded[self._order[excluded] == row]
            candidates = len(self._order) - len(excluded)
            chosen = (word * candidates) >> 32
            # Skip the positions of the clip's own source before the chosen candidate.
            chosen += int(np.searchsorted(excluded - np.arange(len(excluded)), chosen, side="right"))
            partners.append(int(self._order[min(chosen, len(self._order) - 1)]))
        return partners
