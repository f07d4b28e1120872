"""Extract the features of a corpus: artifacts/extract/{text,audio,vision}.arrow, clips.parquet and problems.csv.

The stores hold token ids (or stored text vectors, if the corpus has nothing else) and unnormalised frames, one row per
clip, ordered by clip id for any number of workers. If a modality of a clip cannot be extracted, it has no frames, and
problems.csv gives the reason. The stage fails if too many clips have problems.

With extract.text.transcribe, clips without a transcript have the words that are recognised in their voice. text.arrow
has for each token id the probability of its word (1 where a person typed) and, of recognised words, the times in
seconds from the clip's start.
"""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qamoe.config import settings
from qamoe.config.extractor_settings import ExtractorSettings
from qamoe.config.params import Extract, Params
from qamoe.data import arrow_store
from qamoe.data.clip import Corpus, LabelledClip, check_text, text_reading
from qamoe.data.readers import READERS
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.tokens import Tokens
from qamoe.extractors.worker_pool import (
    Job,
    make_parts,
    make_parts_on_ray,
    media_digest,
    part_key,
    read_note,
    read_part,
)
from qamoe.files import atomic_write
from qamoe.pipeline import damaged_copies, degraded_media, runner

STREAMS = ("audio", "vision")
_MAX_LISTED = 10  # problems in the error message
Problems = list[tuple[str, str, str]]


def run(params: Params, out: Path) -> dict[str, Any]:
    """Run the stage and return the number of clips and of problems.

    Raises UserError for an unusable corpus, before anything is written.
    """
    chosen = params.extract
    corpus = READERS[chosen.corpus.kind](Path(chosen.corpus.path), chosen.task)
    clips = sorted(corpus.clips, key=lambda clip: clip.clip_id)
    tokeniser = extractor(chosen.text)
    check_text(corpus, tokeniser, chosen.corpus.path)
    degraded_media.check(clips, chosen)
    damaged_copies.check(clips, corpus.modalities, chosen)
    if chosen.text.recogniser is not None:
        extractor(chosen.text.recogniser)  # refuses to begin without its package or weights
    folder = out / "extract"
    problems: Problems = []
    digest = cache(media_digest)
    _clear(folder)
    parts = _make_all_parts(clips, chosen, folder / "parts", digest, problems)
    _refuse_too_many(problems, len(clips), chosen.max_problem_share)
    heard = {clip.clip_id: words for clip in clips if (words := _heard(clip, parts)) is not None}
    clips = [_with_words(clip, heard[clip.clip_id]) if clip.clip_id in heard else clip for clip in clips]
    degraded_media.write(clips, chosen, folder / "signals", digest, partial(_make_parts, chosen))
    failures = damaged_copies.write(
        clips, corpus.modalities, heard, chosen, folder / "copies", digest, partial(_make_parts, chosen)
    )
    problems += [(*key, reason) for key, reason in failures.items()]
    problems += [(*key, note) for key, part in parts.items() if (note := read_note(part))]
    problems += _unread(clips, corpus, tokeniser)
    seconds = _write_streams(clips, corpus, chosen, parts, folder)
    if corpus.vocabulary is None:
        _write_vectors(clips, folder)
    else:
        _write_text(clips, heard, tokeniser, folder, ready=corpus.vocabulary == tokeniser.vocabulary)
    _write_clips(clips, corpus, chosen, seconds, folder)
    _write_problems(problems, folder / "problems.csv")
    return {"clips": len(clips), "problems": len(problems)}


def _clear(folder: Path) -> None:
    """Remove the temporary media copies and files of a stage or a worker that was killed."""
    for copy in (folder / "parts").glob("*/*/.copy-*"):
        shutil.rmtree(copy, ignore_errors=True)
    for file in (*folder.glob(".*.[0-9]*"), *(folder / "parts").glob("*/*/.*.[0-9]*")):
        file.unlink(missing_ok=True)


