"""Counter-based draws: the published vectors of Philox4x32-10, and numbers that depend on their key alone."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from qamoe.rng import MODALITIES, STREAMS, Draws, _normal_table, _rounds, clip_key, philox

# Random123's kat_vectors: counter, key, output.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def numbers(hexadecimal: str) -> list[int]:
    return [int(word, 16) for word in hexadecimal.split()]


def keys(*clip_ids: str) -> Tensor:
    return torch.tensor([clip_key(clip_id) for clip_id in clip_ids])


def by_integers(counter: list[int], key: list[int]) -> list[int]:
    """Compute Philox4x32-10 with Python's integers, which cannot overflow."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k, second % 2**32, (first >> 32) ^ d ^ m, first % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_philox_gives_its_published_vectors(counter: str, key: str, expected: str) -> None:
    c: Any = tuple(torch.tensor([word]) for word in numbers(counter))
    k: Any = tuple(torch.tensor([word]) for word in numbers(key))
    assert [int(word) for word in philox(c, k)] == numbers(expected)
    assert [int(word) for word in _rounds(*c, *k)] == numbers(expected), "the rounds that a GPU runs"
    assert by_integers(numbers(counter), numbers(key)) == numbers(expected)


def test_the_rounds_of_a_gpu_match_those_of_a_cpu() -> None:
    shapes = ((1, 40), (9, 1), (9, 1), (9, 1), (9, 1), (9, 1))
    words: Any = tuple(torch.randint(0, 2**32, shape) for shape in shapes)
    by_numpy, by_torch = (
        philox(words[:4], words[4:]),
        _rounds(*torch.broadcast_tensors(*words[:4]), *words[4:]),
    )
    for expected, word in zip(by_numpy, by_torch, strict=True):
        assert torch.equal(word, expected)


def test_the_protocols_numbers_never_change() -> None:
    """Protocol version 1: a different layout of counter and key would change the masks of every stored result."""
    assert clip_key("clip-1") == (2865922501, 4142670292)
    words = Draws(7, keys("clip-1"), "audio", "noise", 3).words(5)
    assert words.tolist() == [[3255667296, 5552349, 1952126836, 4130356981, 3656488213]]


@pytest.mark.parametrize("number", [0, 3, 2**32 - 1])
def test_a_batch_gets_the_words_of_each_of_its_clips(number: int) -> None:
    clip_ids = ["a", "ümlaut", "person-001-001"]
    for modality, stream in product(MODALITIES, STREAMS):
        words = Draws(2026, keys(*clip_ids), modality, stream, number).words(10)
        stream_word = len(STREAMS) * MODALITIES.index(modality) + STREAMS.index(stream)
        for clip_id, row in zip(clip_ids, words.tolist(), strict=True):
            low, high = clip_key(clip_id)
            blocks = [by_integers([block, number, stream_word, high], [2026, low]) for block in range(3)]
            assert row == [word for block in blocks for word in block][:10]


def test_draws_do_not_depend_on_the_batch_or_the_number_of_elements() -> None:
    clip_ids = [f"clip-{i}" for i in range(7)]
    whole = Draws(7, keys(*clip_ids), "vision", "missing", 4)
    backwards = Draws(7, keys(*reversed(clip_ids)), "vision", "missing", 4)
    for kind in ("words", "uniform", "normal"):
        together = getattr(whole, kind)(9)
        assert torch.equal(getattr(backwards, kind)(9).flip(0), together)
        assert torch.equal(getattr(whole, kind)(64)[:, :9], together)
        for row, clip_id in enumerate(clip_ids):
            alone = getattr(Draws(7, keys(clip_id), "vision", "missing", 4), kind)(9)
            assert torch.equal(alone[0], together[row])


def test_one_draw_number_per_clip_gives_the_same_as_that_number_for_all_clips() -> None:
    several = Draws(7, keys("a", "b", "c"), "text", "state", torch.tensor([5, 0, 5])).words(6)
    assert torch.equal(several[0], Draws(7, keys("a"), "text", "state", 5).words(6)[0])
    assert torch.equal(several[1], Draws(7, keys("b"), "text", "state", 0).words(6)[0])


def test_every_part_of_the_key_changes_the_draw() -> None:
    settings = list(product((7, 8), ("a", "b"), MODALITIES, STREAMS, (0, 1, 2)))
    seen = {
        tuple(Draws(seed, keys(clip), modality, stream, number).words(4)[0].tolist())
        for seed, clip, modality, stream, number in settings
    }
    assert len(seen) == len(settings)


def test_zero_elements_give_an_empty_draw() -> None:
    assert Draws(7, keys("a", "b"), "text", "state", 0).words(0).shape == (2, 0)


def test_uniform_is_exact_in_24_bits_below_one_with_the_right_moments() -> None:
    drawn = Draws(1, keys("a", "b"), "audio", "missing", 0).uniform(100_000).double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert torch.equal((drawn * 2**24).round() / 2**24, drawn)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.003)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=0.001)
    for part in drawn:
        assert part.mean().item() == pytest.approx(0.5, abs=0.004)
    assert abs(torch.corrcoef(drawn)[0, 1].item()) < 0.02


def test_the_largest_word_stays_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "words", lambda self, n: torch.full((1, n), 0xFFFFFFFF))
    assert Draws(1, keys("a"), "audio", "missing", 0).uniform(1).item() == 1 - 2**-24


def test_the_normal_table_is_symmetric_rising_and_normal() -> None:
    table = _normal_table(torch.device("cpu")).double()
    assert len(table) == 2**16
    assert torch.equal(table, -table.flip(0))
    assert (table.diff() > 0).all()
    assert torch.equal((table * 65536).round(), table * 65536), "multiples of 2^-16 are the same with every libm"
    assert table.pow(2).mean().item() == pytest.approx(1.0, abs=1e-4)
    assert table.pow(4).mean().item() == pytest.approx(3.0, abs=5e-3)
    assert table[-1].item() == pytest.approx(4.3243, abs=1e-3)


def test_normal_draws_are_standard_and_their_neighbours_unrelated() -> None:
    drawn = Draws(1, keys("a"), "audio", "noise", 0).normal(200_000)[0].double()
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.01)
    pairs = drawn.view(-1, 2).T  # the two halves of one word
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 0.015


def test_the_draws_of_some_clips_are_those_of_the_whole_batch() -> None:
    rows = torch.tensor([3, 0])
    for number in (5, torch.tensor([7, 8, 9, 10])):
        whole = Draws(1, keys("a", "b", "c", "d"), "audio", "noise", number)
        assert torch.equal(whole.select(rows).words(9), whole.words(9)[rows])


def test_a_kind_added_later_has_its_own_stream() -> None:
    """Its draws differ from those of every other kind and modality."""
    keys = torch.tensor([clip_key("a"), clip_key("b")])
    streams = (*STREAMS, "fog", "frost")
    drawn = [Draws(7, keys, modality, stream, 0).words(16) for modality, stream in product(MODALITIES, streams)]
    assert len({tuple(words.flatten().tolist()) for words in drawn}) == len(MODALITIES) * len(streams)
    again = Draws(7, keys, "audio", "fog", 0).words(16)
    assert torch.equal(again, drawn[len(streams) + streams.index("fog")])
