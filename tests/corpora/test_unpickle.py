"""Pickles from strangers: arrays and plain values are read, anything that would run code is refused by name."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.corpora import unpickle
from qamoe.errors import Refused

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
    found = unpickle.read(path)
    for name in ("x", "columns"):
        assert found[name].tolist() == PLAIN[name].tolist()  # type: ignore[attr-defined]
        assert found[name].dtype == PLAIN[name].dtype  # type: ignore[attr-defined]
    assert found["texts"].tolist() == ["a", "ü"]
    assert (found["scalar"], found["list"]) == (PLAIN["scalar"], PLAIN["list"])


def test_sets_and_slices_are_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps([{3}, slice(1, 2)]))
    assert unpickle.read(path) == [{3}, slice(1, 2)]


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
    with pytest.raises(Refused, match=rf"p\.pkl is refused: it asks for {named}; only numpy arrays and plain"):
        unpickle.read(path)
    assert not victim.exists()


def test_a_pickle_cannot_reach_through_a_dotted_name(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.")
    with pytest.raises(Refused, match=r"it asks for numpy\.f2py\.os\.system"):
        unpickle.read(path)


def test_a_pickle_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole, path = pickle.dumps(PLAIN), tmp_path / "p.pkl"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(Refused, match=r"p\.pkl is (refused|no readable pickle)") as refusal:
            unpickle.read(path)
        assert "\n" not in str(refusal.value)


def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    whole, path = pickle.dumps({"x": [1, 2.5, "text"], "y": {"a": (None, b"bytes")}}), tmp_path / "p.pkl"
    draws = random.Random(0)
    values = [v for v in range(256) if v not in pickle.LONG_BINPUT + pickle.PUT]  # these may ask for gigabytes
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(draws.choice([1, 2, 5])):
            damaged[draws.randrange(len(damaged))] = draws.choice(values)
        path.write_bytes(damaged)
        try:
            unpickle.read(path)
        except Refused:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("content", [b"", b"clip_id,source\n", b"PK\x03\x04 a zip", b"\x80\x04\x8e" + b"\xff" * 8])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(Refused, match=r"p\.pkl"):
        unpickle.read(tmp_path / "p.pkl")


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"There is no file .*nowhere\.pkl\."):
        unpickle.read(tmp_path / "nowhere.pkl")
    with pytest.raises(Refused, match=r"folder|directory"):
        unpickle.read(tmp_path)
