"""The reader of CTranslate2's model.bin, on a file made by hand from the format's description."""

import struct
from pathlib import Path

import pytest
import torch

from qamoe.errors import UserError
from qamoe.extractors.ctranslate2_file import read_variables


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, shape: list[int], kind: int, content: bytes) -> bytes:
    head = struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, len(content))
    return string(name) + head + content


def model(*variables: bytes, version: int = 6, kind: str = "WhisperSpec") -> bytes:
    head = struct.pack("<I", version) + string(kind) + struct.pack("<II", 3, len(variables))
    return head + b"".join(variables) + struct.pack("<I", 0)


# 1, -2, 0.5 and 65504 in half precision, two rows; then 2 in 16 bits; then -1 in single precision.
HALVES = bytes.fromhex("003c 00c0 0038 ff7b")
CONTENT = model(
    variable("decoder/heads", [], 2, bytes.fromhex("0800")),
    variable("encoder/weight", [2, 2], 4, HALVES),
    variable("encoder/heads", [], 2, bytes.fromhex("0200")),
    variable("encoder/scale", [1], 0, bytes.fromhex("000080bf")),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def test_a_file_made_by_hand_is_read_with_its_shapes_and_types(path: Path) -> None:
    path.write_bytes(CONTENT)
    variables = read_variables(path, "WhisperSpec", "encoder/")
    assert list(variables) == ["encoder/weight", "encoder/heads", "encoder/scale"]
    assert variables["encoder/weight"].dtype == torch.float16
    assert variables["encoder/weight"].tolist() == [[1, -2], [0.5, 65504]]
    assert (variables["encoder/heads"].item(), variables["encoder/heads"].dtype) == (2, torch.int16)
    assert variables["encoder/scale"].tolist() == [-1]
    assert len(read_variables(path, "WhisperSpec")) == 4


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (model(version=5), r"version 5\b.*\b6\b"),
        (model(kind="TransformerSpec"), "TransformerSpec.*WhisperSpec"),
        (b"", "damaged"),
        (b"PK\3\4" + bytes(40), r"version 67324752\b"),
        (model(variable("encoder/weight", [2], 9, bytes(4))), "damaged"),
        (model(variable("encoder/weight", [3], 4, bytes(4))), "damaged"),
        *((CONTENT[:length], "damaged") for length in range(5, len(CONTENT), 7)),
    ],
)
def test_a_damaged_or_other_file_is_refused(path: Path, content: bytes, named: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.bin.*{named}"):
        read_variables(path, "WhisperSpec")
