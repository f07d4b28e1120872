"""The content of stats.json: statistics of the training split by the stage preprocess. Checkpoints include a copy."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

from qamoe.config.task import TaskDescription


class ColumnStats(TypedDict):
    """The columns of a modality's frames to keep (`dimension` of them), and their mean and standard deviation."""

    kept: list[int]
    mean: list[float]
    deviation: list[float]
    unfit: int
    dimension: int


class FrameStats(ColumnStats):
    """Columns, and the frame rate in Hz if the extractor knows it."""

    rate: float | None


class TextStats(TypedDict, total=False):
    """For token ids the first five keys, with `frequencies` as (id, count); for stored vectors those of FrameStats.

    A corpus whose stored vectors are all the same has no keys, and lacks the modality text.
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
    """The whole file. target_mean and target_std exist for regression, class_shares for classes."""

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
    """Return whether the text of the corpus is stored as vectors and not as token ids."""
    return "vocabulary" not in stats["text"]


def has_frames(stats: Stats, modality: str) -> bool:
    """Return whether a modality is stored as frames with columns to keep: audio, vision, or text as vectors."""
    return modality in stats and "dimension" in frame_stats(stats, modality)


def frame_stats(stats: Stats, modality: str) -> FrameStats:
    """Return the statistics of a modality that has frames."""
    return cast(FrameStats, stats[modality])  # type: ignore[literal-required]


def timed(stats: Stats, modalities: Sequence[str]) -> list[str]:
    """Return the modalities whose frame rate is known."""
    return [m for m in modalities if has_frames(stats, m) and frame_stats(stats, m).get("rate")]
