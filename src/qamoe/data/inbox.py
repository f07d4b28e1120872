"""Read clips to be scored, without labels and splits: media in a folder, or rows of a manifest.

If the folder has a manifest.csv, its rows are the clips; otherwise every media file is a clip. Columns: path;
optionally clip_id (default: the path), start_s, end_s (default: the whole file), text and audio_track. A clip without
text may have a transcript next to its file (see qamoe.data.subtitles).
"""

from pathlib import Path

from qamoe.data.clip import MediaSpan, collect_faults, open_table, reject_ragged
from qamoe.data.manifest import TRACK, media_span
from qamoe.data.validate import media_files
from qamoe.errors import UserError

OPTIONAL = ("clip_id", "start_s", "end_s", "text", TRACK)


def read(path: Path, faults: list[str], left_out: list[str]) -> list[MediaSpan]:
    """Read the clips of a folder or a manifest, in clip-id order.

    `left_out` gets a sentence on the files of a folder that are not media. Errors of single rows are appended to
    `faults` and the other rows are read, because an inbox may be filled at the same time. Raises UserError if the path
    does not exist or the manifest cannot be read at all.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; it must be a folder of media or a manifest.csv.")
    manifest = path / "manifest.csv" if path.is_dir() else path
    if manifest.exists() and not manifest.is_file():
        raise UserError(f"{manifest} is neither a file nor a folder; it must be a folder of media or a manifest.csv.")
    root = manifest.parent.resolve()
    clips: dict[str, MediaSpan] = {}
    if not manifest.is_file():
        names = {file.relative_to(root).as_posix(): file for file in media_files(root, faults, left_out)}
        return [MediaSpan(clip_id=name, path=names[name], where=name) for name in sorted(names)]
    with open_table(manifest, strict=True) as reader:
        if "path" not in (reader.fieldnames or []):
            raise UserError(f"{manifest} lacks the column path; {', '.join(OPTIONAL)} are optional.")
        for row in reader:
            where = f"{manifest}, line {reader.line_num}"
            with collect_faults(faults):
                clip = _clip(row, root, where)
                if clip.clip_id in clips:
                    raise UserError(
                        f"{where}: duplicate clip id {clip.clip_id!r} (first at {clips[clip.clip_id].where}); "
                        "ids must be unique."
                    )
                clips[clip.clip_id] = clip
    return [clips[name] for name in sorted(clips)]


def _clip(row: dict[str, str | None], root: Path, where: str) -> MediaSpan:
    reject_ragged(row, where)
    cell = {name: (row.get(name) or "").strip() for name in ("path", *OPTIONAL)}
    if not cell["path"]:
        raise UserError(f"{where}: path is empty.")
    return media_span(cell, root, where)