def _make_all_parts(
    clips: list[LabelledClip], params: Extract, parts: Path, digest: Callable[[Path], str], problems: Problems
) -> dict[tuple[str, str], Path]:
    """Make the parts of all clips that have media, add to `problems`, and return the path of each part."""
    part_files: dict[tuple[str, str], Path] = {}
    waiting: list[tuple[Job, Path]] = []
    extractors = _extractors(params)
    for clip in clips:
        if clip.media is None:
            continue
        for modality, settings_of_extractor in extractors.items():
            if modality == "text" and (clip.text or clip.tokens is not None or "text" in clip.frames):
                continue
            media = clip.media
            job = Job(clip.clip_id, modality, media.path, media.start_s, media.end_s, track=media.track)
            media_extractor = extractor(settings_of_extractor)
            key = part_key(job, digest(media_extractor.reads(clip.media.path)), media_extractor)
            part = parts / modality / key[:2] / key
            part_files[clip.clip_id, modality] = part
            if read_part(part) is None:
                waiting.append((job, part))
    failures = _make_parts(params, waiting)
    for (clip_id, modality), part in part_files.items():
        reason = failures.get((clip_id, modality)) or read_part(part)
        if isinstance(reason, str) and reason:
            problems.append((clip_id, modality, reason))
    return part_files


def _extractors(params: Extract) -> dict[str, ExtractorSettings]:
    """Return the extractors of media: those of the streams, and the speech recognition of text if it is on."""
    chosen: dict[str, ExtractorSettings] = {m: getattr(params, m) for m in STREAMS}
    return chosen if params.text.recogniser is None else chosen | {"text": params.text.recogniser}


