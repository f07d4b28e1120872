"""Untrusted pickles: arrays and plain values are read, and names that could run code are rejected."""

import codecs
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.data import pickle_child, safe_pickle
from qamoe.errors import UserError

pytestmark = pytest.mark.integration  # a process interprets each pickle
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
        with pytest.raises(UserError, match=r"p\.pkl .*memo slot -?\d+ "):
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
    with pytest.raises(UserError, match=r"p\.pkl .*key of type tuple"):
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
        with pytest.raises(pickle_child.DAMAGED):
            pickle_child.interpret(whole[:end], end, "utf-8")
        if end % 100 == 0:
            path.write_bytes(whole[:end])
            with pytest.raises(UserError, match=r"p\.pkl") as raised:
                safe_pickle.read(path)
            assert "\n" not in str(raised.value)


def test_a_damaged_pickle_is_either_read_or_rejected() -> None:
    whole = pickle.dumps({"x": [1, 2.5, "text"], "y": {"a": (None, b"bytes")}})
    draws = random.Random(0)
    rejected = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(draws.choice([1, 2, 5])):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        try:
            pickle_child.interpret(bytes(damaged), len(damaged), "utf-8")
        except (pickle_child.RefusedError, *pickle_child.DAMAGED):
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


def _reconstructed(dtype: bytes, state: bytes, shape: bytes, content: bytes) -> bytes:
    """Return an array in opcodes: its dtype from `dtype` and the dtype's state, then its own state."""
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + dtype
        + b"K\x00K\x01\x87R("
        + state
        + b"tb\x89"
        + content
        + b"tb."
    )


NATIVE = b"K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
F8, ONE = b"X\x02\x00\x00\x00f8", b"K\x01\x85"
OBJECTS = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87RK\x01\x85\x86"  # a dtype of one object pointer
ITSELF = b"]q\x00h\x00a."


