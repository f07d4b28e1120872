"""Add the labelled clips of a folder to the corpus in data/; existing clips never change.

Media are named by their content, so ingesting is idempotent. They are copied before the manifest is replaced: a kill
in between leaves media files without a row, which the next run reuses.
"""

import csv
import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from qamoe.config.task import Task
from qamoe.data import manifest
from qamoe.data.clip import LabelledClip, check_clips, drawn_split
from qamoe.errors import UserError
from qamoe.files import atomic_write, exclusive_lock, file_digest, remove_abandoned, write_text

_SAMPLE = "  remote: sample\n"


@dataclass(frozen=True)
class Ingested:
    """The number of new and of already known clips, and whether data.dvc lost its line `remote: sample`."""

    new: int
    known: int
    left_sample_remote: bool


def ingest(folder: Path, data: Path, task: Task) -> Ingested:
    """Copy the clips of a folder with a manifest.csv into the corpus of raw clips at `data`.

    A row without a split gets the split that its source has in `data`, or else the one drawn by the source's hash.
    Before the first clip is added, the line `remote: sample` is deleted from data.dvc (next to `data`), so that other
    people's clips are never pushed to the git-tracked remote. Raises UserError, and changes nothing, if a row of
    either manifest is invalid, an id belongs to another clip, or a source would be in two splits. Two processes add to
    `data` one after the other.
    """
    if not data.is_dir():
        raise UserError(f"{data} does not exist or is not a folder; it must be a corpus of clips.")
    with exclusive_lock(data):
        return _ingest(folder, data, task)


def _ingest(folder: Path, data: Path, task: Task) -> Ingested:
    remove_abandoned(data, "media/.*.[0-9]*")
    incoming = manifest.read(folder, task, links=False).clips
    existing = {clip.clip_id: clip for clip in manifest.read(data, task).clips}
    splits = {clip.source: clip.split for clip in existing.values()}
    incoming_rows = _rows(folder / "manifest.csv")
    digests: dict[Path, str] = {}
    new: list[tuple[LabelledClip, dict[str, str]]] = []
    for clip in incoming:
        row = incoming_rows[clip.clip_id]
        if not row["split"].strip():
            clip = replace(clip, split=splits.get(clip.source, drawn_split(clip.source)))
        known = existing.get(clip.clip_id)
        if known is None:
            new.append((clip, {**row, "split": clip.split}))
        elif _identity(clip, digests) != _identity(known, digests):
            raise UserError(
                f"{clip.where}: clip id {clip.clip_id!r} belongs to another clip in {data}; choose a new id."
            )
    check_clips([*existing.values(), *(clip for clip, _ in new)], str(folder / "manifest.csv"))
    if not new:
        return Ingested(0, len(incoming), False)
    tracks = next((row[manifest.TRACK].strip() for _, row in new if row[manifest.TRACK].strip()), "")
    if tracks and manifest.TRACK not in manifest.header(data):
        raise UserError(
            f"{folder / 'manifest.csv'} names audio track {tracks!r}, but {data / 'manifest.csv'} has no column "
            f"{manifest.TRACK}; add it there."
        )
    left = _leave_sample_remote(data.with_name(f"{data.name}.dvc"))
    rows = []
    for clip, row in new:
        assert clip.media is not None
        media = clip.media.path
        target = Path("media") / f"{_digest(media, digests)[:32]}{media.suffix.lower()}"
        if not (data / target).is_file():
            with atomic_write(data / target) as temporary:
                shutil.copyfile(media, temporary)
        rows.append({**row, "path": target.as_posix()})
    _append(data / "manifest.csv", rows)
    return Ingested(len(new), len(incoming) - len(new), left)


def _rows(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [
            {name: row.get(name) or "" for name in (*manifest.COLUMNS, manifest.TRACK)} for row in csv.DictReader(lines)
        ]
    return {row["clip_id"].strip(): row for row in rows}


def _digest(media: Path, known: dict[Path, str]) -> str:
    if media not in known:
        known[media] = file_digest(media)
    return known[media]


def _identity(clip: LabelledClip, known: dict[Path, str]) -> tuple[object, ...]:
    """Return the values that identify a clip, independent of the path of its media."""
    assert clip.media is not None
    media, digest = clip.media, _digest(clip.media.path, known)
    return (clip.source, clip.split, clip.label, clip.text, media.start_s, media.end_s, media.track, digest)


def _leave_sample_remote(pointer: Path) -> bool:
    """Delete the line `remote: sample` from data.dvc; return whether it was there."""
    content = pointer.read_text() if pointer.is_file() else ""
    kept = content.replace(_SAMPLE, "")
    if kept == content:
        return False
    write_text(pointer, kept)
    return True


def _append(file: Path, rows: list[dict[str, str]]) -> None:
    """Add rows to a manifest by replacing the file, which may be a link into DVC's cache."""
    before = file.read_text(encoding="utf-8")
    header = next(csv.reader(io.StringIO(before.removeprefix("\ufeff"))))
    added = io.StringIO()
    writer = csv.DictWriter(added, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writerows(rows)
    with atomic_write(file) as temporary:
        temporary.write_text(before + ("" if before.endswith("\n") else "\n") + added.getvalue(), encoding="utf-8")
