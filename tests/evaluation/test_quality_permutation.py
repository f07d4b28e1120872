"""Permuted quality: every row of mixed keeps its degradation and gets another row's reliabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qamoe.config.params import Evaluate
from qamoe.data.arrow_store import Store
from qamoe.dataset.degraded_split import open_views
from qamoe.degradation.views import references_from_stats
from qamoe.evaluation import protocol
from qamoe.evaluation.quality_permutation import all_donors, donors, mixed_draws, permuted_quality
from qamoe.models import checkpoint

MODALITIES = ("text", "audio", "vision")
DRAWS, PERMUTATIONS = 3, 2


@pytest.mark.parametrize("within", [False, True])
def test_every_r_is_used_once_and_no_row_keeps_its_own(within: bool) -> None:
    for permutation in range(20):
        donor_rows = donors(4, 25, permutation, 7, within=within)
        assert donor_rows.shape == (4, 25)
        assert sorted(donor_rows.ravel()) == list(range(100))
        assert (donor_rows.ravel() != np.arange(100)).all()
        within_draw = donor_rows // 25 == np.arange(4)[:, None]
        assert within_draw.all() if within else 0 < within_draw.sum() < 100


def test_permutations_differ_and_are_reproducible() -> None:
    first, repeated, second = (donors(4, 25, number, 7, within=False) for number in (0, 0, 1))
    assert (first == repeated).all()
    assert (first != second).any()
    assert (first != donors(4, 25, 0, 8, within=False)).any()


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Any, tiny_stats: Any, tiny_checkpoint: Any) -> Any:
    """A checkpoint that uses its quality, its split, its rows of mixed, and those with permuted r."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("broken")
    tiny_corpus(folder)
    trained = checkpoint.load(tiny_checkpoint(folder / "model"))
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    content = {"seed": 7, "draws": 1, "mixed_draws": DRAWS, "slices": ["mixed"], "quality_permutations": 2}
    content |= {"landscape": {"levels": [0.0, 1.0], "draws": 1, "announced": False}}
    params = Evaluate.model_validate(content)
    cells = protocol.plan(("mixed",), params)
    store = Store(folder / "preprocess/valid.arrow")
    split = open_views(
        store, protocol.views(cells), MODALITIES, references_from_stats(tiny_stats), folder, "data", "cpu"
    )
    (rows,) = protocol.measure([trained], split, cells, "cpu")
    r = rows[[f"r_{m}" for m in MODALITIES]].to_numpy()
    donors_of = all_donors(DRAWS, 12, PERMUTATIONS, 7)
    draws = list(mixed_draws(trained, split, cells[0], rows, "cpu"))
    exchanged = pd.concat(
        [table for draw in draws for table in permuted_quality(trained, draw, r, donors_of)], ignore_index=True
    )
    return trained, split, rows, exchanged


def test_every_permutation_has_every_row_of_mixed_within_draws_and_across(permuted: Any) -> None:
    _, _, rows, exchanged = permuted
    assert len(exchanged) == 2 * PERMUTATIONS * len(rows)
    assert set(exchanged.columns) == {*rows.columns, "within"}
    unchanged = ["clip_id", "source", "slice", "cell", "target"]
    unchanged += [f"{value}_{m}" for value in ("kind", "severity", "lost", "frames") for m in MODALITIES]
    for _, permutation in exchanged.groupby(["within", "draw"]):
        pd.testing.assert_frame_equal(permutation[unchanged].reset_index(drop=True), rows[unchanged])
    assert set(exchanged["draw"]) == set(range(PERMUTATIONS))


def test_r_comes_from_other_rows_and_determines_the_prediction(permuted: Any) -> None:
    trained, split, rows, exchanged = permuted
    r = [f"r_{m}" for m in MODALITIES]
    for (within, number), own in exchanged.groupby(["within", "draw"]):
        donor = donors(DRAWS, 12, number, 7, within=within).ravel()
        np.testing.assert_array_equal(own[r], rows[r].iloc[donor])
        assert (own["prediction"].to_numpy() != rows["prediction"].to_numpy()).any()
    one = exchanged.query("within == False and draw == 1").iloc[[12 + 5]]  # the sixth clip in the second draw
    batch = split.batch(1, [split.store.clip_ids.index(one["clip_id"].item())])
    expected = trained.predict(batch, torch.tensor(one[r].to_numpy()))
    assert one["prediction"].item() == pytest.approx(expected.value.item(), abs=1e-5)
    own = rows.iloc[[12 + 5]]
    restored = trained.predict(batch, torch.tensor(own[r].to_numpy()))
    assert own["prediction"].item() == pytest.approx(restored.value.item(), abs=1e-5)


def test_permuted_rows_survive_parquet(permuted: Any, tmp_path: Path) -> None:
    exchanged = permuted[3]
    with protocol.predictions_file(tmp_path / "broken.parquet") as append:
        append(exchanged)
    loaded = pd.read_parquet(tmp_path / "broken.parquet")
    assert loaded["within"].dtype == bool
    assert list(loaded["draw"]) == list(exchanged["draw"])
    assert [c for c in loaded if c != "within"] == [c for c in loaded if c in permuted[2]]