def test_the_opcodes_of_these_tests_are_an_array(tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(_reconstructed(F8, NATIVE, ONE, b"C\x08" + np.float64(1.5).tobytes()))
    assert safe_pickle.read(tmp_path / "p.pkl").tolist() == [1.5]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        # An array that claims 1.6 GB, in 449 bytes and less.
        (_reconstructed(F8, NATIVE, b"J\x00\xc2\xeb\x0b\x85", b"C\x08" + bytes(8)), "bytes are not in the file"),
        (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\x00\xc2\xeb\x0b\x85C\x01d\x87R.", "array"),
        (_reconstructed(b"X\x0a\x00\x00\x00S400000000", NATIVE, ONE, b"C\x01a"), "bytes are not in the file"),
        (_reconstructed(F8, NATIVE, b"K\x00J\x00\x00\x00\x40J\x00\x00\x00\x40\x87", b"C\x00"), "bytes|repeats"),
        (_reconstructed(b"X\x02\x00\x00\x00U0", NATIVE, b"J\x00\xc2\xeb\x0b\x85", b"C\x00"), "repeats"),
        # Bytes as object pointers, by the dtype or by its state.
        (_reconstructed(b"X\x02\x00\x00\x00O8", NATIVE, ONE, b"C\x08" + bytes(8)), "without its objects"),
        (_reconstructed(b"X\x02\x00\x00\x00V8", NATIVE, ONE, b"C\x08" + bytes(8)), "'V8'"),
        (_reconstructed(b"X\x08\x00\x00\x00f8,O,i4 ", NATIVE, ONE, b"C\x08" + bytes(8)), "'f8,O,i4 '"),
        (_reconstructed(F8, NATIVE.replace(b"NNN", OBJECTS + b"NN"), ONE, b"C\x08" + bytes(8)), "'f8' with more"),
        # What is hashed, written out or walked for ever.
        (b"}" + b")" + b"\x86".join([b"2"] * 2) + b"K\x01s.", "0x32"),
        (b"}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 20 + b"K\x01u.", "key of type tuple"),
        (b"\x8f(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 20 + b"\x90.", "key of type tuple"),
        (b"]q\x00" + b"](h\x00h\x00eq\x00" * 30 + b".", "repeats"),
        (b"]q\x00(" + b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x01" + b"h\x01" * 90_000 + b"e.", "repeats"),
        (b"]" * 40 + b"a" * 39 + b".", "nests"),
        (ITSELF, "nests"),
        (b"}q\x00K\x01h\x00s.", "nests"),
        (b"\x8b\x00\x00\x01\x00" + b"\x01" * 65536 + b".", "integer of 65536 bytes"),
        (b"I" + b"9" * 5000 + b"\n.", "integer of 5000 digits"),
        # What is no plain value by itself.
        (b"cnumpy\nndarray\n.", "numpy.ndarray"),
        (b"cnumpy\nndarray\n)R.", "calls"),
        (b"]}b.", "damaged"),
        (b"V\\ud800\n.", "damaged"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_plain_is_rejected(tmp_path: Path, content: bytes, named: str) -> None:
    """Each of these killed the process, hung it, or filled its memory; all would also be rejected within a list."""
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=rf"p\.pkl .*({named})") as raised:
        safe_pickle.read(tmp_path / "p.pkl")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "broadcast", [np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (4000,), (0,)), np.zeros(4)]
)
def test_an_array_is_no_storage_of_a_tensor(tmp_path: Path, broadcast: np.ndarray) -> None:
    """An array of one byte with a stride of 0 gave a tensor the 4,000 bytes behind it in the process's memory."""
    attack = Attack(torch._utils._rebuild_tensor_v2, broadcast, 0, (500,), (1,), False, None)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(attack))
    with pytest.raises(UserError, match=r"p\.pkl .*tensor without a storage"):
        safe_pickle.read(tmp_path / "p.pkl")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (np.array([0x110000], np.uint32).view("U1"), "Unicode"),
        (np.array([0xD800], np.uint32).view("U1"), "Unicode"),
        (np.array([0, 7], np.uint8).view(bool), "truth value"),
    ],
)
def test_bytes_that_are_no_values_of_their_dtype_are_rejected(tmp_path: Path, values: Any, named: str) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(UserError, match=rf"p\.pkl .*{named}"):
        safe_pickle.read(tmp_path / "p.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "values",
    [
        np.arange(300, dtype=">i4"),
        np.arange(300, dtype=np.uint8).reshape(3, 100),
        np.arange(300.0).reshape(3, 10, 10).transpose(1, 0, 2),
        np.asfortranarray(np.arange(300.0, dtype=np.float16).reshape(30, 10)),
        np.array(["a", "été", ""] * 100),
        np.array([b"a", b"\xff"] * 100),
        np.array([True, False] * 200),
        np.array([1 + 2j] * 100),
        np.zeros((0, 5), np.float32),
        np.zeros((3, 0)),
        np.array("text"),
        np.array([["a", None], [1.5, [2]]], object),
        np.str_("text"),
        np.bool_(True),
        np.int8(-3),
    ],
)
def test_plain_arrays_are_read_with_their_values(tmp_path: Path, values: Any, protocol: int) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([values, values], protocol=protocol))
    content = safe_pickle.read(tmp_path / "p.pkl")
    for read in content:
        assert type(read) is type(values)
        assert read.dtype == values.dtype
        assert read.shape == values.shape
        assert read.tolist() == values.tolist()


@pytest.mark.slow
def test_too_much_memory_is_one_sentence(tmp_path: Path) -> None:
    """A file of a few MB that would take many times its size as lists."""
    (tmp_path / "p.pkl").write_bytes(b"(" + b"]" * 10_000_000 + b"l.")
    with pytest.raises(UserError, match=r"p\.pkl .*\b58\d MB"):
        safe_pickle.read(tmp_path / "p.pkl")


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU])
def test_a_killed_process_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(PLAIN))
    monkeypatch.setattr(safe_pickle, "_START", f"import os; os.kill(os.getpid(), {int(ended)})")
    with pytest.raises(UserError, match=rf"p\.pkl was rejected: .*({-int(ended)}|\b10 s)"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_a_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.pkl")
    with pytest.raises(UserError, match=r"p\.pkl .*file"):
        safe_pickle.read(tmp_path / "p.pkl")


def test_the_process_imports_no_package() -> None:
    script = "import sys; sys.path.append(sys.argv[1]); import pickle_child; print(*sys.modules)"
    folder = str(Path(pickle_child.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, folder], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "torch", "qamoe", "site"} & set(done.stdout.split())
