"""Read raw clips: a folder with media files and a manifest.csv.

Columns: clip_id, source, path, start_s, end_s, text, label, split, and optionally audio_track. `start_s`, `end_s` and
`split` may be empty (the whole file; a split drawn by the hash of the source), and so may `audio_track` (the default
one). Paths are relative and must stay inside the folder.
"""

import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from qamoe.config.task import Task
from qamoe.data.arrow_store import SPLITS
from qamoe.data.clip import (
    Corpus,
    LabelledClip,
    MediaSpan,
    check_clips,
    collect_faults,
    decimal_comma,
    drawn_split,
    label_value,
    open_table,
    reject_ragged,
)
from qamoe.errors import UserError

COLUMNS = ("clip_id", "source", "path", "start_s", "end_s", "text", "label", "split")
TRACK = "audio_track"  # optional column: the number, language or title of the track to read
GENERATOR_VERSION = 1


def read(path: Path, task: Task, faults: list[str] | None = None, *, links: bool = True) -> Corpus:
    """Read and check manifest.csv. Raises UserError if the corpus as a whole is invalid.

    If `faults` is a list, errors of single rows are appended to it and the other rows are read. `links`: media may be
    links that lead out of the folder, as into DVC's cache; say no for a folder that others fill.
    """
    if path.is_file():
        raise UserError(f"{path} is a file; it must be a folder with media and a manifest.csv, such as {path.parent}.")
    if not path.is_dir():
        raise UserError(
            f"The data folder {path} does not exist; run 'dvc pull data.dvc' for the sample corpus, "
            "or create the folder with your own clips and a manifest.csv."
        )
    manifest = path / "manifest.csv"
    if not manifest.is_file():
        raise UserError(f"{manifest} does not exist; its header must be {','.join(COLUMNS)}.")
    root = path.resolve()
    clips = _rows(manifest, root, task, faults, links)
    check_clips(clips, str(manifest), faults)
    return Corpus(clips, ("text", "audio", "vision"), about={"corpus": "clips"})


def header(path: Path) -> list[str]:
    """Return the columns of the manifest.csv of a folder."""
    with open_table(path / "manifest.csv") as reader:
        return list(reader.fieldnames or [])


def read_generated(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read a sample corpus: clips with a corpus.json that names their generator."""
    corpus = read(path, task, faults)
    origin = path / "corpus.json"
    if not origin.is_file():
        raise UserError(f"{origin} does not exist; for your own clips set extract.corpus.kind to clips.")
    try:
        about = json.loads(origin.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{origin} is damaged; it must be the JSON object that the generator wrote.")
    if about.get("version") != GENERATOR_VERSION or isinstance(about["version"], bool):
        raise UserError(
            f"{origin}: generator version is {about.get('version')!r}; this code reads version {GENERATOR_VERSION}."
        )
    return Corpus(corpus.clips, corpus.modalities, about={"corpus": "sample", **about}, generated=True)


def _rows(manifest: Path, root: Path, task: Task, faults: list[str] | None, links: bool) -> list[LabelledClip]:
    clips = []
    with open_table(
        manifest, strict=True
    ) as reader:  # strict: a stray quote would swallow all rows up to the next quote
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f"{manifest} lacks the column {missing[0]}; its header must be {','.join(COLUMNS)}.")
        for row in reader:
            with collect_faults(faults):
                clips.append(_clip(row, root, task, f"{manifest}, line {reader.line_num}", links))
    return clips


def seconds(text: str, name: str, where: str) -> float | None:
    """Convert a time cell of a manifest to seconds; None if the cell is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{where}: {name} is {text!r}, must be a time in seconds of at least 0{decimal_comma(text)}.")
    return value


def media_span(cell: Mapping[str, str], root: Path, where: str, *, links: bool = False) -> MediaSpan:
    """Return what the cells of a row say of its media. Raises UserError as `resolve_media`, or for a time."""
    start = seconds(cell["start_s"], "start_s", where) or 0.0
    end = seconds(cell["end_s"], "end_s", where)
    if end is not None and end <= start:
        raise UserError(f"{where}: end_s {end:g} is not after start_s {start:g}.")
    return MediaSpan(
        clip_id=cell["clip_id"] or cell["path"],
        path=resolve_media(cell["path"], root, where, links=links),
        start_s=start,
        end_s=end,
        text=cell["text"],
        where=where,
        track=cell[TRACK],
    )


def resolve_media(path: str, root: Path, where: str, *, links: bool = False) -> Path:
    """Return the media file that a manifest names. Raises UserError if it does not exist or is outside `root`.

    `links`: a file stands where its name says, wherever it leads as a link. Otherwise it stands where it leads, so that
    nobody who fills the folder can have another file of this machine read.
    """
    stands = Path(os.path.normpath(root / path))
    try:
        media = stands.resolve()
        inside, exists = media.is_relative_to(root), media.is_file()
        if links and stands.is_relative_to(root):
            media, inside = stands, True
    except PermissionError as error:
        raise UserError(f"{where}: path {path!r} is not readable: {error.strerror}.") from None
    except (ValueError, OSError, RuntimeError):  # a NUL character, a name that is too long, circular links
        inside, exists = True, False
    if not inside:
        link = "is a link that leads" if stands.is_relative_to(root) else "is"
        raise UserError(f"{where}: path {path!r} {link} outside the corpus folder.")
    if not exists:
        raise UserError(f"{where}: path {path!r} does not exist in the corpus folder{_cause(path, root, stands)}.")
    return media


def _cause(path: str, root: Path, stands: Path) -> str:
    """Return why a file that seems to be there is not found, and the way out; "" if nothing is known."""
    forms = "its name on disk has accents in Unicode's form {}; write the table from the names on disk, or rename it"
    others = {
        "write / and not \\ between folders": path.replace("\\", "/"),
        **{forms.format(form): unicodedata.normalize(form, path) for form in ("NFC", "NFD")},
    }
    for cause, other in others.items():
        file = Path(os.path.normpath(root / other))
        if file.is_relative_to(root) and os.path.isfile(file):  # noqa: PTH113  # Path.is_file may raise
            return f"; {cause}"
    # As above: Path.is_symlink may raise.
    return f"; it is a link to {os.readlink(stands)}, which is not there" if os.path.islink(stands) else ""  # noqa: PTH114, PTH115


def _clip(row: dict[str, str | None], root: Path, task: Task, where: str, links: bool) -> LabelledClip:
    reject_ragged(row, where)
    cell = {name: (row.get(name) or "").strip() for name in (*COLUMNS, TRACK)}
    for name in ("clip_id", "source", "path", "label"):
        if not cell[name]:
            raise UserError(f"{where}: {name} is empty.")
    if cell["split"] not in ("", *SPLITS):
        raise UserError(f"{where}: split is {cell['split']!r}, must be {', '.join(SPLITS)} or empty.")
    return LabelledClip(
        span=media_span(cell, root, where, links=links),
        source=cell["source"],
        split=cell["split"] or drawn_split(cell["source"]),
        label=label_value(cell["label"], task, where),
    )
