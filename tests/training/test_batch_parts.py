"""Properties of the parts of a batch, for any number of clips, processes and parts."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.data.batch import collate, pad
from qamoe.training import distributed
from qamoe.training.distributed import BatchShare

CLIPS = 9
processes_of, parts_of = st.integers(1, 5), st.integers(1, 6)
batches = st.lists(st.integers(0, 10_000), min_size=1, max_size=24, unique=True)


def split(rows: Sequence[int] | np.ndarray, processes: int, parts: int) -> list[list[tuple[list[int], float]]]:
    """The parts of every process, with their weights."""
    return [BatchShare(process, processes, parts).split(rows) for process in range(processes)]


def in_order(part: list[int], rows: list[int]) -> bool:
    """Whether the rows of a part are in the order of the batch."""
    positions = [rows.index(row) for row in part]
    return positions == sorted(positions)


@given(rows=batches, processes=processes_of, parts=parts_of, array=st.booleans())
def test_the_parts_hold_each_row_exactly_once_and_in_order(
    rows: list[int], processes: int, parts: int, array: bool
) -> None:
    """A batch of fewer clips than processes is computed whole by each process."""
    of_processes = split(np.array(rows) if array else rows, processes, parts)
    assert all(in_order(part, rows) and part for own in of_processes for part, _ in own)
    shares = [sorted(row for part, _ in own for row in part) for own in of_processes]
    if len(rows) < processes:
        assert shares == [sorted(rows)] * processes
    else:
        assert sorted(row for share in shares for row in share) == sorted(rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(rows=batches, processes=processes_of, parts=parts_of)
def test_every_process_has_the_same_number_of_parts_of_nearly_equal_size(
    rows: list[int], processes: int, parts: int
) -> None:
    """Processes wait for each other part by part: one with a part more would wait for ever."""
    of_processes = split(rows, processes, parts)
    assert len({len(own) for own in of_processes}) == 1
    assert 1 <= len(of_processes[0]) <= parts
    for own in of_processes:
        sizes = [len(part) for part, _ in own]
        assert max(sizes) - min(sizes) <= 1
    if processes == 1:
        assert len(of_processes[0]) == min(parts, len(rows))


@given(rows=batches, processes=processes_of, parts=parts_of)
def test_the_weights_of_all_processes_sum_to_one_on_average(rows: list[int], processes: int, parts: int) -> None:
    sums = [sum(weight for _, weight in own) for own in split(rows, processes, parts)]
    assert sum(sums) / processes == pytest.approx(1)


@given(rows=batches, processes=processes_of, parts=parts_of, seed=st.integers(0, 2**32 - 1))
def test_the_weighted_mean_over_parts_is_the_mean_over_the_batch(
    rows: list[int], processes: int, parts: int, seed: int
) -> None:
    """As training computes it: mean loss of a part, weighted, summed within a process, averaged over processes."""
    losses = dict(zip(rows, np.random.default_rng(seed).normal(size=len(rows)), strict=True))
    of_process = [
        sum(weight * np.mean([losses[row] for row in part]) for part, weight in own)
        for own in split(rows, processes, parts)
    ]
    assert np.mean(of_process) == pytest.approx(np.mean(list(losses.values())), abs=1e-12)


@given(rows=batches, processes=processes_of, parts=parts_of)
def test_a_weight_is_the_share_of_the_part_in_the_batch(rows: list[int], processes: int, parts: int) -> None:
    for own in split(rows, processes, parts):
        for part, weight in own:
            whole = len(rows) * (1 if len(rows) >= processes else processes)
            assert weight == pytest.approx(float(Fraction(len(part) * processes, whole)))


@given(count=st.integers(1, 12), processes=processes_of, seed=st.integers(0, 2**32 - 1))
def test_views_that_are_shared_out_are_gathered_in_their_order(count: int, processes: int, seed: int) -> None:
    whole = np.random.default_rng(seed).normal(size=(count, 2, 3)).astype(np.float32)
    shares = [BatchShare(process, processes) for process in range(processes)]
    numbers = [share.views(range(count)) for share in shares]
    assert sorted(view for own in numbers for view in own) == list(range(count))
    arrays: list[dict[str, np.ndarray | None]]
    arrays = [{"prediction": whole[list(own)], "variance": None} for own in numbers]

    def all_gather(into: list[object], _: object) -> None:
        into[:] = arrays

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.distributed, "all_gather_object", all_gather)
        for share, own in zip(shares, arrays, strict=True):
            gathered = share.gathered(own, count)
            assert gathered["prediction"] is not None
            assert np.array_equal(gathered["prediction"], whole)
            assert gathered["variance"] is None


@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_padded_sequences_are_found_again_under_their_mask(lengths: list[int], seed: int) -> None:
    draws = np.random.default_rng(seed)
    sequences = [draws.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    padded, mask = pad(sequences)
    assert padded.shape == (len(lengths), max(1, *lengths), 2)
    assert mask.sum(1).tolist() == lengths
    for sequence, frames, valid in zip(sequences, padded, mask, strict=True):
        assert np.array_equal(frames[valid].numpy(), sequence)
        assert np.array_equal(frames[: len(sequence)].numpy(), sequence), "padding comes after the frames"
        assert not frames[~valid].any()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Clips of different lengths, one of them without frames."""
    path = tmp_path_factory.mktemp("store") / "clips.arrow"
    fields = [("clip_id", pa.string()), ("label", pa.float64()), ("text", pa.list_(pa.int32()))]
    schema = pa.schema([*fields, ("audio", frames_type(2))])
    draws = np.random.default_rng(0)
    rows = [
        {
            "clip_id": f"clip-{i}",
            "label": float(i),
            "text": np.arange(1 + i % 3, dtype=np.int32) + 100,
            "audio": draws.normal(size=(i * 5 % 7, 2)).astype(np.float32),
        }
        for i in range(CLIPS)
    ]
    write(path, schema, rows, {})
    return Store(path)


@given(rows=st.permutations(range(CLIPS)), processes=processes_of, parts=parts_of)
def test_a_clip_is_read_alike_in_a_part_and_in_the_whole_batch(
    store: Store, rows: list[int], processes: int, parts: int
) -> None:
    whole = collate(store, rows, ("text", "audio"))
    assert whole.target is not None
    for own in split(rows, processes, parts):
        for part, _ in own:
            batch = collate(store, part, ("text", "audio"))
            places = [rows.index(row) for row in part]
            assert batch.target is not None
            assert torch.equal(batch.keys, whole.keys[places])
            assert torch.equal(batch.target, whole.target[places])
            for modality in ("text", "audio"):
                for row, place in enumerate(places):
                    frames = batch.x[modality][row][batch.mask[modality][row]]
                    assert torch.equal(frames, whole.x[modality][place][whole.mask[modality][place]])
