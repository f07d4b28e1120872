"""Clips that a server keeps: features of uploads under ids that cannot be guessed, and the samples it offers."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from qamoe.config.task import Task, TaskDescription
from qamoe.data import manifest
from qamoe.data.clip import MediaSpan
from qamoe.inference.extraction_worker import Extracted

MOST_CLIPS = 64
MOST_BYTES = 256 << 20
_SAMPLES = 6


@dataclass(frozen=True)
class CachedClip:
    """Raw features of one clip. `key` stands for its content in every draw, so that the same clip degrades alike."""

    key: str
    extracted: Extracted

    @property
    def size(self) -> int:
        return sum(frames.nbytes for frames in self.extracted.frames.values())


class ClipCache:
    """At most `most` clips and `most_bytes` of features; whoever comes in makes the longest unused ones go."""

    def __init__(self, most: int = MOST_CLIPS, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, CachedClip] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, clip: CachedClip) -> str:
        """Keep a clip; returns its id."""
        clip_id = secrets.token_urlsafe(18)
        with self._lock:
            self._kept[clip_id] = clip
            while len(self._kept) > 1 and not self._fits():
                self._kept.popitem(last=False)
        return clip_id

    def get(self, clip_id: str) -> CachedClip | None:
        """The clip of that id, or None; it then counts as used."""
        with self._lock:
            if clip_id in self._kept:
                self._kept.move_to_end(clip_id)
            return self._kept.get(clip_id)

    def _fits(self) -> bool:
        return len(self._kept) <= self._most and sum(c.size for c in self._kept.values()) <= self._most_bytes


def samples(folder: Path | None, task: TaskDescription) -> list[tuple[MediaSpan, float]]:
    """A few clips of a folder of raw clips with their labels, from low to high: of different sources, and of the test
    split where there is one. Raises UserError for a folder that is no corpus."""
    if folder is None:
        return []
    every = manifest.read(folder, Task.model_validate(task)).clips
    offered = [clip for clip in every if clip.split == "test"] or every
    by_source = {clip.source: clip for clip in sorted(offered, key=lambda clip: clip.clip_id, reverse=True)}
    ordered = sorted(by_source.values(), key=lambda clip: (clip.label, clip.clip_id))
    count = min(_SAMPLES, len(ordered))
    chosen = [ordered[i * (len(ordered) - 1) // max(1, count - 1)] for i in range(count)]
    return [(clip.media, clip.label) for clip in chosen if clip.media is not None]
