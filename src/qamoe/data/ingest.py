"""Clips that wait in a folder -> data/, with their manifest rows: the corpus grows, and nothing in it changes.

Media are named by their content, so that doing it twice is doing it once. They are copied before the manifest is
replaced: a kill between the two leaves files that no row names, and the next time takes them over.
"""

import csv
import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from qamoe.config.task import Task
from qamoe.data import manifest as clips
from qamoe.data.clip import LabelledClip, check_clips, drawn_split
from qamoe.errors import UserError
from qamoe.files import atomic_write, file_digest, write_text

_SAMPLE = "  remote: sample\n"


@dataclass(frozen=True)
class Ingested:
    """How many clips were new and how many were there already, and whether data.dvc lost its line `remote: sample`."""

    new: int
    known: int
    left_sample_remote: bool


def ingest(folder: Path, data: Path, task: Task) -> Ingested:
    """Copy the clips of a folder with a manifest.csv into the corpus of raw clips at `data`.

    A row without a split takes the one that its source has in `data`, or else that which the source's hash draws.
    Before the first clip goes in, data.dvc (beside `data`) loses the line `remote: sample`: other people's clips must
    not end in the git-tracked remote. Raises UserError, and changes nothing, where a row of either is wrong, an id is
    taken by another clip, or a source would be in two splits.
    """
    waiting = clips.read(folder, task).clips
    there = {clip.clip_id: clip for clip in clips.read(data, task).clips}
    splits = {clip.source: clip.split for clip in there.values()}
    given = _rows(folder / "manifest.csv")
    digests: dict[Path, str] = {}
    fresh: list[tuple[LabelledClip, dict[str, str]]] = []
    for clip in waiting:
        row = given[clip.clip_id]
        if not row["split"].strip():
            clip = replace(clip, split=splits.get(clip.source, drawn_split(clip.source)))
        old = there.get(clip.clip_id)
        if old is None:
            fresh.append((clip, {**row, "split": clip.split}))
        elif _identity(clip, digests) != _identity(old, digests):
            raise UserError(f"{clip.where}: clip id {clip.clip_id!r} is another clip's in {data}; give it a new one.")
    check_clips([*there.values(), *(clip for clip, _ in fresh)], str(folder / "manifest.csv"))
    if not fresh:
        return Ingested(0, len(waiting), False)
    left = _leave_sample_remote(data.with_name(f"{data.name}.dvc"))
    rows = []
    for clip, row in fresh:
        assert clip.media is not None
        media = clip.media.path
        place = Path("media") / f"{_digest(media, digests)[:32]}{media.suffix.lower()}"
        if not (data / place).is_file():
            with atomic_write(data / place) as aside:
                shutil.copyfile(media, aside)
        rows.append({**row, "path": place.as_posix()})
    _append(data / "manifest.csv", rows)
    return Ingested(len(fresh), len(waiting) - len(fresh), left)


def _rows(manifest: Path) -> dict[str, dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8-sig") as lines:
        rows = [{name: row.get(name) or "" for name in clips.COLUMNS} for row in csv.DictReader(lines)]
    return {row["clip_id"].strip(): row for row in rows}


def _digest(media: Path, known: dict[Path, str]) -> str:
    if media not in known:
        known[media] = file_digest(media)
    return known[media]


def _identity(clip: LabelledClip, known: dict[Path, str]) -> tuple[object, ...]:
    """What makes a clip the same one, wherever its media lie."""
    assert clip.media is not None
    media, digest = clip.media, _digest(clip.media.path, known)
    return (clip.source, clip.split, clip.label, clip.text, media.start_s, media.end_s, digest)


def _leave_sample_remote(pointer: Path) -> bool:
    """Delete the line `remote: sample` from data.dvc; False where there is none."""
    content = pointer.read_text() if pointer.is_file() else ""
    kept = content.replace(_SAMPLE, "")
    if kept == content:
        return False
    write_text(pointer, kept)
    return True


def _append(manifest: Path, rows: list[dict[str, str]]) -> None:
    """Add rows to a manifest as a new file in its place: the old one may be a link into DVC's cache."""
    before = manifest.read_text(encoding="utf-8")
    header = next(csv.reader(io.StringIO(before.removeprefix("\ufeff"))))
    added = io.StringIO()
    writer = csv.DictWriter(added, header, restval="", lineterminator="\n")
    writer.writerows(rows)
    with atomic_write(manifest) as aside:
        aside.write_text(before + ("" if before.endswith("\n") else "\n") + added.getvalue(), encoding="utf-8")
