"""Whose modality a swapped clip gets: another clip of the same split, of another source where there is one."""

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from qamoe.rng import Draws


class Partners:
    """The clips of a split, in any order; who is whose partner does not depend on it."""

    def __init__(self, clip_ids: Sequence[str], sources: Sequence[str]) -> None:
        self.clip_ids = clip_ids
        self.sources = sources

    @cached_property
    def _order(self) -> np.ndarray:
        """Rows in clip-id order."""
        return np.array(sorted(range(len(self.clip_ids)), key=self.clip_ids.__getitem__), np.int64)

    @cached_property
    def _own(self) -> dict[str, np.ndarray]:
        """Source -> the places of its clips in clip-id order."""
        own: dict[str, list[int]] = {}
        for place, row in enumerate(self._order):
            own.setdefault(self.sources[row], []).append(place)
        return {source: np.array(places) for source, places in own.items()}

    def of(self, rows: Collection[int], draws: Draws) -> list[int]:
        """The partner's row for each of `rows`, whose clips `draws` are for; a split of one clip has but itself.

        Element 1 of the draws chooses evenly among the candidates in clip-id order; element 0 decides whether the clip
        is swapped at all.
        """
        words = draws.words(2)[:, 1].tolist()
        partners = []
        for row, word in zip(rows, words, strict=True):
            of_source = self._own[self.sources[row]]
            if len(of_source) == len(self._order):
                of_source = of_source[self._order[of_source] == row]
            candidates = len(self._order) - len(of_source)
            chosen = (word * candidates) >> 32
            # What lies before the chosen candidate among the clip's own places is stepped over.
            chosen += int(np.searchsorted(of_source - np.arange(len(of_source)), chosen, side="right"))
            partners.append(int(self._order[min(chosen, len(self._order) - 1)]))
        return partners
