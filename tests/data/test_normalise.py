"""Cleaning: constant columns, NaN and infinities, and statistics of the training rows only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qamoe.data.arrow_store import Store, frames_type, write
from qamoe.data.normalise import Columns, clean, fit_columns

MakeStore = Callable[..., Store]


@pytest.fixture
def stored(tmp_path: Path) -> MakeStore:
    """Return a function that writes and opens a store of sequences (T_i, D)."""

    def make(*sequences: np.ndarray) -> Store:
        schema = pa.schema([("frames", frames_type(sequences[0].shape[1]))])
        write(tmp_path / "s.arrow", schema, ({"frames": s} for s in sequences), {})
        return Store(tmp_path / "s.arrow")

    return make


def all_rows(store: Store) -> np.ndarray:
    return np.arange(len(store))


def test_mean_and_deviation_are_over_all_frames_of_all_rows(stored: MakeStore) -> None:
    store = stored(np.array([[1, 10], [3, 10]], np.float32), np.array([[5, 40]], np.float32))
    columns = fit_columns(store, all_rows(store))
    assert columns.kept.tolist() == [0, 1]
    assert columns.mean.tolist() == [3, 20]
    assert columns.deviation.tolist() == pytest.approx([np.sqrt(8 / 3), np.sqrt(200)])
    assert columns.unfit == 0


def test_statistics_use_only_the_chosen_rows(stored: MakeStore) -> None:
    train = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    strange = np.array([[1e6, np.nan], [np.inf, -1e9]], np.float32)
    alone = fit_columns(stored(train), np.array([0]))
    among_others = fit_columns(stored(strange, train, strange), np.array([1]))
    assert among_others.to_json() == alone.to_json()


def test_constant_columns_are_dropped_and_faint_ones_kept(stored: MakeStore) -> None:
    draws = np.random.default_rng(0)
    frames = np.zeros((400, 4), np.float32)
    frames[:, 1] = 22_050.0  # a constant far from zero
    frames[:, 2] = 1e-4 * draws.standard_normal(400)
    frames[:, 3] = 1000 + draws.standard_normal(400)
    store = stored(frames[:150], frames[150:])
    columns = fit_columns(store, all_rows(store))
    assert columns.kept.tolist() == [2, 3]
    standardised = clean(frames, columns)
    assert standardised.shape == (400, 2)
    assert standardised.std(0).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert standardised.mean(0).tolist() == pytest.approx([0, 0], abs=1e-3)


def test_a_frame_of_zeros_is_missing(stored: MakeStore) -> None:
    """As files of published corpora have it where no face was found."""
    faces = np.array([[2, 0], [0, 0], [4, 6], [0, 0]], np.float32)
    columns = fit_columns(stored(faces), np.array([0]))
    assert columns.mean.tolist() == [3, 3]
    assert columns.unfit == 0
    standardised = clean(faces, columns)
    assert standardised.tolist() == [[-1, -1], [0, 0], [1, 1], [0, 0]]


def test_nan_and_infinity_are_counted_ignored_and_replaced_by_the_mean(stored: MakeStore) -> None:
    frames = np.array([[1, np.nan], [3, 4], [np.inf, 8], [-np.inf, 6]], np.float32)
    store = stored(frames)
    columns = fit_columns(store, all_rows(store))
    assert columns.unfit == 3
    assert columns.mean.tolist() == [2, 6]
    standardised = clean(frames, columns)
    assert standardised.dtype == np.float32
    assert np.isfinite(standardised).all()
    assert standardised[0, 1] == standardised[2, 0] == standardised[3, 0] == 0
    assert standardised[:2, 0].tolist() == [-1, 1]


def test_a_column_without_a_finite_value_is_dropped(stored: MakeStore) -> None:
    frames = np.array([[np.nan, 1], [np.inf, 2]], np.float32)
    store = stored(frames)
    columns = fit_columns(store, all_rows(store))
    assert columns.kept.tolist() == [1]
    assert columns.unfit == 2


def test_a_finite_value_stays_finite_after_scaling() -> None:
    """1e38 divided by a tiny deviation is above the largest float32."""
    columns = Columns(np.array([0]), np.array([0.0]), np.array([1e-7]), 0)
    assert np.isfinite(clean(np.array([[1e38], [-1e38], [1e-7]], np.float32), columns)).all()


def test_rows_without_frames_have_no_columns(stored: MakeStore) -> None:
    store = stored(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    columns = fit_columns(store, all_rows(store))
    assert columns.kept.tolist() == []
    assert clean(np.zeros((0, 3), np.float32), columns).shape == (0, 0)


def test_columns_survive_a_round_trip_through_json(stored: MakeStore) -> None:
    draws = np.random.default_rng(0)
    frames = draws.standard_normal((50, 5)).astype(np.float32)
    frames[:, 2] = 7
    store = stored(frames)
    columns = fit_columns(store, all_rows(store))
    again = Columns.from_json(columns.to_json())
    assert columns.to_json()["dimension"] == 4
    assert clean(frames, again).tobytes() == clean(frames, columns).tobytes()
