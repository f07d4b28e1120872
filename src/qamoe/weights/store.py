"""The cache of weights: find a name's verified files, fetch missing ones, check what is there."""

import importlib.util
import os
import tempfile
from functools import cache
from pathlib import Path

from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.files import exclusive_lock, file_digest, remove_abandoned
from qamoe.weights.sources import File, Folder, Installed, Source, SourceError
from qamoe.weights.table import WEIGHTS, Weights


def known(name: str) -> Weights:
    """Return the entry of a name. Raises UserError for a name that is not in the table."""
    if name not in WEIGHTS:
        raise UserError(f"weights {name!r} are not known; allowed are {', '.join(WEIGHTS)}.")
    return WEIGHTS[name]


_digest = cache(file_digest)


def folder(name: str, *files: str) -> Path:
    """Return the folder of a name's weights, with these files (default: all) verified once per process.

    Raises UserError if they are missing or a digest differs.
    """
    found = place(name, *files)
    if found is None:
        missing = settings.weights_cache() / name
        raise UserError(f"The weights {name} are missing in {missing}; qamoe weights fetch {name} gets them.")
    for file in WEIGHTS[name].files:
        if (file.name in files or not files) and (digest := _digest(found / file.name)) != file.sha256:
            raise UserError(
                f"{found / file.name} has the SHA-256 {digest}, must have {file.sha256};"
                f" qamoe weights fetch {name} replaces it."
            )
    return found


def place(name: str, *files: str) -> Path | None:
    """Return the first folder that has these files (default: all), not verified: the cache, or an installed package."""
    entry = WEIGHTS[name]
    folders = [settings.weights_cache() / name]
    for source in entry.sources:
        # find_spec does not import the package
        if isinstance(source, Installed) and (spec := importlib.util.find_spec(source.module)) and spec.origin:
            folders.append(Path(spec.origin).parent / source.folder)
    names = files or [file.name for file in entry.files]
    # os.access, because is_file raises for a cache that this user may not read.
    return next((folder for folder in folders if all(os.access(folder / file, os.R_OK) for file in names)), None)


def fetch(name: str) -> Source | None:
    """Get a name's weights from the first source that gives them all with the right digests; None: they are there.

    Two processes that fetch the same name do it once. Raises UserError with each source's reason if none has them, and
    if the cache cannot be written; no part of a file then stands under its name.
    """
    entry = known(name)
    if _intact(name):  # also where the cache cannot be written
        return None
    target = settings.weights_cache() / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(target):
            if _intact(name):  # another process has fetched them since
                return None
            remove_abandoned(target, ".fetch.*")
            return _fetch(name, entry, target)
    except OSError as error:
        place = "" if error.filename is None else f" ({error.filename})"
        raise UserError(f"The weights {name} cannot be put into {target}: {error.strerror or error}{place}.") from None


def _intact(name: str) -> bool:
    _digest.cache_clear()
    try:
        folder(name)
    except UserError:
        return False
    return True


def _fetch(name: str, entry: Weights, target: Path) -> Source:
    local = settings.weights_source()
    sources = [*([Folder(local / name)] if local else []), *entry.sources]
    reasons = []
    for source in sources:
        with tempfile.TemporaryDirectory(prefix=".fetch.", suffix=f".{os.getpid()}", dir=target) as temporary:
            try:
                source.put(entry.files, Path(temporary))
                _move(entry.files, Path(temporary), target)
            except SourceError as reason:
                reasons.append(f"{source}: {reason}")
                continue
        _digest.cache_clear()
        return source
    raise UserError(f"The weights {name} cannot be fetched; {'; '.join(reasons)}.")


def _move(files: tuple[File, ...], temporary: Path, target: Path) -> None:
    """Move files whose digests are right into place, each whole and on the disk."""
    for file in files:
        path = temporary / file.name
        if not path.is_file() or (digest := file_digest(path)) != file.sha256:
            raise SourceError(
                f"{file.name} has the SHA-256 {digest}, must have {file.sha256}" if path.is_file() else "no file"
            )
    for file in files:
        with (temporary / file.name).open("rb") as written:
            os.fsync(written.fileno())
        (temporary / file.name).replace(target / file.name)
