"""Extract the test split under signal-level degradation into extract/signals/<cell>.arrow.

Each file holds only the degraded modality. Degraded media are temporary: they are deleted once features are extracted.
"""

import csv
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from qamoe.config.params import Extract
from qamoe.data import arrow_store
from qamoe.data.clip import LabelledClip
from qamoe.degradation.swap_partners import SwapPartners
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.worker_pool import Job, part_key, read_part
from qamoe.files import atomic_write
from qamoe.media import degradations
from qamoe.media.degraded_copy import Signal, Voice
from qamoe.media.word_confusion import Vocabulary
from qamoe.rng import Draws, clip_key
from qamoe.signal_rng import SignalDraws

TEXT_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("ids", pa.list_(pa.int32())), ("words", pa.list_(pa.string()))]
    + [(column, pa.list_(pa.float32())) for column in ("confidence", "start_s", "end_s")]
)
Failures = dict[tuple[str, str], str]  # the reason, by clip id and modality


def typed_row(clip_id: str, ids: np.ndarray, words: list[str]) -> dict[str, Any]:
    """Return a row of TEXT_SCHEMA for a text that a person typed: full confidence, and no times."""
    empty = np.zeros(0, np.float32)
    return {
        "clip_id": clip_id, "ids": ids, "words": words,
        "confidence": np.ones(len(ids), np.float32), "start_s": empty, "end_s": empty,
    }  # fmt: skip


