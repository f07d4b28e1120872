"""Pickles from strangers: arrays and plain values are read, anything that would run code is refused by name."""

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
    """Python 2 wrote protocol 2 at most, and older feature files are such."""
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    found = safe_pickle.read(path)
    for name in ("x", "columns"):
        assert found[name].tolist() == PLAIN[name].tolist()  # type: ignore[attr-defined]
        assert found[name].dtype == PLAIN[name].dtype  # type: ignore[attr-defined]
    assert found["texts"].tolist() == ["a", "ü"]
    assert (found["scalar"], found["list"]) == (PLAIN["scalar"], PLAIN["list"])


def test_sets_and_slices_are_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps([{3}, slice(1, 2)]))
    assert safe_pickle.read(path) == [{3}, slice(1, 2)]


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize(
    ("call", "named"), [(os.system, f"{os.name}.system"), (eval, r"(__builtin__|builtins)\.eval"), (open, r"io\.open")]
)
def test_code_is_refused_by_the_name_of_what_it_asks_for_and_never_run(
    tmp_path: Path, call: Any, named: str, protocol: int
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "p.pkl"
    orders = {os.system: f"touch {victim}", eval: f"open({str(victim)!r}, 'w')"}
    attack = Attack(call, orders[call]) if call in orders else Attack(open, str(victim), "w")
    path.write_bytes(pickle.dumps({"train": [1.0, attack]}, protocol=protocol))
    with pytest.raises(UserError, match=rf"p\.pkl is refused: it asks for {named}; only arrays and plain"):
        safe_pickle.read(path)
    assert not victim.exists()


def test_a_pickle_cannot_reach_through_a_dotted_name(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.")
    with pytest.raises(UserError, match=r"it asks for numpy\.f2py\.os\.system"):
        safe_pickle.read(path)


@pytest.mark.parametrize("content", [b"]r\xff\xff\xff\xff.", b"]p4000000000\n.", b"]q\x07.", b"]p-1\n."])
def test_a_memo_slot_that_no_pickler_names_is_refused_before_it_is_made(tmp_path: Path, content: bytes) -> None:
    """Room for 4,000,000,000 slots would be 64 GB, for a file of seven bytes."""
    path = tmp_path / "p.pkl"
    path.write_bytes(content)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))
    try:
        with pytest.raises(UserError, match=r"p\.pkl is refused: it names memo slot -?\d+ after 2 opcodes"):
            safe_pickle.read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"P\n.", "it asks for an object that is kept elsewhere; only arrays"),
        (b"\x80\x04\x8c\x05two\nl\x8c\x02os\x93.", r"it asks for 'two\\nl\.os'; only arrays"),
    ],
)
def test_what_damage_makes_of_a_name_is_still_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        safe_pickle.read(tmp_path / "p.pkl")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content",
    [
        b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.",  # a key
        b"\x80\x04\x8f(" + b")" + b"\x85\x94" * 300_000 + b"\x90.",  # a member of a set
        b"}" + b")q\x00" + b"0h\x00\x85q\x00" * 300_000 + b"K\x01s.",  # by way of the memo
        b"}" + b")" + b"K\x01\x86" * 300_000 + b"K\x01s.",  # in pairs
    ],
)
def test_tuples_in_tuples_without_an_end_are_refused_before_they_are_hashed(tmp_path: Path, content: bytes) -> None:
    """Python hashes them one within the other until its stack is full, and dies."""
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.pkl is refused: it holds more than 100 tuples in each other"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_an_encoding_that_may_take_forever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(Attack(codecs.encode, "a" * 100, "idna"), protocol=2))
    with pytest.raises(UserError, match="it asks for the encoding 'idna'"):
        safe_pickle.read(path)


def test_strings_of_python_2_are_read_with_their_encoding(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x02]q\x00(U\x04caf\xe9q\x01e.")
    assert safe_pickle.read(path, encoding="latin1") == ["café"]
    path.write_bytes(b"(lp0\nS'caf\\xe9'\np1\na.")
    assert safe_pickle.read(path, encoding="latin1") == ["café"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_become_arrays(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "p.pkl"
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"whole": whole, "turned": whole.T, "part": whole[1:3, ::2], "empty": whole[:0], "ints": torch.arange(3)}
    path.write_bytes(pickle.dumps(tensors, protocol=protocol))
    found = safe_pickle.read(path)
    for name, tensor in tensors.items():
        assert isinstance(found[name], np.ndarray)
        assert found[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(found[name], tensor.numpy())


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (7,), (1,)), (5, (2,), (1,)), (0, (10**9,), (0,)), (-1, (1,), (1,)), (0, (2,), (-1,))],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, offset: int, size: Any, stride: Any) -> None:
    storage = torch.arange(6, dtype=torch.float32)._typed_storage()
    attack = Attack(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, None)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(attack))
    with pytest.raises(UserError, match="it holds a tensor that"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_code_within_a_torch_storage_is_refused_and_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    inner = pickle.dumps(Attack(os.system, f"touch {victim}"), protocol=2)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(Attack(torch.storage._load_from_bytes, inner)))
    with pytest.raises(UserError, match="it holds a damaged torch storage"):
        safe_pickle.read(tmp_path / "p.pkl")
    assert not victim.exists()


def test_a_pickle_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole, path = pickle.dumps(PLAIN), tmp_path / "p.pkl"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"p\.pkl is (refused|no readable pickle)") as refusal:
            safe_pickle.read(path)
        assert "\n" not in str(refusal.value)


def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    whole, path = pickle.dumps({"x": [1, 2.5, "text"], "y": {"a": (None, b"bytes")}}), tmp_path / "p.pkl"
    draws = random.Random(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(draws.choice([1, 2, 5])):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        path.write_bytes(damaged)
        try:
            safe_pickle.read(path)
        except UserError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("content", [b"", b"clip_id,source\n", b"PK\x03\x04 a zip", b"\x80\x04\x8e" + b"\xff" * 8])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.pkl"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*nowhere\.pkl\."):
        safe_pickle.read(tmp_path / "nowhere.pkl")
    with pytest.raises(UserError, match=r"folder|directory"):
        safe_pickle.read(tmp_path)
