"""Counter-based random numbers: each draw is a function of its key alone.

Every random number of a degradation is Philox4x32-10 (Salmon et al., SC 2011) of
(protocol seed, clip, modality, kind, draw number, element). It does not depend on the severity (so the masks
of rising severities nest), nor on batch order, padding, worker count or device: the generator uses integer
arithmetic, and the conversion from integers to floats is exact.
"""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from shutil import which

import numpy as np
import torch
from torch import Tensor

from qamoe.signal_rng import normal_quantiles

MODALITIES = ("text", "audio", "vision")
STREAMS = ("state", "missing", "noise", "burst", "swap", "additive", "desync")
# Streams of training, one for all modalities together: those that models draw from, and the choice of clips.
TRAINING_STREAMS = ("sample", "probe", "task", "clips")
_SHARED = {"missing_features": "missing"}

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return Philox4x32-10 of broadcastable int64 tensors of 32-bit words, as four such tensors.

    Each device computes the same integers in its own way. The CPU uses numpy's unsigned 64-bit integers, which hold a
    whole product: half the operations of torch, and a fifth of the time for a small batch. On a GPU, two hundred small
    kernels would take longer than a training step, so they are compiled into one.
    """
    device = counter[0].device.type
    if device == "cpu":
        unsigned = (part.numpy().view(np.uint64) for part in (*counter, *key))
        return tuple(torch.from_numpy(part) for part in _rounds_of_numpy(*unsigned))
    c0, c1, c2, c3, k0, k1 = torch.broadcast_tensors(*counter, *key)
    flat = [part.flatten() for part in (c0, c1, c2, c3, k0, k1)]  # one shape, so that it is compiled once
    words = (_one_kernel() if device == "cuda" else _rounds)(*flat)
    return tuple(part.view(c0.shape) for part in words)


def _rounds_of_numpy(*words: np.ndarray) -> list[np.ndarray]:
    c0, c1, c2, c3, k0, k1 = words
    half, low, m0, m1, w0, w1 = map(np.uint64, (32, _WORD, *_MULTIPLIERS, *_WEYL))
    for _ in range(10):
        first, second = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (second >> half) ^ c1 ^ k0, second & low, (first >> half) ^ c3 ^ k1, first & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
    return [part.view(np.int64) for part in np.broadcast_arrays(c0, c1, c2, c3)]


@cache
def _one_kernel() -> Callable[..., tuple[Tensor, ...]]:
    """Return `_rounds` compiled if triton and a C compiler are installed, else `_rounds` itself."""
    if find_spec("triton") is None or not any(map(which, ("cc", "gcc", "clang"))):
        return _rounds
    return torch.compile(_rounds, dynamic=True)


def _rounds(*words: Tensor) -> tuple[Tensor, ...]:
    c0, c1, c2, c3, k0, k1 = words
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of constant * x, for x in [0, 2^32) as int64, without overflowing int64."""
    low_product = x * (constant & 0xFFFF)  # below 2^48
    high_product = x * (constant >> 16) + (low_product >> 16)  # below 2^49
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def clip_key(clip_id: str) -> tuple[int, int]:
    """Hash a clip id to 64 bits, as two 32-bit words (BLAKE2b: the same on every machine)."""
    digest = hashlib.blake2b(clip_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@cache
def _normal_table(device: torch.device) -> Tensor:
    return torch.from_numpy(normal_quantiles()).to(device)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch for one modality and one stream.

    `clips` (B, 2) int64 holds the `clip_key` of each clip. `number` is the draw number, an int or (B,) int64 (the view
    in training, the draw in evaluation). `stream` is one of STREAMS, or missing_features, which draws the same numbers
    as missing. If `modality` is None, `stream` is one of TRAINING_STREAMS.
    """

    seed: int
    clips: Tensor
    modality: str | None
    stream: str
    number: int | Tensor

    def select(self, rows: Tensor) -> "Draws":
        """Return the draws of some of the clips (R,); their numbers stay the same."""
        number = self.number[rows] if isinstance(self.number, Tensor) and self.number.ndim else self.number
        return replace(self, clips=self.clips[rows], number=number)

    def words(self, elements: int) -> Tensor:
        """Return (B, elements) int64 in [0, 2^32)."""
        device = self.clips.device
        blocks = torch.arange((elements + 3) // 4, device=device)[None, :]
        number = torch.as_tensor(self.number, device=device).expand(len(self.clips))[:, None]
        counter = (blocks, number & _WORD, torch.full_like(number, self._stream_word()), self.clips[:, 1:2])
        key = (torch.full_like(number, self.seed & _WORD), self.clips[:, 0:1])
        return torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :elements]

    def _stream_word(self) -> int:
        """Return the word of the counter that identifies stream and modality.

        The streams of protocol 1 are numbered by their position in STREAMS. Never add to STREAMS: every draw would
        change. A kind added later gets a number from the hash of its name, far above those.
        """
        if self.modality is None:
            return len(STREAMS) * len(MODALITIES) + TRAINING_STREAMS.index(self.stream)
        stream, modality = _SHARED.get(self.stream, self.stream), MODALITIES.index(self.modality)
        if stream in STREAMS:
            return len(STREAMS) * modality + STREAMS.index(stream)
        return (1 << 31) | (zlib.crc32(stream.encode()) & 0x1FFFFFFF) << 2 | modality

    def uniform(self, elements: int) -> Tensor:
        """Return (B, elements) float32 in [0, 1), made of the upper 24 bits, so the conversion is exact."""
        return (self.words(elements) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, elements: int) -> Tensor:
        """Return (B, elements) float32, standard normal at 2^16 levels (largest 4.3): two per word, from a table."""
        words = self.words((elements + 1) // 2)
        index = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(1)[:, :elements]
        return _normal_table(index.device)[index]
