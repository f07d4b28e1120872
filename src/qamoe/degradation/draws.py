"""Counter-based randomness: a draw is a function of what it is for, and of nothing else.

Every random number of a degradation is Philox4x32-10 (Salmon et al., SC 2011) of
(protocol seed, clip, modality, kind, draw number, element). It does not depend on the severity (so the masks
of rising severities nest), nor on batch order, padding, worker count or device: the generator is integer
arithmetic in torch, and what turns integers into floats is exact.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

MODALITIES = ("text", "audio", "vision")
STREAMS = ("state", "missing", "noise", "burst", "swap", "additive", "desync")
_SHARED = {"missing_features": "missing"}  # a further stream would change every draw of protocol 1

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NORMAL_BITS = 16


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * x, for x in [0, 2^32) as int64, without overflowing int64."""
    low_product = x * (constant & 0xFFFF)  # below 2^48
    high_product = x * (constant >> 16) + (low_product >> 16)  # below 2^49
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of broadcastable int64 tensors that hold 32-bit words; returns four such tensors."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def clip_key(clip_id: str) -> tuple[int, int]:
    """64 bits that stand for a clip id, as two 32-bit words (BLAKE2b: the same on every machine)."""
    digest = hashlib.blake2b(clip_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@cache
def _normal_table() -> Tensor:
    """Standard normal quantiles at the 2^16 mid-points, rounded to 2^-16 so that no libm can differ by a bit."""
    size = 1 << _NORMAL_BITS
    inverse = NormalDist().inv_cdf
    upper = [round(inverse((i + 0.5) / size) * 65536) for i in range(size // 2, size)]
    return torch.tensor([-v for v in reversed(upper)] + upper, dtype=torch.float32) / 65536


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch for one modality and one stream.

    `clips` (B, 2) int64 holds `clip_key` of each clip, `number` the draw number as an int or (B,) int64
    (training: the view; evaluation: the draw), `stream` one of STREAMS, or missing_features, which draws as missing.
    """

    seed: int
    clips: Tensor
    modality: str
    stream: str
    number: int | Tensor

    def words(self, elements: int) -> Tensor:
        """(B, elements) int64 in [0, 2^32)."""
        device = self.clips.device
        blocks = torch.arange((elements + 3) // 4, device=device)[None, :]
        number = torch.as_tensor(self.number, device=device).expand(len(self.clips))[:, None]
        place = len(STREAMS) * MODALITIES.index(self.modality) + STREAMS.index(_SHARED.get(self.stream, self.stream))
        counter = (blocks, number & _WORD, torch.full_like(number, place), self.clips[:, 1:2])
        key = (torch.full_like(number, self.seed & _WORD), self.clips[:, 0:1])
        return torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :elements]

    def uniform(self, elements: int) -> Tensor:
        """(B, elements) float32 in [0, 1): the upper 24 bits, so the conversion is exact."""
        return (self.words(elements) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, elements: int) -> Tensor:
        """(B, elements) float32, standard normal at 2^16 levels (largest 4.3): two a word, by table."""
        words = self.words((elements + 1) // 2)
        index = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(1)[:, :elements]
        return _normal_table().to(index.device)[index]
