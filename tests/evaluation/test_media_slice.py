"""Slice `signals`: each cell is predicted on its own clips, and its rows describe their degradation."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from qamoe.data import arrow_store
from qamoe.data.arrow_store import Store
from qamoe.dataset.degraded_split import DegradedSplit, open_views
from qamoe.degradation.views import references_from_stats
from qamoe.evaluation import media_slice, protocol
from qamoe.evaluation.summary import summarise
from qamoe.models import checkpoint

MODALITIES = ("text", "audio", "vision")
SEVERITIES = {"noise": (1.0, 0.5), "word_errors": (0.5,)}


def write(path: Path, shift: float, words: int) -> Path:
    draws = np.random.default_rng(0)
    columns = [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("label", pa.float64()),
        ("text", pa.list_(pa.int32())),
    ]
    schema = pa.schema(columns + [(m, arrow_store.frames_type(2)) for m in ("audio", "vision")])
    rows = [
        {
            "clip_id": f"clip-{i}",
            "source": f"source-{i % 2}",
            "label": float(i) - 2,
            "text": np.array([101, *draws.integers(2000, 9000, i + 1), 102], np.int32)[: 2 + words],
            "audio": (draws.standard_normal((4 + i, 2)) + shift).astype(np.float32),
            "vision": draws.standard_normal((5, 2)).astype(np.float32),
        }
        for i in range(5)
    ]
    arrow_store.write(path, schema, rows, {})
    return path


def test_the_plan_starts_each_kind_at_severity_0_and_skips_missing_modalities() -> None:
    names = [(cell.name, cell.severity, cell.modalities) for cell in media_slice.plan(SEVERITIES, 7, MODALITIES)]
    assert names == [
        ("signals-audio-noise-0", 0.0, ("audio",)),
        ("signals-audio-noise-0.5", 0.5, ("audio",)),
        ("signals-audio-noise-1", 1.0, ("audio",)),
        ("signals-text-word_errors-0", 0.0, ("text",)),
        ("signals-text-word_errors-0.5", 0.5, ("text",)),
    ]
    assert {cell.kind for cell in media_slice.plan(SEVERITIES, 7, ("text", "vision"))} == {"word_errors"}
    assert media_slice.plan({}, 7, MODALITIES) == []
    louder = media_slice.plan({"gain": (1.0,)}, 7, MODALITIES)
    assert [(cell.slice, cell.name) for cell in louder] == [
        ("harmless", "harmless-audio-gain-0"),
        ("harmless", "harmless-audio-gain-1"),
    ]


@pytest.fixture
def measured(tmp_path: Path, tiny_stats: Any, tiny_checkpoint: Any) -> pd.DataFrame:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "qamoe"))
    files = {
        "clean": write(tmp_path / "test.arrow", 0.0, 9),
        "noise": write(tmp_path / "noise.arrow", 3.0, 9),
        "word_errors": write(tmp_path / "words.arrow", 0.0, 1),
    }

    def opened(cell: protocol.Cell) -> DegradedSplit:
        opened_store = Store(files[cell.kind if cell.severity else "clean"])
        return open_views(
            opened_store, cell.views, MODALITIES, references_from_stats(tiny_stats), tmp_path, "data", "cpu"
        )

    cells = media_slice.plan(SEVERITIES, 7, MODALITIES)
    rows = pd.concat([table for (table,) in media_slice.by_cell([trained], opened, cells, "cpu")], ignore_index=True)
    rows.attrs = {"sigmas": trained.config["calibration"]["sigmas"]}
    return rows


def test_rows_hold_the_degraded_modalitys_kind_and_severity(measured: pd.DataFrame) -> None:
    noisy = measured[measured["cell"] == "signals-audio-noise-0.5"]
    assert len(noisy) == 5
    assert set(noisy["slice"]) == {"signals"}
    assert set(noisy["kind_audio"]) == {"noise"}
    assert set(noisy["severity_audio"]) == set(noisy["lost_audio"]) == {0.5}
    assert set(noisy["kind_text"]) == set(noisy["kind_vision"]) == {"clean"}
    assert set(measured.loc[measured["cell"].str.endswith("-0"), "kind_audio"]) == {"clean"}


def test_each_cell_is_predicted_on_its_own_clips(measured: pd.DataFrame) -> None:
    by_cell = measured.set_index(["cell", "clip_id"])["prediction"].unstack("cell")
    np.testing.assert_array_equal(by_cell["signals-audio-noise-0"], by_cell["signals-text-word_errors-0"])
    assert (by_cell["signals-audio-noise-0"] != by_cell["signals-audio-noise-0.5"]).all()
    assert (by_cell["signals-text-word_errors-0"] != by_cell["signals-text-word_errors-0.5"]).any()


def test_the_curves_of_the_slice_have_equal_weights(measured: pd.DataFrame) -> None:
    cells = media_slice.plan(SEVERITIES, 7, MODALITIES)
    table = protocol.aggregate(measured, cells, measured.attrs["sigmas"])
    value = table[table["metric"] == "mae"].set_index("cell")["value"]
    noise = (
        value["signals-audio-noise-0"] / 2 + value["signals-audio-noise-0.5"] + value["signals-audio-noise-1"] / 2
    ) / 2
    words = (value["signals-text-word_errors-0"] + value["signals-text-word_errors-0.5"]) / 2
    summary = summarise(table).set_index("metric").loc["mae"]
    assert summary["area"] == pytest.approx((noise + words) / 2)
    assert summary["clean"] == pytest.approx(value["signals-audio-noise-0"])


def test_files_round_trip(measured: pd.DataFrame, tmp_path: Path) -> None:
    with protocol.predictions_file(tmp_path / "predictions.parquet") as append:
        append(measured)
    loaded = pd.read_parquet(tmp_path / "predictions.parquet", filters=[("slice", "==", "signals")])
    assert len(loaded) == len(measured)
