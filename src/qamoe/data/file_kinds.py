"""Say what a file is that was given in place of a pickle, and what to do with it."""

from pathlib import Path

from qamoe.media.decode import SUFFIXES

PICKLES = (".pkl", ".pickle", ".p")
_UNPACK = "unpack it, and give what is in it"
_TABLE = "name it manifest.csv, put it next to the media, and give the folder"
_HEAD = 265  # bytes; a tar archive says so at 257
# The first bytes of a file, what it is, and the way out. A pickle begins with none of them.
_BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"PAR1", "a Parquet table", "write its clips as a manifest.csv next to their media, and give the folder"),
    (b"\x89HDF", "an HDF5 file, as a .csd of CMU-MultimodalSDK", "align and store it as a pickle first"),
    (b"\x93NUMPY", "a NumPy array", "a corpus is a dict of splits with labels and ids; store it as a pickle"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself", "run 'git lfs pull'"),
)
_SUFFIXES = {
    ".csv": ("a table", _TABLE),
    ".tsv": ("a table with tabs", "save it with commas, name it manifest.csv, and give its folder"),
    ".xlsx": ("a spreadsheet", "save it as manifest.csv, UTF-8 with commas, next to the media, and give the folder"),
    ".json": ("a JSON file", "write its clips as a manifest.csv next to their media, and give the folder"),
}


def other_than_pickle(path: Path) -> str | None:
    """Return what the file is and the way out, as the end of a sentence; None if it may be a pickle.

    Raises OSError if the file cannot be read.
    """
    suffix = path.suffix.lower()
    if path.name == "manifest.csv":
        return f"is a manifest, must be a pickle; give its folder, {path.parent}"
    if suffix in SUFFIXES:
        return "is a media file, must be a pickle; give the folder with its manifest.csv ('qamoe predict' takes files)"
    if suffix in _SUFFIXES:
        what, way_out = _SUFFIXES[suffix]
        return f"is {what}, must be a pickle; {way_out}"
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[257:262] == b"ustar":
        return f"is a tar archive, must be a pickle; {_UNPACK}"
    found = ((what, way_out) for beginning, what, way_out in _BEGINNINGS if head.startswith(beginning))
    what, way_out = next(found, ("", ""))
    return f"is {what}, must be a pickle; {way_out}" if what else None


def pickle_in(folder: Path) -> Path | None:
    """Return the first pickle of a folder by name; None if it has none."""
    return next((file for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES and file.is_file()), None)
