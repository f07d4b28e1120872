"""The protocol: its cells, one row per (clip, cell, draw), and no metrics for an incomplete grid."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.config.params import Evaluate
from qamoe.data.arrow_store import Store
from qamoe.dataset.degraded_split import DegradedSplit, open_views
from qamoe.degradation.views import View, references_from_stats, uniform_view
from qamoe.errors import UserError
from qamoe.evaluation import protocol
from qamoe.evaluation.encoding_cache import Encodings
from qamoe.models import checkpoint

pytestmark = pytest.mark.integration

ALL = ("clean", "missing", "noise", "burst", "mixed", "alone", "joint", "subsets", "swap", "held_out", "landscape")
MODALITIES = ("text", "audio", "vision")


NOTHING = ("joint-0.00-0.00", "landscape-0.00-0.00")


def evaluate(draws: int = 2, mixed_draws: int = 3, slices: tuple[str, ...] = ALL) -> Evaluate:
    content = {"seed": 7, "draws": draws, "mixed_draws": mixed_draws, "slices": list(slices)}
    landscape = {"levels": [0.0, 0.3, 0.7], "draws": draws, "announced": False}
    return Evaluate.model_validate(content | {"landscape": landscape, "quality_permutations": 2})


def test_the_plan_has_every_cell_of_every_slice_once() -> None:
    cells = protocol.plan(ALL, evaluate(draws=3, mixed_draws=10))
    sizes = {"clean": 1, "missing": 11, "noise": 11, "burst": 11, "mixed": 1}
    sizes |= {"alone": 99, "joint": 25, "subsets": 13, "swap": 12, "held_out": 22, "landscape": 9}
    assert Counter(c.slice for c in cells) == sizes
    assert list(dict.fromkeys(c.slice for c in cells)) == list(ALL)
    names = [c.name for c in cells]
    assert len(set(names)) == len(names)
    assert names[:4] == ["clean", "missing-0.0", "missing-0.1", "missing-0.2"]
    of_slice = {name: [c for c in cells if c.slice == name] for name in ALL}
    assert [len(c.views) for c in of_slice["missing"]] == [1, *[3] * 10]
    assert [c.severity for c in of_slice["noise"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert np.isnan(of_slice["mixed"][0].severity)
    assert len(of_slice["mixed"][0].views) == 10
    assert {c.name for c in of_slice["alone"]} == {
        f"alone-{m}-{k}-{s / 10:.1f}" for m in MODALITIES for k in ("missing", "noise", "burst") for s in range(11)
    }
    levels = ("0.00", "0.25", "0.50", "0.75", "1.00")
    assert [c.name for c in of_slice["joint"]] == [f"joint-{m}-{n}" for m in levels for n in levels]
    kept = ["t", "a", "v", "ta", "tv", "av"]
    blind = [f"subsets-{subset}-blind" for subset in kept]
    assert [c.name for c in of_slice["subsets"]] == [*(f"subsets-{s}" for s in [*kept, "tav"]), *blind]
    assert {c.name for c in of_slice["swap"]} == {f"swap-{m}-{s}" for m in MODALITIES for s in levels[1:]}
    assert {c.name for c in of_slice["held_out"]} == {
        f"held_out-{k}-{s / 10:.1f}" for k in ("additive", "desync") for s in range(11)
    }


def test_cells_leave_their_other_modalities_clean() -> None:
    cells = {c.name: c for c in protocol.plan(ALL, evaluate())}
    assert cells["alone-audio-burst-0.3"].views[1] == View(7, 1, ("clean", "burst", "clean"), (0.0, 0.3, 0.0))
    assert cells["swap-text-0.25"].views[0] == View(7, 0, ("swap", "clean", "clean"), (0.25, 0.0, 0.0))
    assert cells["held_out-desync-1.0"].views[0] == View(7, 0, ("clean", "desync", "desync"), (0.0, 1.0, 1.0))
    gone = ("clean", "missing", "missing")
    assert cells["subsets-t"].views == (View(7, 0, gone, (0.0, 1.0, 1.0), announced=True),)
    assert cells["subsets-t-blind"].views == (View(7, 0, gone, (0.0, 1.0, 1.0)),)
    joint = cells["joint-0.25-0.75"]
    assert joint.views[0] == View(7, 0, ("noise",) * 3, (0.75,) * 3, then=(("missing",) * 3, (0.25,) * 3))
    assert (joint.severity_missing, joint.severity_noise) == (0.25, 0.75)
    assert [cells[name].modalities for name in ("clean", "subsets-t", "subsets-tav", "missing-0.0")] == [
        (),
        ("audio", "vision"),
        (),
        MODALITIES,
    ]


def test_a_modality_that_the_corpus_lacks_has_no_cells() -> None:
    two = protocol.plan(ALL, evaluate(), ("text", "audio"))
    assert not [c.name for c in two if "vision" in c.modalities or "vision" in c.name]
    assert [c.name for c in two if c.slice == "subsets"] == [
        "subsets-t", "subsets-a", "subsets-ta", "subsets-t-blind", "subsets-a-blind"
    ]  # fmt: skip
    assert Counter(c.slice for c in two)["alone"] == 66
    assert {c.slice for c in protocol.plan(ALL, evaluate(), ("text",))} == set(ALL) - {"held_out"}
    one_timed = protocol.plan(("held_out",), evaluate(), MODALITIES, ("vision",))
    desync = [c for c in one_timed if c.kind == "desync"]
    assert {c.modalities for c in desync} == {("vision",)}, "desync needs a known frame rate"
    assert not [c for c in protocol.plan(("held_out",), evaluate(), MODALITIES, ()) if c.kind == "desync"]


def test_cells_degrade_all_modalities_with_the_protocols_seed() -> None:
    cells = {c.name: c for c in protocol.plan(ALL, evaluate())}
    assert cells["missing-0.3"].views == (uniform_view("missing", 0.3, 7, 0), uniform_view("missing", 0.3, 7, 1))
    assert cells["clean"].views == (uniform_view("clean", 0.0, 7, 0),)
    assert cells["mixed"].views == tuple(View(7, draw) for draw in range(3))


def test_only_the_named_slices_are_planned() -> None:
    assert {c.slice for c in protocol.plan(("noise",), evaluate())} == {"noise"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_params: Any, tiny_stats: Any, tiny_checkpoint: Any) -> Any:
    """A test split of seven clips, one without audio, and checkpoints of two models."""
    import pyarrow as pa

    from qamoe.data import arrow_store

    torch.set_num_threads(1)
    folder, draws = tmp_path_factory.mktemp("spectrum"), np.random.default_rng(0)
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
            "label": float(i) - 3,
            "text": np.array([101, *draws.integers(2000, 9000, i), 102], np.int32),
            "audio": draws.standard_normal((0 if i == 2 else 4 + i, 2)).astype(np.float32),
            "vision": draws.standard_normal((9 - i, 2)).astype(np.float32),
        }
        for i in range(7)
    ]
    arrow_store.write(folder / "test.arrow", schema, rows, {})
    opened = Store(folder / "test.arrow")
    cells = [c for c in protocol.plan(ALL, evaluate()) if c.slice != "alone" or c.severity in (0.0, 0.7)]
    cells = [c for c in cells if c.slice != "held_out" or c.severity in (0.0, 0.7)]
    split = open_views(
        opened, protocol.views(cells), MODALITIES, references_from_stats(tiny_stats), folder, "data", "cpu"
    )
    trained = [checkpoint.load(tiny_checkpoint(folder / m, model=m)) for m in ("qamoe", "mean")]
    return SimpleNamespace(split=split, cells=cells, trained=trained, store=opened)


@pytest.fixture(scope="module")
def measured(corpus: Any) -> list[pd.DataFrame]:
    return protocol.measure(corpus.trained, corpus.split, corpus.cells, "cpu")


def test_there_is_one_row_per_clip_cell_and_draw_in_order(corpus: Any, measured: list[pd.DataFrame]) -> None:
    for rows in measured:
        assert len(rows) == 7 * sum(len(c.views) for c in corpus.cells)
        assert not rows.duplicated(["clip_id", "cell", "draw"]).any()
        assert list(dict.fromkeys(rows["cell"])) == [c.name for c in corpus.cells]
        assert list(rows["clip_id"][:7]) == corpus.store.clip_ids
        assert rows["target"][:7].tolist() == corpus.store.labels


def test_rows_describe_the_degradation_of_each_clip(measured: list[pd.DataFrame]) -> None:
    rows: Any = measured[0].set_index(["cell", "draw", "clip_id"]).sort_index()
    clean, half, gone = rows.loc[("clean", 0)], rows.loc[("missing-0.5", 1)], rows.loc[("missing-1.0", 0)]
    assert (clean[["kind_text", "kind_audio", "kind_vision"]] == "clean").all(axis=None)
    assert (clean[["lost_text", "lost_audio", "lost_vision"]] == 0).all(axis=None)
    assert (half["kind_text"] == "missing").all()
    assert half["severity_audio"].tolist() == pytest.approx([0.5] * 7)
    shares = half["lost_vision"] * half["frames_vision"]
    assert shares.tolist() == pytest.approx(shares.round().tolist(), abs=1e-5), "a share of whole frames"
    assert gone["lost_vision"].tolist() == [1.0] * 7
    assert gone["lost_audio"].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert clean["frames_text"].tolist() == [0, 1, 2, 3, 4, 5, 6], "CLS and SEP do not count as words"
    assert clean["frames_audio"].tolist() == [4, 5, 0, 7, 8, 9, 10]
    noise = rows.loc[("noise-0.3", 0)]
    assert noise["lost_audio"].tolist() == pytest.approx([0.3] * 7)
    mixed = rows.loc[("mixed", 0)]
    assert mixed["severity_audio"].nunique() == 7
    assert set(mixed["kind_audio"]) <= {"missing", "noise", "burst"}
    joint = rows.loc[("joint-0.25-0.75", 0)]
    assert (joint["kind_audio"] == "noise+missing").all()
    assert (joint["severity_audio"] == 0.25).all()
    assert not np.isclose(joint["lost_vision"], 0.75).any(), "the missing share, not the noise"
    assert (rows.loc[("joint-0.00-0.00", 0)]["kind_audio"] == "clean").all()
    swapped = rows.loc[("swap-vision-0.50", 1)]
    assert set(swapped["lost_vision"]) == {0.0, 1.0}
    assert (swapped["kind_text"] == "clean").all()
    assert (rows.loc[("held_out-desync-0.7", 0)]["kind_vision"] == "desync").all()
    landscape, fewer = rows.loc["landscape-0.30-0.70"], rows.loc["landscape-0.70-0.30"]
    lost = landscape["kind_audio"] == "missing"
    assert set(landscape["kind_audio"]) == {"missing", "paper_noise"}
    assert landscape["severity_audio"].tolist() == pytest.approx(np.where(lost, 1.0, 0.3).tolist())
    assert landscape["lost_audio"].tolist() == (lost & (landscape["frames_audio"] > 0)).astype(float).tolist()
    assert not ((fewer["kind_audio"] == "missing") & ~lost).any(), "a larger eta loses what a smaller one loses"


def test_an_announced_missing_modality_has_trust_0(measured: list[pd.DataFrame]) -> None:
    rows: Any = measured[0].set_index("cell")
    assert (rows.loc["subsets-t", ["trust_audio", "trust_vision"]] == 0).all(axis=None)
    blind = rows.loc["subsets-t-blind"].query("clip_id != 'clip-2'")
    assert blind["trust_audio"].max() > 0, "an unannounced loss can keep some trust"


def test_the_severity_0_of_every_curve_is_the_clean_prediction(measured: list[pd.DataFrame]) -> None:
    rows = measured[0]
    clean = rows.query("cell == 'clean'")["prediction"].to_numpy()
    same = rows[rows["cell"].str.endswith("-0.0") | rows["cell"].isin([*NOTHING, "subsets-tav"])]
    assert same["cell"].nunique() == 3 + 9 + 2 + 3
    for _, cell_rows in same.groupby("cell"):
        np.testing.assert_array_equal(cell_rows["prediction"], clean)


def test_only_models_with_reliability_have_its_columns(measured: list[pd.DataFrame]) -> None:
    qamoe, mean = measured
    assert qamoe[["r_text", "r_audio", "r_vision"]].notna().all(axis=None)
    assert qamoe["trust_text"].between(0, 1).all()
    silent = (qamoe["clip_id"] == "clip-2") & (qamoe["kind_audio"] != "swap")
    assert (qamoe.loc[silent, "trust_audio"] == 0).all(), "without audio, its trust is 0"
    assert np.allclose(np.stack(list(qamoe["routing"])).sum(1), 1, atol=1e-5)
    assert mean[["r_text", "trust_vision"]].isna().all(axis=None)
    assert mean["routing"].isna().all()


@pytest.mark.parametrize("model", ["oracle", "oracle--small"])
def test_the_oracle_knows_which_clips_were_swapped(
    model: str, corpus: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    oracle = checkpoint.load(tiny_checkpoint(tmp_path / model, model=model))
    cells = [c for c in corpus.cells if c.name == "swap-audio-0.50"]
    (rows,) = protocol.measure([oracle], corpus.split, cells, "cpu")
    assert set(rows["lost_audio"]) == {0.0, 1.0}
    assert (rows["severity_audio"] == 0.5).all()
    np.testing.assert_array_equal(rows["r_audio"], 1 - rows["lost_audio"])


def test_a_model_with_flags_is_told_of_announced_modalities_only(
    corpus: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    trained = checkpoint.load(tiny_checkpoint(tmp_path / "public", model="paper-public"))
    cells = [c for c in corpus.cells if c.name in ("subsets-ta", "subsets-ta-blind")]
    (rows,) = protocol.measure([trained], corpus.split, cells, "cpu")
    announced, has_frames = rows["cell"] == "subsets-ta", rows["frames_vision"] > 0
    assert has_frames.any()
    assert (rows.loc[announced, "r_vision"] == 0).all()
    assert (rows.loc[~announced & has_frames, "r_vision"] > 0).all()


def test_predictions_do_not_depend_on_how_clips_are_batched(
    corpus: Any, measured: list[pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_BATCH", 2)
    names = ("mixed", "missing-0.4", "joint-0.25-0.75", "swap-text-1.00", "swap-audio-0.50", "held_out-desync-0.7")
    cells = [c for c in corpus.cells if c.name in names]
    rebatched = protocol.measure(corpus.trained, corpus.split, cells, "cpu")
    for before, after in zip(measured, rebatched, strict=True):
        expected = before[before["cell"].isin(names)].reset_index(drop=True)
        pd.testing.assert_frame_equal(after.drop(columns="routing"), expected.drop(columns="routing"), atol=1e-5)


@pytest.mark.slow
def test_sharing_encodings_does_not_change_predictions(
    corpus: Any, measured: list[pd.DataFrame], tmp_path: Path
) -> None:
    """Compare shared encodings with every view predicted separately."""
    rows, whole = list(range(7)), corpus.split
    every_view = list(dict.fromkeys(view for cell in corpus.cells for view in cell.views))
    alone = open_views(whole.store, every_view, MODALITIES, whole.references, tmp_path, "data", "cpu")
    for trained, table in zip(corpus.trained, measured, strict=True):
        by_cell = dict(list(table.groupby(["cell", "draw"], sort=False)))
        for cell in corpus.cells:
            for view in cell.views:
                batch, lost, state = alone.degraded(alone.views.index(view), rows)
                expected, of_view = trained.predict(batch, state=state), by_cell[cell.name, view.number]
                np.testing.assert_allclose(of_view["prediction"], expected.value, atol=1e-5)
                np.testing.assert_array_equal(of_view[[f"lost_{m}" for m in MODALITIES]].to_numpy(np.float32), lost)
                if expected.r is not None:
                    r = of_view[[f"r_{m}" for m in MODALITIES]].to_numpy(np.float32)
                    np.testing.assert_allclose(r, expected.r, atol=1e-5)


def test_an_encoding_is_computed_once_and_dropped_after_its_last_cell(
    corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[View, str]] = []
    degraded = DegradedSplit.degraded

    def recorded(self: DegradedSplit, view: int, rows: Any, modalities: Any = None) -> Any:
        computed.extend((self.views[view].of(m), m) for m in modalities)
        return degraded(self, view, rows, modalities)

    monkeypatch.setattr(DegradedSplit, "degraded", recorded)
    order = [view for cell in corpus.cells for view in cell.views]
    encodings = Encodings(corpus.trained, corpus.split, [range(7)], order, "cpu")
    for view in order:
        encodings.of(view)
    assert len(computed) == len(set(computed)) < 0.7 * 3 * len(order)
    assert encodings.kept == {}


def test_parallel_checkpoints_predict_the_same_bits_as_alone(corpus: Any, measured: list[pd.DataFrame]) -> None:
    cells = [c for c in corpus.cells if c.slice in ("clean", "mixed")]
    trained = [*corpus.trained, *corpus.trained]
    rows = [pd.concat(parts) for parts in zip(*protocol.by_view(trained, corpus.split, cells, "cpu", 3), strict=True)]
    for before, after in zip([*measured, *measured], rows, strict=True):
        expected = before[before["slice"].isin(("clean", "mixed"))].reset_index(drop=True)
        pd.testing.assert_frame_equal(after.reset_index(drop=True), expected, check_exact=True)


def test_a_corpus_without_vision_leaves_its_columns_empty(corpus: Any, tmp_path: Path) -> None:
    two = ("text", "audio")
    trained = corpus.trained[0]
    config: Any = {**trained.config, "modalities": list(two), "inputs": {m: trained.config["inputs"][m] for m in two}}
    torch.manual_seed(0)
    smaller = checkpoint.Trained(checkpoint.make("qamoe", config).eval(), config, tmp_path)
    whole = corpus.split
    split = DegradedSplit(whole.store, whole.views, two, whole.references, whole.states)
    few = [c for c in corpus.cells if c.name in ("missing-0.4", "mixed", "joint-0.25-0.75")]
    (rows,) = protocol.measure([smaller], split, few, "cpu")
    assert (rows["kind_vision"] == "absent").all()
    assert (rows["frames_vision"] == 0).all()
    assert rows[["severity_vision", "lost_vision", "r_vision", "trust_vision"]].isna().all(axis=None)
    assert rows[["r_text", "r_audio"]].notna().all(axis=None)


def test_predictions_survive_parquet(measured: list[pd.DataFrame], tmp_path: Path) -> None:
    for name, rows in zip(("qamoe", "mean"), measured, strict=True):
        with protocol.predictions_file(tmp_path / f"{name}.parquet") as append:
            append(rows)
        loaded = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(loaded) == len(rows)
        np.testing.assert_array_equal(loaded["prediction"], rows["prediction"].astype(float))
        assert loaded["draw"].dtype == np.int32
        assert loaded["routing"].isna().all() == (name == "mean")


SIGMAS = {"0.5": 0.7, "0.9": 1.7}


def test_every_cell_draw_and_metric_is_aggregated(corpus: Any, measured: list[pd.DataFrame]) -> None:
    table = protocol.aggregate(measured[0], corpus.cells, SIGMAS)
    assert not table.duplicated(["cell", "draw", "metric"]).any()
    assert len(table.drop_duplicates(["cell", "draw"])) == sum(len(c.views) for c in corpus.cells)
    assert (table["n"] == 7).all()
    value = table[(table["cell"] == "missing-0.4") & (table["draw"] == 1) & (table["metric"] == "mae")].iloc[0]
    rows = measured[0].query("cell == 'missing-0.4' and draw == 1")
    assert value["value"] == pytest.approx((rows["prediction"] - rows["target"]).abs().mean(), abs=1e-6)
    assert value[["slice", "kind", "modalities", "severity"]].tolist() == [
        "missing",
        "missing",
        "text+audio+vision",
        0.4,
    ]
    assert table.loc[table["slice"].isin(["mixed", "joint"]), "severity"].isna().all()
    joint = table[table["cell"] == "joint-0.25-0.75"]
    assert (joint[["severity_missing", "severity_noise"]] == (0.25, 0.75)).all(axis=None)
    others = ~table["slice"].isin(["joint", "landscape"])
    assert table.loc[others, ["severity_missing", "severity_noise"]].isna().all(axis=None)
    assert set(table.loc[table["slice"] == "clean", "modalities"]) == {""}
    assert set(table.loc[table["cell"] == "subsets-a", "modalities"]) == {"text+vision"}


@pytest.mark.parametrize(
    ("dropped", "values"),
    [
        ("cell == 'noise-0.3'", r"\bnoise-0\.3\b.*\b0\b.*\b0\b.*\b7\b"),
        ("cell == 'alone-vision-burst-0.7'", r"\balone-vision-burst-0\.7\b.*\b0\b.*\b0\b.*\b7\b"),
        ("cell == 'subsets-ta-blind'", r"\bsubsets-ta-blind\b.*\b0\b.*\b0\b.*\b7\b"),
        ("cell == 'mixed' and draw == 2", r"\bmixed\b.*\b2\b.*\b0\b.*\b7\b"),
        ("cell == 'missing-1.0' and draw == 1 and clip_id == 'clip-4'", r"\bmissing-1\.0\b.*\b1\b.*\b6\b.*\b7\b"),
    ],
)
def test_an_incomplete_grid_is_refused(corpus: Any, measured: list[pd.DataFrame], dropped: str, values: str) -> None:
    rows = measured[0].drop(measured[0].query(dropped).index)
    with pytest.raises(UserError, match=values):
        protocol.aggregate(rows, corpus.cells, SIGMAS)


def test_a_duplicate_clip_is_refused(corpus: Any, measured: list[pd.DataFrame]) -> None:
    rows = pd.concat([measured[0], measured[0].query("cell == 'clean' and clip_id == 'clip-1'")])
    with pytest.raises(UserError, match=r"\bclean\b.*\b0\b.*\b8\b.*\b7\b"):
        protocol.aggregate(rows, corpus.cells, SIGMAS)
