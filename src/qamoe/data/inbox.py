"""Clips to be scored: media in a folder, or rows of a manifest; nobody has labelled them, and no split is theirs.

In a folder that has a manifest.csv, its rows are the clips; in one without, every media file is a clip without words.
Columns: path; clip_id, start_s, end_s and text may be left out (the path is then the id, the whole file the clip).
"""

from pathlib import Path

from qamoe.data.clip import Clip, noted, refuse_ragged, rows_of
from qamoe.data.manifest import media_of, span
from qamoe.data.validate import MEDIA
from qamoe.errors import UserError

OPTIONAL = ("clip_id", "start_s", "end_s", "text")


def read(path: Path, faults: list[str]) -> list[Clip]:
    """The clips of a folder or a manifest, in clip-id order; label NaN, source and split empty.

    What is wrong with a row goes into `faults`, and the others are read: an inbox may be filled meanwhile. Raises
    UserError where there is nothing at that path, or where it cannot be read at all.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}; allowed is a folder of media, or a manifest.csv.")
    manifest = path / "manifest.csv" if path.is_dir() else path
    root = manifest.parent.resolve()
    clips: dict[str, Clip] = {}
    if not manifest.is_file():
        found = sorted(file for file in root.rglob("*") if file.suffix.lower() in MEDIA and file.is_file())
        clips = {clip.clip_id: clip for clip in (_bare(file, root) for file in found)}
        return [clips[name] for name in sorted(clips)]
    with rows_of(manifest, strict=True) as reader:
        if "path" not in (reader.fieldnames or []):
            raise UserError(f"{manifest} lacks the column path; {', '.join(OPTIONAL)} may stand beside it.")
        for row in reader:
            where = f"{manifest}, line {reader.line_num}"
            with noted(faults):
                clip = _clip(row, root, where)
                if clip.clip_id in clips:
                    raise UserError(f"{where}: clip id {clip.clip_id!r} stands twice; ids must be unique.")
                clips[clip.clip_id] = clip
    return [clips[name] for name in sorted(clips)]


def _bare(media: Path, root: Path) -> Clip:
    name = media.relative_to(root).as_posix()
    return Clip(name, source="", split="", label=float("nan"), text="", media=media, where=name)


def _clip(row: dict[str, str | None], root: Path, where: str) -> Clip:
    refuse_ragged(row, where)
    cell = {name: (row.get(name) or "").strip() for name in ("path", *OPTIONAL)}
    if not cell["path"]:
        raise UserError(f"{where}: path is empty.")
    start, end = span(cell, where)
    return Clip(
        clip_id=cell["clip_id"] or cell["path"],
        source="",
        split="",
        label=float("nan"),
        text=cell["text"],
        media=media_of(cell["path"], root, where),
        start_s=start,
        end_s=end,
        where=where,
    )
