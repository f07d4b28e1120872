"""Damaged copies: drawn by counter, extracted like any clip, and what training sees of them."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store
from qamoe.data.manifest import COLUMNS
from qamoe.data.normalise import Columns, clean
from qamoe.degradation.features import COPY, KINDS
from qamoe.errors import UserError
from qamoe.extractors.logmel import LogMel
from qamoe.extractors.minilm import MiniLM
from qamoe.media import degraded_copy
from qamoe.media.degraded_copy import Signal
from qamoe.models.model import Model
from qamoe.pipeline import extract, preprocess, train
from qamoe.pipeline.damaged_copies import draw, words_of
from qamoe.pipeline.shared import read_stats
from qamoe.rng import MODALITIES
from qamoe.training.selection import injected_severity
from tests.media.test_decode import write_media

TEXTS = {"a": "a great film", "b": "a dull night", "c": "the knight was weak", "d": "a great knight", "e": "weak film"}
SPLITS = {"a": "train", "b": "train", "c": "valid", "d": "gate", "e": "test"}
COPIES: dict[str, Any] = {
    "seed": 3, "train": 3, "valid": 2, "gate": 1, "sound": ["noise", "babble", "gain"], "pictures": [],
    "words": ["word_errors", "writing"],
}  # fmt: skip
CHANGES: dict[str, Any] = {
    "extract.corpus": {"kind": "clips", "path": "data"},
    "extract.audio": {"extractor": "logmel", "rate": 20, "bands": 12},
    "extract.copies": COPIES,
    "train.common.clips": None,
}
KINDS_OF = {"text": ("word_errors", "writing"), "audio": ("noise", "babble", "gain")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write five audio clips; the second has no transcript."""
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (name, text) in enumerate(TEXTS.items()):
            writer.writerow((name, name, f"{name}.wav", "", "", text, number - 2, SPLITS[name]))
            write_media(folder / f"{name}.wav", seconds=0.6 + number / 10, streams="a")
    return folder


