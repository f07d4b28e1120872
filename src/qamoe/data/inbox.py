"""Clips to be scored: media in a folder, or rows of a manifest; nobody has labelled them, and no split is theirs.

In a folder that has a manifest.csv, its rows are the clips; in one without, every media file is a clip without words.
Columns: path; clip_id, start_s, end_s and text may be left out (the path is then the id, the whole file the clip).
"""

from pathlib import Path

from qamoe.data.clip import MediaSpan, noted, refuse_ragged, rows_of
from qamoe.data.manifest import media_of, span
from qamoe.data.validate import MEDIA
from qamoe.errors import UserError

OPTIONAL = ("clip_id", "start_s", "end_s", "text")


def read(path: Path, faults: list[str]) -> list[MediaSpan]:
    """The clips of a folder or a manifest, in clip-id order.

    What is wrong with a row goes into `faults`, and the others are read: an inbox may be filled meanwhile. Raises
    UserError where there is nothing at that path, or where it cannot be read at all.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}; allowed is a folder of media, or a manifest.csv.")
    manifest = path / "manifest.csv" if path.is_dir() else path
    root = manifest.parent.resolve()
    clips: dict[str, MediaSpan] = {}
    if not manifest.is_file():
        files = (file for file in root.rglob("*") if file.suffix.lower() in MEDIA and file.is_file())
        names = {file.relative_to(root).as_posix(): file for file in files}
        return [MediaSpan(clip_id=name, path=names[name], where=name) for name in sorted(names)]
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


def _clip(row: dict[str, str | None], root: Path, where: str) -> MediaSpan:
    refuse_ragged(row, where)
    cell = {name: (row.get(name) or "").strip() for name in ("path", *OPTIONAL)}
    if not cell["path"]:
        raise UserError(f"{where}: path is empty.")
    start_s, end_s = span(cell, where)
    path = media_of(cell["path"], root, where)
    name = cell["clip_id"] or cell["path"]
    return MediaSpan(clip_id=name, path=path, start_s=start_s, end_s=end_s, text=cell["text"], where=where)
