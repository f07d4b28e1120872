"""A file that is no corpus gets the name of what it is, and a way out."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from qamoe.config.params import Params
from qamoe.data.validate import check
from tests.media.test_decode import write_media

pytestmark = pytest.mark.integration  # a process interprets each pickle
ROOT = Path(__file__).parents[2]
EXTRACT = Params.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())).extract


def packed(kind: str) -> bytes:
    """Return an archive of this kind with one file."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("a.pkl", b"x")
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "gz" else "w") as tar:
            tar.addfile(tarfile.TarInfo("a.pkl"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("manifest.csv", b"clip_id,source", "is a manifest, "),
        ("labels.csv", b"clip_id,source", "is a table, "),
        ("labels.tsv", b"clip_id\tsource", "is a table with tabs"),
        ("mosi.json", b"{}", "is a JSON file"),
        ("mosi.pkl", packed("zip"), "is a zip archive"),
        ("mosi.pkl", packed("gz"), "is a gzip archive"),
        ("mosi.pkl", packed("tar"), "is a tar archive"),
        ("mosi.csd", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        ("mosi.pkl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("mosi.pkl", pickle.dumps([1, 2]), "top level is list of 2, must be"),
        ("mosi.pkl", pickle.dumps({"a": 1, "b": 2}, 0), "top level is a dict with the keys 'a', 'b', must be"),
    ],
    ids=[
        "manifest",
        "csv",
        "tsv",
        "json",
        "zip",
        "gz",
        "tar",
        "csd",
        "lfs",
        "list",
        "dict",
    ],  # an archive holds its time
)
def test_a_file_is_named(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    (error,) = check(tmp_path / name, EXTRACT).errors
    assert error.startswith(f"{tmp_path / name} ")
    assert named in error
    assert "\n" not in error


def test_media_and_parquet_are_named(tmp_path: Path) -> None:
    write_media(tmp_path / "clip.mp4")
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "clips.parquet")
    assert "is a media file" in check(tmp_path / "clip.mp4", EXTRACT).errors[0]
    assert "is a Parquet table" in check(tmp_path / "clips.parquet", EXTRACT).errors[0]


def test_what_a_folder_without_a_manifest_holds_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("clip_id,source")
    assert "table labels.csv; " in check(tmp_path, EXTRACT).errors[-1]
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps({}))
    for kind, named in ((None, f"'qamoe check {tmp_path}/mosi.pkl'"), ("mmsa", f"such as {tmp_path}/mosi.pkl")):
        assert named in check(tmp_path, EXTRACT, kind).errors[-1]
    assert str(tmp_path) in check(tmp_path / "mosi.pkl", EXTRACT, "clips").errors[-1]
