"""Extract damaged copies of the other splits' clips into extract/copies/{train,valid,gate}.arrow.

Each clip of a split has as many copies as `extract.copies` says, one row each: clip after clip, and copy after copy. In
a copy, each modality has a kind and a severity of its own, which depend on seed, clip and number alone. A harmless kind
has severity 0. A modality whose damaged media yield no features has no frames. The copied media are temporary.
"""

from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qamoe.config.params import Copies, Extract
from qamoe.data import arrow_store
from qamoe.data.clip import LabelledClip
from qamoe.errors import UserError
from qamoe.extractors.registry import extractor
from qamoe.extractors.tokens import Tokens
from qamoe.extractors.worker_pool import Job, read_part
from qamoe.files import file_digest
from qamoe.media import degradations
from qamoe.media.word_confusion import Vocabulary
from qamoe.pipeline.degraded_media import Failures, OtherSounds, check_media, job_of, part_of, recordings_of
from qamoe.signal_rng import SignalDraws

SPLITS = ("train", "valid", "gate")
Drawn = dict[str, tuple[str, float]]  # kind and severity by modality


def check(clips: list[LabelledClip], modalities: tuple[str, ...], params: Extract) -> None:
    """Raise UserError for clips without the media to damage, and for a recording that the test split has too."""
    copies = params.copies
    if copies is not None:
        copied = [clip for clip in clips if clip.split in SPLITS and getattr(copies, clip.split)]
        check_media(copied, params, [m for m in copies.kinds() if m in modalities], "copies")
        _recordings(params)


def write(
    clips: list[LabelledClip],
    modalities: tuple[str, ...],
    heard: dict[str, np.ndarray],
    params: Extract,
    folder: Path,
    digest: Callable[[Path], str],
    make: Callable[[list[tuple[Job, Path]]], Failures],
) -> Failures:
    """Write the copies of all splits; return the reason of each job that failed.

    modalities: those of the corpus. heard: recognised words by clip id. `make` runs jobs. Without `extract.copies`, the
    stores have no rows.
    """
    copies = params.copies
    kinds = {m: k for m, k in copies.kinds().items() if m in modalities} if copies else {}
    schema = _schema(kinds, params)
    if copies is None:
        for split in SPLITS:
            arrow_store.write(folder / f"{split}.arrow", schema, (), {"copies": 0, "modalities": []})
        return {}
    recordings = _recordings(params)
    vocabulary = Vocabulary.from_texts(clip.text for clip in clips if clip.split == "train")
    failures: Failures = {}
    for split in SPLITS:
        others = OtherSounds([clip for clip in clips if clip.split == split], recordings, digest)
        count = getattr(copies, split)
        names = [(row, f"{clip.clip_id}#{n}") for row, clip in enumerate(others.clips) for n in range(count)]
        jobs = {
            (name, modality): job_of(others, row, kind, severity, copies.seed, name)
            for row, name in names
            for modality, (kind, severity) in draw(copies.seed, name, kinds).items()
            if modality != "text"
        }
        parts = {key: part_of(job, params, folder.parent / "parts", digest) for key, job in jobs.items()}
        failures |= make([(job, parts[key]) for key, job in jobs.items() if read_part(parts[key]) is None])
        rows = _rows(others.clips, names, kinds, parts, copies, params, heard, vocabulary)
        metadata = {"copies": count, "modalities": sorted(kinds), "seed": copies.seed}
        arrow_store.write(folder / f"{split}.arrow", schema, rows, metadata)
    return failures


def draw(seed: int, name: str, kinds: dict[str, tuple[str, ...]]) -> Drawn:
    """Return the kind and the severity, evenly from 0 to 1, of each modality of a copy."""
    drawn = {}
    for modality, of_modality in kinds.items():
        which, severity = SignalDraws(seed, name, f"copy {modality}").uniform(2).tolist()
        drawn[modality] = (of_modality[int(which * len(of_modality))], severity)
    return drawn


def _schema(kinds: dict[str, tuple[str, ...]], params: Extract) -> pa.Schema:
    fields: list[Any] = [("clip_id", pa.string())]
    for modality in kinds:
        fields += [(f"kind_{modality}", pa.string()), (f"severity_{modality}", pa.float32())]
        if modality == "text":
            fields += [("ids", pa.list_(pa.int32())), ("confidence", pa.list_(pa.float32()))]
            fields.append(("wrong", pa.list_(pa.bool_())))
        else:
            dimension = len(extractor(getattr(params, modality)).columns)
            fields.append((modality, arrow_store.frames_type(dimension)))
    return pa.schema(fields)


def _recordings(params: Extract) -> list[Path]:
    """Return the recordings of the copies. Raises UserError for one that the test split has too."""
    recordings = recordings_of(params, "copies")
    if recordings and params.signals:
        tested = {file_digest(path): path for path in recordings_of(params, "signals")}
        for path in recordings:
            if (same := tested.get(file_digest(path))) is not None:
                raise UserError(
                    f"extract.copies.recordings has {path} and extract.signals.recordings has {same}, the same"
                    " recording; each must be on one side only."
                )
    return recordings


def _rows(
    clips: list[LabelledClip],
    names: list[tuple[int, str]],
    kinds: dict[str, tuple[str, ...]],
    parts: dict[tuple[str, str], Path],
    copies: Copies,
    params: Extract,
    heard: dict[str, np.ndarray],
    vocabulary: Vocabulary,
) -> Iterator[dict[str, Any]]:
    tokeniser = extractor(params.text)
    for row, name in names:
        clip = clips[row]
        cells: dict[str, Any] = {"clip_id": clip.clip_id}
        for modality, (kind, severity) in draw(copies.seed, name, kinds).items():
            cells[f"kind_{modality}"] = kind
            cells[f"severity_{modality}"] = 0.0 if kind in degradations.HARMLESS else severity
            if modality == "text":
                draws = SignalDraws(copies.seed, name, kind)
                said = degradations.degrade_text(kind, clip.text, severity, draws, vocabulary)
                cells |= words_of(clip.text, heard.get(clip.clip_id), said, tokeniser, kind in degradations.HARMLESS)
            else:
                frames = read_part(parts[name, modality])
                empty = np.zeros((0, len(extractor(getattr(params, modality)).columns)), np.float32)
                cells[modality] = frames if isinstance(frames, np.ndarray) else empty
        yield cells


def words_of(
    before: str, heard: np.ndarray | None, after: str, tokeniser: Tokens, harmless: bool
) -> dict[str, np.ndarray]:
    """Return token ids, their confidence and which are wrong, of the words `after` that were the words `before`.

    heard: `before` as recognised words with their confidence. A word is wrong if it was not said there, in the best
    alignment of the two; of a harmless kind none is.
    """
    words = after.split()
    ids, _, word_of_id = tokeniser.extract_spoken(np.array(words, object))
    confidence, wrong = np.ones(len(words) + 1, np.float32), np.zeros(len(words) + 1, bool)  # the last is for no word
    wrong[:-1] = not harmless
    for block in SequenceMatcher(None, before.split(), words, autojunk=False).get_matching_blocks():
        wrong[block.b : block.b + block.size] = False
        if heard is not None:
            confidence[block.b : block.b + block.size] = heard["confidence"][block.a : block.a + block.size]
    return {"ids": ids, "confidence": confidence[word_of_id], "wrong": wrong[word_of_id]}
