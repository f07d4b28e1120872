"""Feature stores: Arrow IPC files with one row per clip, memory-mapped and read without copying.

`write` streams rows into record batches of BATCH_ROWS, so memory does not grow with the corpus. It writes no
timestamps, so the same rows give the same bytes. `Store` opens such a file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qamoe.files import atomic_write

SPLITS = ("train", "valid", "gate", "test")  # only promotion reads the gate split
BATCH_ROWS = 512


def frames_type(dimension: int) -> pa.DataType:
    """Return the Arrow type of a sequence of float32 frames with `dimension` columns."""
    return pa.list_(pa.list_(pa.float32(), dimension))


def frames_array(sequences: Sequence[np.ndarray], dimension: int) -> pa.Array:
    """Convert sequences (T_i, D) to one Arrow column. Raises ValueError for frames of another dimension."""
    for sequence in sequences:
        if sequence.ndim != 2 or sequence.shape[1] != dimension:
            raise ValueError(f"frames have shape {sequence.shape}, must be (T, {dimension})")
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int32)
    values = np.concatenate([np.asarray(s, np.float32).reshape(-1) for s in sequences] or [np.zeros(0, np.float32)])
    inner = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), dimension)
    return pa.ListArray.from_arrays(pa.array(offsets), inner, type=frames_type(dimension))


def _column(values: list[Any], field: pa.Field) -> pa.Array:
    if pa.types.is_list(field.type) and pa.types.is_fixed_size_list(field.type.value_type):
        return frames_array(values, field.type.value_type.list_size)
    return pa.array(values, field.type)


def write(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]], metadata: dict[str, Any]) -> int:
    """Write rows in their order and return their number. `metadata` goes into the schema as JSON."""
    schema = schema.with_metadata({"qamoe": json.dumps(metadata, sort_keys=True)})
    count = 0
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for chunk in _chunks(rows, BATCH_ROWS):
            columns = [_column([row[f.name] for row in chunk], f) for f in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            count += len(chunk)
    return count


def _chunks(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Store:
    """A memory-mapped store. Rows are addressed by position; frames are views of the map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        self.schema = self._file.schema
        self.metadata: dict[str, Any] = json.loads(self.schema.metadata[b"qamoe"])
        self._batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._flat: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def column(self, name: str) -> list[Any]:
        """Return a whole column as Python values; for ids, sources and labels, not for frames."""
        return [value for batch in self._batches for value in batch.column(name).to_pylist()]

    def value(self, name: str, row: int) -> Any:
        """Return one value of a column without sequences, without reading the whole column."""
        index, offset = divmod(row, BATCH_ROWS)
        return self._batches[index].column(name)[offset].as_py()

    @cached_property
    def clip_ids(self) -> list[str]:
        return self.column("clip_id")

    @cached_property
    def sources(self) -> list[str]:
        return self.column("source")

    @cached_property
    def labels(self) -> list[float]:
        return self.column("label")

    def sequence(self, name: str, row: int) -> np.ndarray:
        """Return row `row` of a list column as a read-only view: (T, D) for frames, (T,) for ids."""
        index, offset = divmod(row, BATCH_ROWS)
        if (name, index) not in self._flat:
            column = self._batches[index].column(name)
            values = column.values
            if pa.types.is_fixed_size_list(values.type):
                flat = values.flatten().to_numpy().reshape(-1, values.type.list_size)
            else:
                flat = values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type))
            self._flat[name, index] = (column.offsets.to_numpy(), flat)
        offsets, flat = self._flat[name, index]
        return flat[offsets[offset] : offsets[offset + 1]]

    @property
    def text_is_vectors(self) -> bool:
        """Whether the text of a split (or of the extracted text file) is frames and not token ids."""
        column = next(name for name in ("text", "ids", "frames") if name in self.schema.names)
        return pa.types.is_fixed_size_list(self.schema.field(column).type.value_type)

    def lengths(self, name: str) -> np.ndarray:
        """Return the number of frames of each row (N,)."""
        parts = [np.diff(batch.column(name).offsets.to_numpy()) for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class SelectedRows(Store):
    """Some rows of a store, numbered from 0 in the given order."""

    def __init__(self, path: Path, rows: Sequence[int]) -> None:
        super().__init__(path)
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Any]:
        values = super().column(name)
        return [values[row] for row in self._rows]

    def value(self, name: str, row: int) -> Any:
        return super().value(name, self._rows[row])

    def sequence(self, name: str, row: int) -> np.ndarray:
        return super().sequence(name, self._rows[row])

    def lengths(self, name: str) -> np.ndarray:
        return super().lengths(name)[self._rows]
