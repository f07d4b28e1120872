"""stats.json of the stage preprocess: what the training split says about the corpus. A checkpoint carries it along."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

from qamoe.config.task import TaskDescription


class ColumnStats(TypedDict):
    """Which columns of a modality's frames are kept, `dimension` in number, and what standardises them."""

    kept: list[int]
    mean: list[float]
    deviation: list[float]
    unfit: int
    dimension: int


class FrameStats(ColumnStats):
    """Columns, and the frame rate in Hz where the extractor tells it."""

    rate: float | None


class TextStats(TypedDict, total=False):
    """Of token ids the first five, `frequencies` being (id, count); of stored vectors those of FrameStats.

    A corpus whose stored vectors are all the same has none of both, and no modality text.
    """

    unk: int
    special: list[int]
    vocabulary: int
    vocabulary_sha256: str
    frequencies: list[tuple[int, int]]
    kept: list[int]
    mean: list[float]
    deviation: list[float]
    unfit: int
    dimension: int
    rate: float | None


class Stats(TypedDict):
    """The whole file: target_mean and target_std are of a regression, class_shares are of classes."""

    task: TaskDescription
    modalities: list[str]
    generated: bool
    about: dict[str, Any]
    text: TextStats
    audio: NotRequired[FrameStats]
    vision: NotRequired[FrameStats]
    target_mean: NotRequired[float]
    target_std: NotRequired[float]
    class_shares: NotRequired[list[float]]
    clips: dict[str, int]
    seconds_max: float | None


def text_is_vectors(stats: Stats) -> bool:
    """Whether the corpus's text is stored vectors; if not, it is token ids."""
    return "vocabulary" not in stats["text"]


def has_frames(stats: Stats, modality: str) -> bool:
    """Whether a modality is stored as frames that tell something: audio, vision, or text as vectors."""
    return modality in stats and "dimension" in frame_stats(stats, modality)


def frame_stats(stats: Stats, modality: str) -> FrameStats:
    """Those of a modality that has frames."""
    return cast(FrameStats, stats[modality])  # type: ignore[literal-required]


def timed(stats: Stats, modalities: Sequence[str]) -> list[str]:
    """Those of the modalities whose frame rate is known."""
    return [m for m in modalities if has_frames(stats, m) and frame_stats(stats, m).get("rate")]