def write(
    clips: list[LabelledClip],
    params: Extract,
    folder: Path,
    digest: Callable[[Path], str],
    make: Callable[[list[tuple[Job, Path]]], Failures],
) -> None:
    """Degrade the test clips, and write one store per cell and the failures of all cells to problems.csv.

    `make` runs jobs and returns the reason of each failed one. A clip whose degraded media yield no features (for
    example, the face is no longer found) has no frames. That is an effect of the degradation, so it is not a problem.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if params.signals is None:
        return
    test = [clip for clip in clips if clip.split == "test"]
    vocabulary = Vocabulary.from_texts(clip.text for clip in clips if clip.split == "train")
    others = OtherSounds(test, recordings_of(params, "signals"), digest)
    problems: list[tuple[str, str, str]] = []
    for name, kind, severity in degradations.cells(params.signals.severities):
        metadata = {"kind": kind, "severity": severity, "seed": params.signals.seed}
        path = folder / f"{name}.arrow"
        if degradations.MODALITY[kind] == "text":
            _write_words(test, params, kind, severity, vocabulary, path, metadata)
            continue
        jobs = [
            (job, part_of(job, params, folder.parent / "parts", digest))
            for job in _jobs(others, params.signals.seed, kind, severity)
        ]
        failures = make([(job, part) for job, part in jobs if read_part(part) is None])
        features = [read_part(part) for _, part in jobs]
        for (job, _), frames in zip(jobs, features, strict=True):
            reason = failures.get((job.clip_id, job.modality)) or frames
            if isinstance(reason, str) and reason:
                problems.append((name, job.clip_id, reason))
        media_extractor = extractor(getattr(params, degradations.MODALITY[kind]))
        dimension = len(media_extractor.columns)
        schema = pa.schema([("clip_id", pa.string()), ("frames", arrow_store.frames_type(dimension))])
        empty = np.zeros((0, dimension), np.float32)
        rows = (
            {"clip_id": clip.clip_id, "frames": frames if isinstance(frames, np.ndarray) else empty}
            for clip, frames in zip(test, features, strict=True)
        )
        arrow_store.write(path, schema, rows, metadata)
    with atomic_write(folder / "problems.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("cell", "clip_id", "reason"))
        writer.writerows(sorted(problems))


def check(clips: list[LabelledClip], params: Extract) -> None:
    """Raise UserError for a test split without the media that extract.signals degrades."""
    if params.signals is None:
        return
    test = [clip for clip in clips if clip.split == "test"]
    if not test:
        raise UserError("extract.signals degrades the test split, but the corpus has no clip in split test.")
    check_media(test, params, {degradations.MODALITY[kind] for kind in params.signals.severities}, "signals")
    recordings_of(params, "signals")


def check_media(clips: list[LabelledClip], params: Extract, modalities: Collection[str], key: str) -> None:
    """Raise UserError for a clip without what `extract.<key>` degrades."""
    for modality in sorted(modalities):
        for clip in clips:
            if modality == "text" and (clip.tokens is not None or "text" in clip.frames) and not clip.text:
                raise UserError(
                    f"{clip.where}: extract.{key} degrades text and needs a transcript; this clip has only token ids or"
                    " vectors."
                )
            if modality != "text" and clip.media is None:
                raise UserError(
                    f"{clip.where}: extract.{key} degrades {modality} and needs media; this clip has only features."
                )
            if modality != "text" and clip.media is not None:
                media_extractor = extractor(getattr(params, modality))
                if media_extractor.reads(clip.media.path) != clip.media.path:
                    raise UserError(
                        f"extract.{key} degrades {modality}, but the extractor {media_extractor.name} does not read"
                        " media files."
                    )


def recordings_of(params: Extract, key: Literal["signals", "copies"]) -> list[Path]:
    """Return the recordings of kind recorded_noise of `extract.<key>`, in order of their paths.

    Raises UserError if the kind is used without any.
    """
    settings = getattr(params, key)
    kinds = settings.severities if key == "signals" else settings.sound
    if "recorded_noise" not in kinds:
        return []
    folder = Path(params.corpus.path)
    found = sorted({path for pattern in settings.recordings for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise UserError(
            f"extract.{key}.recordings is {list(settings.recordings)}, which names no file in {folder}; kind"
            " recorded_noise needs recordings there, such as noise/*.flac."
        )
    return found


@dataclass(frozen=True)
class OtherSounds:
    """What is mixed into the clips of a split: voices of other clips, and recordings of noise."""

    clips: list[LabelledClip]
    recordings: list[Path]
    digest: Callable[[Path], str]

    @cached_property
    def _partners(self) -> SwapPartners:
        return SwapPartners([clip.clip_id for clip in self.clips], [clip.source for clip in self.clips])

    def of(self, row: int, kind: str, seed: int, name: str) -> tuple[Voice, ...]:
        """Return the sounds that a kind mixes into the clip of a row; `name` is that of its draws."""
        if kind == "recorded_noise":
            which = SignalDraws(seed, name, "recording").uniform(1)[0]
            path = self.recordings[int(which * len(self.recordings))]
            return (Voice(path, 0.0, None, self.digest(path)),)
        voices = []
        for number in range(1, 1 + degradations.VOICES) if kind == "babble" else ():
            key = torch.tensor([clip_key(f"signal {kind} {name}")], dtype=torch.int64)
            other = self.clips[self._partners.of([row], Draws(seed, key, "audio", "swap", number))[0]]
            assert other.media is not None
            span = other.media
            voices.append(Voice(span.path, span.start_s, span.end_s, self.digest(span.path), span.track))
        return tuple(voices)


def job_of(others: OtherSounds, row: int, kind: str, severity: float, seed: int, name: str) -> Job:
    """Return the job that extracts the modality of a kind from a clip of `others` under that kind."""
    media = others.clips[row].media
    assert media is not None
    signal = Signal(kind, severity, seed, name, others.of(row, kind, seed, name))
    return Job(name, degradations.MODALITY[kind], media.path, media.start_s, media.end_s, signal, media.track)


def _jobs(others: OtherSounds, seed: int, kind: str, severity: float) -> Iterator[Job]:
    for row, clip in enumerate(others.clips):
        yield job_of(others, row, kind, severity, seed, clip.clip_id)


def part_of(job: Job, params: Extract, parts: Path, digest: Callable[[Path], str]) -> Path:
    """Return the path of a job's part."""
    key = part_key(job, digest(job.media), extractor(getattr(params, job.modality)))
    return parts / job.modality / key[:2] / key


def _write_words(
    test: list[LabelledClip],
    params: Extract,
    kind: str,
    severity: float,
    vocabulary: Vocabulary,
    path: Path,
    metadata: dict[str, Any],
) -> None:
    assert params.signals is not None
    tokeniser = extractor(params.text)
    seed = params.signals.seed

    def row(clip: LabelledClip) -> dict[str, Any]:
        draws = SignalDraws(seed, clip.clip_id, kind)
        transcript = degradations.degrade_text(kind, clip.text, severity, draws, vocabulary)
        return typed_row(clip.clip_id, *tokeniser.extract(transcript))

    arrow_store.write(path, TEXT_SCHEMA, map(row, test), metadata)
