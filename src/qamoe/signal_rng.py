"""Counter-based random numbers for damaged media: as many as a recording has samples, in little time.

As in qamoe.rng, each draw is a function of its key alone: protocol seed, clip, kind, number and element. Here the words
are those of numpy's Philox4x64-10 (Salmon et al., SC 2011), which are the same on every machine (NEP 19). Its
distributions may change with a version, so uniform and normal numbers are made of the words here.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np

_NORMAL_BITS = 16


@cache
def normal_quantiles() -> np.ndarray:
    """Return standard normal quantiles at the 2^16 mid-points, float32, rounded to 2^-16: the same with every libm."""
    size = 1 << _NORMAL_BITS
    inverse = NormalDist().inv_cdf
    upper = np.array([round(inverse((i + 0.5) / size) * 65536) for i in range(size // 2, size)], np.float32)
    return np.concatenate([-upper[::-1], upper]) / np.float32(65536)


@dataclass(frozen=True)
class SignalDraws:
    """The random numbers of one clip under one kind of damage; `number` tells copies or frames apart."""

    seed: int
    clip_id: str
    kind: str
    number: int = 0

    def numbered(self, number: int) -> "SignalDraws":
        """Return the draws of another number, such as those of one frame."""
        return replace(self, number=number)

    def _words(self, count: int) -> np.ndarray:
        """Return uint64 words (count,)."""
        name = f"{self.seed} {self.number} {self.kind} {self.clip_id}".encode()
        key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), "<u8")
        words: np.ndarray = np.random.Philox(key=key.astype(np.uint64), counter=0).random_raw(count)
        return words

    def uniform(self, elements: int) -> np.ndarray:
        """Return (elements,) float64 in [0, 1), made of the upper 32 bits of each word, so the conversion is exact."""
        return (self._words(elements) >> np.uint64(32)).astype(np.float64) * 2.0**-32

    def normal(self, elements: int) -> np.ndarray:
        """Return (elements,) float32, standard normal at 2^16 levels (largest 4.3): four per word, from a table."""
        parts = self._words((elements + 3) // 4).astype("<u8").view("<u2")
        return normal_quantiles()[parts[:elements]]
