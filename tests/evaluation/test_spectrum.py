"""The spectrum: which cells there are, one row a (clip, cell, draw), and no metric of an incomplete grid."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.degradation.views import View, alike, references
from qamoe.evaluation import spectrum
from qamoe.features.store import Store
from qamoe.models.text import WIDTH
from qamoe.params import Evaluate
from qamoe.training import checkpoint
from qamoe.training.views import Views

ALL = ("clean", "missing", "noise", "mixed")
MODALITIES = ("text", "audio", "vision")


def evaluate(draws: int = 2, mixed_draws: int = 3, slices: tuple[str, ...] = ALL) -> Evaluate:
    return Evaluate.model_validate({"seed": 7, "draws": draws, "mixed_draws": mixed_draws, "slices": list(slices)})


def test_the_plan_has_every_cell_of_every_slice_once() -> None:
    cells = spectrum.plan(ALL, evaluate(draws=3, mixed_draws=10))
    assert [c.slice for c in cells] == ["clean"] + ["missing"] * 11 + ["noise"] * 11 + ["mixed"]
    names = [c.name for c in cells]
    assert len(set(names)) == 24
    assert names[:4] == ["clean", "missing-0.0", "missing-0.1", "missing-0.2"]
    assert names[-2:] == ["noise-1.0", "mixed"]
    assert [len(c.views) for c in cells] == [1, 1, *[3] * 10, 1, *[3] * 10, 10]
    assert len(spectrum.views(cells)) == 1 + 2 * 31 + 10
    assert [c.severity for c in cells[1:12]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert np.isnan(cells[-1].severity)


def test_cells_degrade_all_modalities_alike_by_the_protocols_seed() -> None:
    cells = {c.name: c for c in spectrum.plan(ALL, evaluate())}
    assert cells["missing-0.3"].views == (alike("missing", 0.3, 7, 0), alike("missing", 0.3, 7, 1))
    assert cells["clean"].views == (alike("clean", 0.0, 7, 0),)
    assert cells["mixed"].views == tuple(View(7, draw) for draw in range(3))


def test_only_the_slices_asked_for_are_planned() -> None:
    assert {c.slice for c in spectrum.plan(("noise",), evaluate())} == {"noise"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_params: Any, tiny_stats: Any, tiny_checkpoint: Any) -> Any:
    """A test split of seven clips, one without sound, and checkpoints of two models."""
    import pyarrow as pa

    from qamoe.features import store

    torch.set_num_threads(1)
    folder, draws = tmp_path_factory.mktemp("spectrum"), np.random.default_rng(0)
    columns = [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("label", pa.float64()),
        ("text", pa.list_(pa.int32())),
    ]
    schema = pa.schema(columns + [(m, store.frames_type(2)) for m in ("audio", "vision")])
    rows = [
        {
            "clip_id": f"clip-{i}",
            "source": f"source-{i % 2}",
            "label": float(i) - 3,
            "text": np.array([101, *draws.integers(2000, 9000, i), 102], np.int32),
            "audio": draws.standard_normal((0 if i == 2 else 4 + i, 2)).astype(np.float32),
            "vision": draws.standard_normal((9 - i, 2)).astype(np.float32),
        }
        for i in range(7)
    ]
    store.write(folder / "test.arrow", schema, rows, {})
    opened = Store(folder / "test.arrow")
    cells = spectrum.plan(ALL, evaluate())
    offsets = np.concatenate([[0], np.cumsum(opened.lengths("text"))])
    planned = spectrum.views(cells)
    states = draws.standard_normal((len(planned), offsets[-1], WIDTH)).astype(np.float32)
    split = Views(opened, tuple(planned), MODALITIES, references(tiny_stats), states, offsets)
    trained = [checkpoint.load(tiny_checkpoint(folder / m, model=m)) for m in ("qamoe", "mean")]
    return SimpleNamespace(split=split, cells=cells, trained=trained, store=opened)


@pytest.fixture(scope="module")
def measured(corpus: Any) -> list[pd.DataFrame]:
    return spectrum.measure(corpus.trained, corpus.split, corpus.cells, "cpu")


def test_there_is_one_row_a_clip_cell_and_draw_in_order(corpus: Any, measured: list[pd.DataFrame]) -> None:
    for rows in measured:
        assert len(rows) == 7 * len(corpus.split.views)
        assert not rows.duplicated(["clip_id", "cell", "draw"]).any()
        assert list(dict.fromkeys(rows["cell"])) == [c.name for c in corpus.cells]
        assert list(rows["clip_id"][:7]) == corpus.store.clip_ids
        assert rows["target"][:7].tolist() == corpus.store.labels


def test_rows_say_what_was_done_to_each_clip(measured: list[pd.DataFrame]) -> None:
    rows = measured[0].set_index(["cell", "draw", "clip_id"]).sort_index()
    clean, half, gone = rows.loc[("clean", 0)], rows.loc[("missing-0.5", 1)], rows.loc[("missing-1.0", 0)]
    assert (clean[["kind_text", "kind_audio", "kind_vision"]] == "clean").all(axis=None)
    assert (clean[["lost_text", "lost_audio", "lost_vision"]] == 0).all(axis=None)
    assert (half["kind_text"] == "missing").all()
    assert half["severity_audio"].tolist() == pytest.approx([0.5] * 7)
    shares = half["lost_vision"] * half["frames_vision"]
    assert shares.tolist() == pytest.approx(shares.round().tolist(), abs=1e-5), "a share of whole frames"
    assert gone["lost_vision"].tolist() == [1.0] * 7
    assert gone["lost_audio"].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert clean["frames_text"].tolist() == [0, 1, 2, 3, 4, 5, 6], "CLS and SEP are no words"
    assert clean["frames_audio"].tolist() == [4, 5, 0, 7, 8, 9, 10]
    noise = rows.loc[("noise-0.3", 0)]
    assert noise["lost_audio"].tolist() == pytest.approx([0.3] * 7)
    mixed = rows.loc[("mixed", 0)]
    assert mixed["severity_audio"].nunique() == 7
    assert set(mixed["kind_audio"]) <= {"missing", "noise"}


def test_reliability_trust_and_routing_are_there_where_a_model_has_them(measured: list[pd.DataFrame]) -> None:
    qamoe, mean = measured
    assert qamoe[["r_text", "r_audio", "r_vision"]].notna().all(axis=None)
    assert qamoe["trust_text"].between(0, 1).all()
    assert (qamoe.loc[qamoe["clip_id"] == "clip-2", "trust_audio"] == 0).all(), "no sound, no trust in it"
    assert np.allclose(np.stack(qamoe["routing"]).sum(1), 1, atol=1e-5)
    assert mean[["r_text", "trust_vision"]].isna().all(axis=None)
    assert mean["routing"].isna().all()


def test_predictions_do_not_depend_on_how_clips_are_batched(
    corpus: Any, measured: list[pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "_BATCH", 2)
    again = spectrum.measure(corpus.trained, corpus.split, corpus.cells, "cpu")
    for before, after in zip(measured, again, strict=True):
        pd.testing.assert_frame_equal(after.drop(columns="routing"), before.drop(columns="routing"), atol=1e-5)


def test_a_corpus_without_vision_leaves_its_columns_empty(corpus: Any, tmp_path: Path) -> None:
    two = ("text", "audio")
    trained = corpus.trained[0]
    config = {**trained.config, "modalities": list(two), "inputs": {m: trained.config["inputs"][m] for m in two}}
    torch.manual_seed(0)
    smaller = checkpoint.Trained(checkpoint.make("qamoe", config).eval(), config, tmp_path)
    whole = corpus.split
    split = Views(whole.store, whole.views, two, whole.references, whole.states, whole.offsets)
    (rows,) = spectrum.measure([smaller], split, corpus.cells, "cpu")
    assert (rows["kind_vision"] == "absent").all()
    assert (rows["frames_vision"] == 0).all()
    assert rows[["severity_vision", "lost_vision", "r_vision", "trust_vision"]].isna().all(axis=None)
    assert rows[["r_text", "r_audio"]].notna().all(axis=None)


def test_predictions_go_through_parquet(measured: list[pd.DataFrame], tmp_path: Path) -> None:
    for name, rows in zip(("qamoe", "mean"), measured, strict=True):
        spectrum.write_predictions(rows, tmp_path / f"{name}.parquet")
        again = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(again) == len(rows)
        np.testing.assert_array_equal(again["prediction"], rows["prediction"].astype(float))
        assert again["draw"].dtype == np.int32
        assert again["routing"].isna().all() == (name == "mean")


SIGMAS = {"0.5": 0.7, "0.9": 1.7}


def test_every_cell_draw_and_metric_is_aggregated(corpus: Any, measured: list[pd.DataFrame]) -> None:
    table = spectrum.aggregate(measured[0], corpus.cells, SIGMAS)
    assert not table.duplicated(["cell", "draw", "metric"]).any()
    assert len(table.drop_duplicates(["cell", "draw"])) == len(corpus.split.views)
    assert (table["n"] == 7).all()
    here = table[(table["cell"] == "missing-0.4") & (table["draw"] == 1) & (table["metric"] == "mae")].iloc[0]
    rows = measured[0].query("cell == 'missing-0.4' and draw == 1")
    assert here["value"] == pytest.approx((rows["prediction"] - rows["target"]).abs().mean(), abs=1e-6)
    assert here[["slice", "kind", "modalities", "severity"]].tolist() == [
        "missing",
        "missing",
        "text+audio+vision",
        0.4,
    ]
    assert table.loc[table["slice"] == "mixed", "severity"].isna().all()


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("cell == 'noise-0.3'", r"cell noise-0\.3, draw 0: 0 predictions of 7 clips"),
        ("cell == 'mixed' and draw == 2", r"cell mixed, draw 2: 0 predictions of 7 clips"),
        ("cell == 'missing-1.0' and draw == 1 and clip_id == 'clip-4'", r"missing-1\.0, draw 1: 6 predictions of 7"),
    ],
)
def test_an_incomplete_grid_is_refused(corpus: Any, measured: list[pd.DataFrame], gone: str, sentence: str) -> None:
    rows = measured[0].drop(measured[0].query(gone).index)
    with pytest.raises(ValueError, match=sentence):
        spectrum.aggregate(rows, corpus.cells, SIGMAS)


def test_a_clip_that_is_there_twice_is_refused(corpus: Any, measured: list[pd.DataFrame]) -> None:
    rows = pd.concat([measured[0], measured[0].query("cell == 'clean' and clip_id == 'clip-1'")])
    with pytest.raises(ValueError, match=r"cell clean, draw 0: 8 predictions of 7 clips"):
        spectrum.aggregate(rows, corpus.cells, SIGMAS)
