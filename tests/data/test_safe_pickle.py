"""Untrusted pickles: arrays and plain values are read, and names that could run code are rejected."""

import codecs
import os
import pickle
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.data import safe_pickle
from qamoe.errors import UserError

PLAIN = {
    "x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "texts": np.array(["a", "ü"], object),
    "scalar": np.float64(2.5),
    "list": [1, 2.5, None, True, "text", (1, 2), b"bytes"],
}


class Attack:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_are_read(tmp_path: Path, protocol: int) -> None:
    """Older feature files have protocol 2 at most, the last of Python 2."""
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    content = safe_pickle.read(path)
    for name in ("x", "columns"):
        assert content[name].tolist() == PLAIN[name].tolist()  # type: ignore[attr-defined]
        assert content[name].dtype == PLAIN[name].dtype  # type: ignore[attr-defined]
    assert content["texts"].tolist() == ["a", "ü"]
    assert (content["scalar"], content["list"]) == (PLAIN["scalar"], PLAIN["list"])


def test_sets_and_slices_are_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps([{3}, slice(1, 2)]))
    assert safe_pickle.read(path) == [{3}, slice(1, 2)]


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize(
    ("call", "named"), [(os.system, f"{os.name}.system"), (eval, r"(__builtin__|builtins)\.eval"), (open, r"io\.open")]
)
def test_code_is_rejected_with_its_name_and_never_run(tmp_path: Path, call: Any, named: str, protocol: int) -> None:
    victim, path = tmp_path / "victim", tmp_path / "p.pkl"
    arguments = {os.system: f"touch {victim}", eval: f"open({str(victim)!r}, 'w')"}
    attack = Attack(call, arguments[call]) if call in arguments else Attack(open, str(victim), "w")
    path.write_bytes(pickle.dumps({"train": [1.0, attack]}, protocol=protocol))
    with pytest.raises(UserError, match=rf"p\.pkl .*\b{named};"):
        safe_pickle.read(path)
    assert not victim.exists()


def test_a_pickle_cannot_reach_through_a_dotted_name(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.")
    with pytest.raises(UserError, match=r"p\.pkl .*\bnumpy\.f2py\.os\.system"):
        safe_pickle.read(path)


@pytest.mark.parametrize("content", [b"]r\xff\xff\xff\xff.", b"]p4000000000\n.", b"]q\x07.", b"]p-1\n."])
def test_an_impossible_memo_slot_is_rejected_before_it_is_allocated(tmp_path: Path, content: bytes) -> None:
    """A file of seven bytes could allocate 4,000,000,000 slots, which take 64 GB."""
    path = tmp_path / "p.pkl"
    path.write_bytes(content)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))
    try:
        with pytest.raises(UserError, match=r"p\.pkl .*memo slot -?\d+ after 2 opcodes"):
            safe_pickle.read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"P\n.", "outside the file"),
        (b"\x80\x04\x8c\x05two\nl\x8c\x02os\x93.", r"'two\\nl\.os';"),
    ],
)
def test_a_damaged_name_still_gives_one_sentence(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=rf"p\.pkl .*{named}") as raised:
        safe_pickle.read(tmp_path / "p.pkl")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.",  # a key
        b"\x80\x04\x8f(" + b")" + b"\x85\x94" * 300_000 + b"\x90.",  # a member of a set
        b"}" + b")q\x00" + b"0h\x00\x85q\x00" * 300_000 + b"K\x01s.",  # through the memo
        b"}" + b")" + b"K\x01\x86" * 300_000 + b"K\x01s.",  # in pairs
    ],
)
def test_deeply_nested_tuples_are_rejected_before_they_are_hashed(tmp_path: Path, content: bytes) -> None:
    """Python hashes nested tuples recursively until its stack overflows, which kills the process."""
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.pkl .*100 tuples"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_a_slow_encoding_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(Attack(codecs.encode, "a" * 100, "idna"), protocol=2))
    with pytest.raises(UserError, match=r"p\.pkl .*'idna'"):
        safe_pickle.read(path)


def test_strings_of_python_2_are_decoded_with_the_chosen_encoding(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x02]q\x00(U\x04caf\xe9q\x01e.")
    assert safe_pickle.read(path, encoding="latin1") == ["café"]
    path.write_bytes(b"(lp0\nS'caf\\xe9'\np1\na.")
    assert safe_pickle.read(path, encoding="latin1") == ["café"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_become_arrays(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "p.pkl"
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:3, ::2],
        "empty": whole[:0],
        "ints": torch.arange(3),
    }
    path.write_bytes(pickle.dumps(tensors, protocol=protocol))
    arrays = safe_pickle.read(path)
    for name, tensor in tensors.items():
        assert isinstance(arrays[name], np.ndarray)
        assert arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (7,), (1,)), (5, (2,), (1,)), (0, (10**9,), (0,)), (-1, (1,), (1,)), (0, (2,), (-1,))],
)
def test_a_tensor_beyond_its_storage_is_rejected(tmp_path: Path, offset: int, size: Any, stride: Any) -> None:
    storage = torch.arange(6, dtype=torch.float32)._typed_storage()
    attack = Attack(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, None)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(attack))
    with pytest.raises(UserError, match=r"p\.pkl .*tensor .*storage"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_code_in_a_torch_storage_is_rejected_and_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    inner = pickle.dumps(Attack(os.system, f"touch {victim}"), protocol=2)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(Attack(torch.storage._load_from_bytes, inner)))
    with pytest.raises(UserError, match=r"p\.pkl .*torch storage"):
        safe_pickle.read(tmp_path / "p.pkl")
    assert not victim.exists()


def test_a_pickle_truncated_anywhere_is_rejected(tmp_path: Path) -> None:
    whole, path = pickle.dumps(PLAIN), tmp_path / "p.pkl"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"p\.pkl") as raised:
            safe_pickle.read(path)
        assert "\n" not in str(raised.value)


def test_a_damaged_pickle_is_either_read_or_rejected(tmp_path: Path) -> None:
    whole, path = pickle.dumps({"x": [1, 2.5, "text"], "y": {"a": (None, b"bytes")}}), tmp_path / "p.pkl"
    draws = random.Random(0)
    rejected = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(draws.choice([1, 2, 5])):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        path.write_bytes(damaged)
        try:
            safe_pickle.read(path)
        except UserError:
            rejected += 1
    assert rejected > 500


@pytest.mark.parametrize("content", [b"", b"clip_id,source\n", b"PK\x03\x04 a zip", b"\x80\x04\x8e" + b"\xff" * 8])
def test_another_kind_of_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.pkl"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_a_missing_file_and_a_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pkl"):
        safe_pickle.read(tmp_path / "nowhere.pkl")
    with pytest.raises(UserError, match=rf"{tmp_path} .*folder"):
        safe_pickle.read(tmp_path)