def _make_parts(params: Extract, waiting: list[tuple[Job, Path]]) -> dict[tuple[str, str], str]:
    """Make parts, showing a progress bar, and return the reason of each failed job."""
    if not waiting:
        return {}
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    quiet = not runner.log.isEnabledFor(20)
    columns = (TextColumn("extract"), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("extract", total=len(waiting))
        make = make_parts_on_ray if settings.executor() == "ray" else make_parts
        return make(
            waiting, _extractors(params), settings.workers(), params.seconds_per_clip, lambda: progress.advance(task)
        )


def _refuse_too_many(problems: Problems, clips: int, max_share: float) -> None:
    affected = {clip_id for clip_id, _, _ in problems}
    if len(affected) > max_share * clips:
        reasons = [f"{clip_id}, {modality}: {reason}" for clip_id, modality, reason in sorted(problems)]
        more = "" if len(reasons) <= _MAX_LISTED else f", and {len(reasons) - _MAX_LISTED} more"
        raise UserError(
            f"{len(affected)} of {clips} clips have problems, more than extract.max_problem_share ({max_share:g})"
            f" allows: {'; '.join(reasons[:_MAX_LISTED])}{more}."
        )


def _heard(clip: LabelledClip, parts: dict[tuple[str, str], Path]) -> np.ndarray | None:
    """Return the words that were recognised in a clip (extractors/transcribe.py); None for a text that was given."""
    part = parts.get((clip.clip_id, "text"))
    words = read_part(part) if part else None
    return words if isinstance(words, np.ndarray) else None


def _with_words(clip: LabelledClip, words: np.ndarray) -> LabelledClip:
    return replace(clip, span=replace(clip.span, text=" ".join(words["word"])))


def _unread(clips: list[LabelledClip], corpus: Corpus, tokeniser: Tokens) -> Problems:
    """Return the clips whose text counts as missing although they have one."""
    readings = {clip.clip_id: text_reading(clip, corpus, tokeniser) for clip in clips}
    return [(name, "text", reading.reason) for name, reading in readings.items() if reading and not len(reading.ids)]


def _frames(clip: LabelledClip, modality: str, parts: dict[tuple[str, str], Path], dimension: int) -> np.ndarray:
    if modality in clip.frames:
        return clip.frames[modality]
    part = parts.get((clip.clip_id, modality))
    frames = read_part(part) if part else None
    return frames if isinstance(frames, np.ndarray) else np.zeros((0, dimension), np.float32)


def _write_streams(
    clips: list[LabelledClip], corpus: Corpus, params: Extract, parts: dict[tuple[str, str], Path], folder: Path
) -> list[float | None]:
    """Write audio.arrow and vision.arrow; return each clip's length in seconds, None if no frame rate is known."""
    seconds: list[float | None] = [None] * len(clips)
    for modality in STREAMS:
        ready = next((clip.frames[modality] for clip in clips if modality in clip.frames), None)
        metadata: dict[str, Any]
        if ready is not None:
            metadata = _ready_metadata(ready.shape[1])
        elif modality in corpus.modalities:
            media_extractor = extractor(getattr(params, modality))
            metadata = {"extractor": media_extractor.name, "version": media_extractor.version}
            metadata |= {"rate": media_extractor.rate, "dimension": len(media_extractor.columns)}
            metadata |= {"columns": list(media_extractor.columns)}
        else:
            metadata = {"extractor": None, "version": "", "rate": None, "dimension": 1, "columns": []}
        dimension, rate = metadata["dimension"], metadata["rate"]
        schema = pa.schema([("clip_id", pa.string()), ("frames", arrow_store.frames_type(dimension))])
        rows = ({"clip_id": clip.clip_id, "frames": _frames(clip, modality, parts, dimension)} for clip in clips)
        path = folder / f"{modality}.arrow"
        arrow_store.write(path, schema, rows if modality in corpus.modalities else (), metadata)
        if rate:
            lengths = arrow_store.Store(path).lengths("frames")
            seconds = [max(s or 0.0, n / rate) for s, n in zip(seconds, lengths, strict=True)]
    return seconds


def _write_text(
    clips: list[LabelledClip], heard: dict[str, np.ndarray], tokeniser: Tokens, folder: Path, *, ready: bool
) -> None:
    """Write text.arrow; `heard`: recognised words by clip id; `ready`: the corpus's token ids are of the tokeniser's
    vocabulary and replace its words."""
    metadata = {"extractor": tokeniser.name, "version": tokeniser.version, "unk": tokeniser.unk_id}
    metadata |= {"special": list(tokeniser.special_ids), "vocabulary": tokeniser.vocab_size}
    metadata |= {"vocabulary_sha256": tokeniser.vocabulary_sha256}

    def row(clip: LabelledClip) -> dict[str, Any]:
        if clip.tokens is not None and ready:
            ids, limit = clip.tokens, tokeniser.max_tokens
            if len(ids) > limit:
                ids = np.append(ids[: limit - 1], ids[-1])  # cut the end of a long text, but keep its [SEP]
            return degraded_media.typed_row(clip.clip_id, ids, tokeniser.words(ids))
        if clip.clip_id in heard:
            return _heard_row(clip.clip_id, heard[clip.clip_id], tokeniser)
        ids, words = tokeniser.extract(clip.text) if clip.text else (np.zeros(0, np.int32), [])
        return degraded_media.typed_row(clip.clip_id, ids, words)

    arrow_store.write(folder / "text.arrow", degraded_media.TEXT_SCHEMA, map(row, clips), metadata)


def _heard_row(clip_id: str, heard: np.ndarray, tokeniser: Tokens) -> dict[str, Any]:
    """Return a row of recognised words: CLS and SEP have full confidence, and no times (NaN)."""
    ids, words, word_of_id = tokeniser.extract_spoken(heard["word"])
    numbers = {
        column: np.where(word_of_id < 0, outside, heard[column][word_of_id]).astype(np.float32)
        for column, outside in (("confidence", 1.0), ("start_s", np.nan), ("end_s", np.nan))
    }
    return {"clip_id": clip_id, "ids": ids, "words": words, **numbers}


def _write_vectors(clips: list[LabelledClip], folder: Path) -> None:
    """Write text.arrow of a corpus whose text is only stored vectors, as frames without a rate."""
    size = clips[0].frames["text"].shape[1]
    schema = pa.schema([("clip_id", pa.string()), ("frames", arrow_store.frames_type(size))])
    rows = ({"clip_id": clip.clip_id, "frames": clip.frames["text"]} for clip in clips)
    arrow_store.write(folder / "text.arrow", schema, rows, _ready_metadata(size))


def _ready_metadata(dimension: int) -> dict[str, Any]:
    return {"extractor": "as given", "version": "", "rate": None, "dimension": dimension, "columns": []}


def _write_clips(
    clips: list[LabelledClip], corpus: Corpus, params: Extract, seconds: list[float | None], folder: Path
) -> None:
    metadata = {
        "about": corpus.about,
        "generated": corpus.generated,
        "task": params.task.model_dump(mode="json"),
        "modalities": list(corpus.modalities),
    }
    columns = {
        "clip_id": [clip.clip_id for clip in clips],
        "source": [clip.source for clip in clips],
        "split": [clip.split for clip in clips],
        "label": pa.array([clip.label for clip in clips], pa.float64()),
        "text": [clip.text for clip in clips],
        "seconds": pa.array(seconds, pa.float64()),
    }
    table = pa.table(columns).replace_schema_metadata({"qamoe": json.dumps(metadata, sort_keys=True)})
    with atomic_write(folder / "clips.parquet") as temporary:
        pq.write_table(table, temporary)


def _write_problems(problems: Problems, path: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip_id", "modality", "reason"))
        writer.writerows(sorted(problems))
