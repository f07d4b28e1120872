"""Raw clips: a folder with manifest.csv beside media files.

Columns: clip_id, source, path, start_s, end_s, text, label, split. `start_s`, `end_s` and `split` may be empty
(the whole file; a split drawn by the hash of the source). Paths are relative and stay inside the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from qamoe.config.task import Task
from qamoe.data.arrow_store import SPLITS
from qamoe.data.clip import (
    Corpus,
    LabelledClip,
    MediaSpan,
    check_clips,
    drawn_split,
    label_value,
    noted,
    refuse_ragged,
    rows_of,
)
from qamoe.errors import UserError

COLUMNS = ("clip_id", "source", "path", "start_s", "end_s", "text", "label", "split")
GENERATOR_VERSION = 1


def read(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read and check manifest.csv. Raises UserError for anything wrong with the corpus as a whole.

    With a list for `faults`, what is wrong with a row goes there, and the other rows are read.
    """
    if not path.is_dir():
        raise UserError(
            f"There is no data folder {path}; the sample corpus comes with 'dvc pull data.dvc', "
            "your own clips with a manifest.csv in it."
        )
    manifest = path / "manifest.csv"
    if not manifest.is_file():
        raise UserError(f"There is no manifest.csv in {path}; its header is {','.join(COLUMNS)}.")
    root = path.resolve()
    clips = _rows(manifest, root, task, faults)
    check_clips(clips, str(manifest), faults)
    return Corpus(clips, ("text", "audio", "vision"), about={"corpus": "clips"})


def read_generated(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read a sample corpus: clips that also say which generator made them."""
    corpus = read(path, task, faults)
    origin = path / "corpus.json"
    if not origin.is_file():
        raise UserError(f"{origin} is missing; for clips of your own set extract.corpus.kind to clips.")
    try:
        about = json.loads(origin.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{origin} is damaged; it is a JSON object that the generator wrote.")
    if about.get("version") != GENERATOR_VERSION:
        raise UserError(
            f"{origin}: generator version {about.get('version')!r} is not {GENERATOR_VERSION}, the one this code knows."
        )
    return Corpus(corpus.clips, corpus.modalities, about={"corpus": "sample", **about}, generated=True)


def _rows(manifest: Path, root: Path, task: Task, faults: list[str] | None) -> list[LabelledClip]:
    clips = []
    with rows_of(manifest, strict=True) as reader:  # a stray quote would swallow the rows up to the next one
        lacking = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if lacking:
            raise UserError(f"{manifest} lacks the column {lacking[0]}; its header is {','.join(COLUMNS)}.")
        for row in reader:
            with noted(faults):
                clips.append(_clip(row, root, task, f"{manifest}, line {reader.line_num}"))
    return clips


def seconds(text: str, name: str, where: str) -> float | None:
    """A time of a manifest, or None where its cell is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{where}: {name} {text!r} is no time in seconds from 0 on.")
    return value


def span(cell: Mapping[str, str], where: str) -> tuple[float, float | None]:
    """Where a clip begins and ends in its file (seconds); None is the end of the file."""
    start = seconds(cell["start_s"], "start_s", where) or 0.0
    end = seconds(cell["end_s"], "end_s", where)
    if end is not None and end <= start:
        raise UserError(f"{where}: end_s {end:g} is not after start_s {start:g}.")
    return start, end


def media_of(path: str, root: Path, where: str) -> Path:
    """The media file that a manifest names. Raises UserError where it is not there, or not inside the corpus folder."""
    try:
        media = (root / path).resolve()
        inside, there = media.is_relative_to(root), media.is_file()
    except (ValueError, OSError, RuntimeError):  # a NUL within, a name that is too long, links in a circle
        inside, there = True, False
    if not inside:
        raise UserError(f"{where}: path {path!r} leads outside the corpus folder.")
    if not there:
        raise UserError(f"{where}: there is no file {path!r} in the corpus folder.")
    return media


def _clip(row: dict[str, str | None], root: Path, task: Task, where: str) -> LabelledClip:
    refuse_ragged(row, where)
    cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in ("clip_id", "source", "path", "label"):
        if not cell[name]:
            raise UserError(f"{where}: {name} is empty.")
    if cell["split"] not in ("", *SPLITS):
        raise UserError(f"{where}: split {cell['split']!r} is none of {', '.join(SPLITS)} (or empty).")
    path = media_of(cell["path"], root, where)
    start_s, end_s = span(cell, where)
    return LabelledClip(
        span=MediaSpan(
            clip_id=cell["clip_id"], path=path, start_s=start_s, end_s=end_s, text=cell["text"], where=where
        ),
        source=cell["source"],
        split=cell["split"] or drawn_split(cell["source"]),
        label=label_value(cell["label"], task, where),
    )
