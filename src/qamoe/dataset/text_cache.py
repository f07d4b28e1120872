"""A file cache of the frozen text encoder's states: each distinct sequence of token ids of a split and its views once.

Most views leave text unchanged, and degradations nest, so many views share few sequences. All seeds, models and
restarts share the file; it has the same bits after an interrupted run.
"""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.files import atomic_write, write_bytes
from qamoe.models import text_encoder_frozen

_AT_ONCE = 1024  # sequences whose states are in memory at a time


@dataclass(frozen=True)
class TextStates:
    """Encoded text, memory-mapped.

    `states` (tokens, W) holds the distinct sequences one after another: sequence i is
    states[offsets[i] : offsets[i + 1]]. `index` (views, clips) is the sequence of a clip in a view.
    """

    states: np.ndarray
    offsets: np.ndarray
    index: np.ndarray

    def of(self, view: int, row: int) -> np.ndarray:
        """Return the states (T, W) of one clip under one view."""
        sequence = self.index[view, row]
        return self.states[self.offsets[sequence] : self.offsets[sequence + 1]]


def distinct(views: Iterable[Sequence[np.ndarray]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the distinct id sequences (T,), sorted by length and content, and the index (views, clips) into them."""
    seen: dict[bytes, int] = {}
    index = np.array([[seen.setdefault(ids.tobytes(), len(seen)) for ids in clips] for clips in views], np.int32)
    order = sorted(seen, key=lambda key: (len(key), key))
    rank = np.empty(len(seen), np.int32)
    rank[[seen[key] for key in order]] = np.arange(len(seen))
    return [np.frombuffer(key, np.int64) for key in order], rank[index]


def encode(views: Iterable[Sequence[np.ndarray]], path: Path, device: str, encoder: str) -> None:
    """Write the encoder's states to `path`, and then their offsets and index to an .npz file next to it."""
    sequences, index = distinct(views)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in sequences])]).astype(np.int64)
    with atomic_write(path) as aside:
        shape = (max(1, int(offsets[-1])), text_encoder_frozen.width(encoder))  # an empty file cannot be mapped
        out: Any = np.lib.format.open_memmap(str(aside), mode="w+", dtype=np.float32, shape=shape)
        with aside.open("r+b") as file:  # writing to the map of a file without blocks on a full disk would be fatal
            os.posix_fallocate(file.fileno(), 0, aside.stat().st_size)
        for start in range(0, len(sequences), _AT_ONCE):
            chunk = sequences[start : start + _AT_ONCE]
            encoded = np.concatenate(text_encoder_frozen.encode_all(chunk, device, encoder))
            out[offsets[start] : offsets[start + len(chunk)]] = encoded
        out.flush()
    content = io.BytesIO()
    np.savez(content, offsets=offsets, index=index)
    write_bytes(path.with_suffix(".npz"), content.getvalue())


def load(path: Path) -> TextStates | None:
    """Map the files that `encode` wrote; return None if one is missing."""
    try:
        with np.load(path.with_suffix(".npz")) as arrays:
            offsets, index = arrays["offsets"], arrays["index"]
        states: Any = np.load(path, mmap_mode="c")  # copy-on-write, because torch requires writable memory
    except FileNotFoundError:
        return None
    return TextStates(states, offsets, index)