@pytest.fixture
def run(
    params_file: Any, tmp_path: Path, data: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.chdir(tmp_path)

    def extract_and_preprocess(changes: dict[str, Any] | None = None) -> SimpleNamespace:
        params = parameters.load(params_file(CHANGES | (changes or {})))
        extract.run(params, tmp_path / "out")
        preprocess.run(params, tmp_path / "out")
        return SimpleNamespace(params=params, out=tmp_path / "out")

    return extract_and_preprocess


@pytest.mark.slow
def test_copies_are_extracted_from_damaged_media_and_normalised(run: Any, data: Path, tmp_path: Path) -> None:
    out = run().out
    for split, ids in (("train", ["a", "a", "a", "b", "b", "b"]), ("valid", ["c", "c"]), ("gate", ["d"])):
        assert Store(out / f"extract/copies/{split}.arrow").clip_ids == ids
        assert Store(out / f"preprocess/copies/{split}.arrow").clip_ids == ids
    extracted, copies = (Store(out / f"{stage}/copies/valid.arrow") for stage in ("extract", "preprocess"))
    columns = Columns.from_json(read_stats(out)["audio"])
    for row in range(2):
        drawn = draw(3, f"c#{row}", KINDS_OF)
        for modality, (kind, severity) in drawn.items():
            assert copies.value(f"kind_{modality}", row) == kind
            expected = 0.0 if kind in ("gain", "writing") else severity
            assert copies.value(f"severity_{modality}", row) == pytest.approx(expected)
        kind, severity = drawn["audio"]
        voices = (degraded_copy.Voice(data / "c.wav", 0.0, None, ""),) * 4 if kind == "babble" else ()
        media = degraded_copy.write(
            Signal(kind, severity, 3, f"c#{row}", voices), data / "c.wav", 0.0, None, 20, tmp_path
        )
        np.testing.assert_array_equal(extracted.sequence("audio", row), LogMel(20, 12).extract(media))
        np.testing.assert_array_equal(copies.sequence("audio", row), clean(extracted.sequence("audio", row), columns))


@pytest.mark.slow
def test_copies_repeat_and_a_clip_more_changes_no_other(run: Any, data: Path) -> None:
    run()
    first = {path.name: path.read_bytes() for path in Path("out/preprocess/copies").iterdir()}
    run({"extract.copies": COPIES | {"gate": 2}})
    again = {path.name: path.read_bytes() for path in Path("out/preprocess/copies").iterdir()}
    assert {name for name in first if again[name] != first[name]} == {"gate.arrow"}
    assert Store(Path("out/extract/copies/gate.arrow")).clip_ids == ["d", "d"]


@pytest.mark.slow
def test_training_and_selection_see_the_copies(run: Any) -> None:
    made = run({"train.common.degrade": degrade_section(1.0)})
    stats = read_stats(made.out)
    training, valid, cells = train.open_splits(made.params, stats, made.out, "qamoe")
    copies = Store(made.out / "preprocess/copies/train.arrow")
    batch, lost, state = training.degraded(0, range(2))
    assert (state.kind[:, :2] == KINDS.index(COPY)).all()
    for row in range(2):
        for position, modality in ((0, "text"), (1, "audio")):
            number = 3 * row + int(state.copy[row, position])
            severity = copies.value(f"severity_{modality}", number)
            assert float(state.severity[row, position]) == pytest.approx(severity)
            assert float(lost[row, position]) == pytest.approx(severity)
        frames = copies.sequence("audio", 3 * row + int(state.copy[row, 1]))
        np.testing.assert_array_equal(batch.x["audio"][row, : len(frames)].numpy(), frames)
        assert int(batch.mask["audio"][row].sum()) == len(frames)
        ids = copies.sequence("text", 3 * row + int(state.copy[row, 0]))
        assert int(batch.mask["text"][row].sum()) == len(ids)
    model = SimpleNamespace(encode=SimpleNamespace(encoders=dict.fromkeys(("text", "audio"))))
    as_model: Model = model  # type: ignore[assignment]
    injected = injected_severity(as_model, (batch, lost, state), "cpu")
    torch.testing.assert_close(injected, state.severity[:, :2])
    views = [valid.views[index] for index in cells.selection if valid.views[index].copy is not None]
    assert [view.copy for view in views] == [0, 1]
    assert len(set(cells.groups)) == 1 + max(cells.groups)
    assert cells.groups[-2:] == (max(cells.groups),) * 2, "the copies are one cell"
    chosen, _, _ = valid.degraded(valid.views.index(views[1]), [0])
    expected = Store(made.out / "preprocess/copies/valid.arrow").sequence("audio", 1)
    np.testing.assert_array_equal(chosen.x["audio"][0].numpy(), expected)


@pytest.mark.slow
def test_a_share_of_the_damaged_draws_takes_copies_and_the_others_stay_as_they_were(run: Any) -> None:
    made = run({"train.common.degrade": degrade_section(0.5), "train.common.epochs": 40})
    half, _, _ = train.open_splits(made.params, read_stats(made.out), made.out, "qamoe")
    without = made.params.train.common.degrade.model_copy(update={"signal_share": 0.0})
    common = made.params.train.common.model_copy(update={"degrade": without})
    params = made.params.model_copy(update={"train": made.params.train.model_copy(update={"common": common})})
    plain, _, cells = train.open_splits(params, read_stats(made.out), made.out, "qamoe", made.out / "states/plain")
    assert all(view.copy is None for view in cells.views)
    taken = 0
    for view in range(len(half.views)):
        batch, _, state = half.degraded(view, range(2))
        expected, _, before = plain.degraded(view, range(2))
        copied = state.kind[:, 1] == KINDS.index(COPY)
        taken += int(copied.sum())
        assert torch.equal(state.kind[~copied, 1], before.kind[~copied, 1])
        for row in (~copied).nonzero()[:, 0].tolist():
            length = int(expected.mask["audio"][row].sum())
            assert torch.equal(batch.x["audio"][row, :length], expected.x["audio"][row, :length])
    assert 0.3 < taken / (2 * len(half.views)) < 0.7


def degrade_section(share: float) -> dict[str, Any]:
    import yaml

    section: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    degrade: dict[str, Any] = section["train"]["common"]["degrade"]
    return degrade | {"views": 30, "clean_share": 0.0, "shared_draw_share": 0.0, "signal_share": share}


def test_words_of_a_copy_know_which_are_wrong() -> None:
    tokeniser = MiniLM(50)
    heard = np.array([("we", 0.5), ("saw", 0.6), ("nightingales", 0.7)], [("word", object), ("confidence", "f4")])
    cells = words_of("we saw nightingales", heard, "we nightingales sing", tokeniser, harmless=False)
    ids = tokeniser.extract("we nightingales sing")[0]
    assert cells["ids"].tolist() == ids.tolist()
    pieces = len(ids) - 4  # of nightingales: without CLS, SEP and the two other words
    assert cells["wrong"].tolist() == [False, False, *[False] * pieces, True, False]
    expected = [1, 0.5, *[0.7] * pieces, 1, 1]
    assert cells["confidence"].tolist() == pytest.approx(expected)
    assert not words_of("do not go", None, "DON'T GO", tokeniser, harmless=True)["wrong"].any()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sound": ["codec"]}, "extract.copies.sound.*'codec'.*allowed are noise"),
        ({"pictures": ["noise"]}, "extract.copies.pictures.*'noise'.*allowed are blur"),
        ({"words": ["word_errors", "word_errors"]}, "extract.copies.words.*word_errors"),
        ({"train": -1}, "extract.copies.train.*-1"),
    ],
)
def test_copies_of_other_kinds_are_refused(params_file: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parameters.load(params_file({"extract.copies": COPIES | changes}))


@pytest.mark.slow
def test_a_recording_is_on_one_side_only(run: Any, data: Path) -> None:
    for name in ("rain", "cafe"):
        (data / name).mkdir()
        write_media(data / name / f"{name}.wav", seconds=0.5, streams="a")
    copies = COPIES | {"sound": ["recorded_noise"], "recordings": ["rain/*.wav"]}
    severities = {"recorded_noise": [1.0]}
    signals = {"seed": 1, "severities": severities, "recordings": ["cafe/*.wav"]}
    changes = {"extract.copies": copies, "extract.signals": signals, "evaluate.slices": ["clean", "signals"]}
    with pytest.raises(UserError, match=r"rain\.wav.*cafe\.wav"):  # the same bytes under another name
        run(changes)
    (data / "cafe/cafe.wav").unlink()
    write_media(data / "cafe/cafe.wav", seconds=0.7, streams="a")
    run(changes)
    assert MODALITIES[1] in Store(Path("out/preprocess/copies/train.arrow")).metadata["modalities"]


def test_copies_need_media(params_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.chdir(tmp_path)
    vision = {"extract.vision": {"extractor": "openface", "rate": 5}}
    params = parameters.load(params_file(CHANGES | vision | {"extract.copies": COPIES | {"pictures": ["blur"]}}))
    for name in TEXTS:
        (data / f"{name}.csv").write_text("timestamp,success\n")
    with pytest.raises(UserError, match=r"extract\.copies.*vision.*openface"):
        extract.run(params, tmp_path / "out")
