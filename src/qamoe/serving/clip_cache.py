"""Cache the features of uploaded clips under ids that cannot be guessed, and choose the sample clips of a server."""

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
    """Raw features of one clip. key: identifies its content; the same clip is always degraded in the same way."""

    key: str
    extracted: Extracted

    @property
    def size(self) -> int:
        return len(self.extracted.text) + sum(frames.nbytes for frames in self.extracted.frames.values())


class ClipCache:
    """A least-recently-used cache of at most `most` clips and `most_bytes` of features; it always keeps the newest."""

    def __init__(self, most: int = MOST_CLIPS, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._cached: OrderedDict[str, CachedClip] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._cached)

    def put(self, clip: CachedClip) -> str:
        """Cache a clip; return its id."""
        clip_id = secrets.token_urlsafe(18)
        with self._lock:
            self._cached[clip_id] = clip
            while len(self._cached) > 1 and not self._fits():
                self._cached.popitem(last=False)
        return clip_id

    def get(self, clip_id: str) -> CachedClip | None:
        """Return a clip by its id, or None; this counts as a use."""
        with self._lock:
            if clip_id in self._cached:
                self._cached.move_to_end(clip_id)
            return self._cached.get(clip_id)

    def _fits(self) -> bool:
        return len(self._cached) <= self._most and sum(c.size for c in self._cached.values()) <= self._most_bytes


def samples(folder: Path | None, task: TaskDescription) -> list[tuple[MediaSpan, float]]:
    """Choose a few clips of a corpus with their labels, from low to high labels and from different sources.

    They come from the test split if the corpus has one. Raises UserError for a folder without a corpus.
    """
    if folder is None:
        return []
    all_clips = manifest.read(folder, Task.model_validate(task)).clips
    candidates = [clip for clip in all_clips if clip.split == "test"] or all_clips
    by_source = {clip.source: clip for clip in sorted(candidates, key=lambda clip: clip.clip_id, reverse=True)}
    ordered = sorted(by_source.values(), key=lambda clip: (clip.label, clip.clip_id))
    count = min(_SAMPLES, len(ordered))
    chosen = [ordered[i * (len(ordered) - 1) // max(1, count - 1)] for i in range(count)]
    return [(clip.media, clip.label) for clip in chosen if clip.media is not None]
