"""Public corpora in the stage extract: the stores hold the numbers of the files, and every lost clip is reported."""

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from qamoe.config import params as parameters
from qamoe.data.arrow_store import Store
from qamoe.data.readers import meld, mintrec
from qamoe.errors import UserError
from qamoe.extractors.minilm import MiniLM
from qamoe.pipeline import extract, preprocess
from tests.fixtures.research_data import shared_data
from tests.media.test_decode import write_media

MELD = {
    "extract.corpus": {"kind": "meld", "path": "meld"},
    "extract.task": {"kind": "classification", "classes": list(meld.EMOTIONS)},
}


@pytest.fixture
def pickled(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Write an unaligned MMSA pickle of six clips to mosi.pkl, and return its content."""
    draws = np.random.default_rng(0)
    splits = {}
    for name in ("train", "valid", "test"):
        bert = np.zeros((2, 3, 6), np.float32)
        bert[:, 0, :4], bert[:, 1, :4] = [101, 2204, 2143, 102], 1
        splits[name] = {
            "id": [f"{name}$_$2", f"{name}$_$1"],
            "raw_text": ["good film", "good film"],
            "text_bert": bert,
            "audio": draws.standard_normal((2, 9, 5)).astype(np.float32),
            "vision": draws.standard_normal((2, 7, 4)).astype(np.float32),
            "audio_lengths": [3, 9],
            "vision_lengths": [7, 1],
            "regression_labels": draws.uniform(-3, 3, 2),
        }
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(splits))
    return splits


@pytest.fixture
def run(params_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run extract in this process with changed parameters; returns its output folder."""
    monkeypatch.chdir(tmp_path)

    def run_extract(changes: dict[str, Any]) -> Path:
        params = parameters.load(params_file(changes))
        extract.run(params, tmp_path / "out")
        return tmp_path / "out/extract"

    return run_extract


MOSI = {"extract.corpus": {"kind": "mmsa", "path": "mosi.pkl"}}


def test_the_stores_hold_the_numbers_of_an_mmsa_pickle(pickled: Any, run: Any) -> None:
    out = run(MOSI)
    source = {clip: (columns, i) for columns in pickled.values() for i, clip in enumerate(columns["id"])}
    ids = sorted(source)
    text = Store(out / "text.arrow")
    assert text.clip_ids == ids
    labels = pq.read_table(out / "clips.parquet").to_pandas().set_index("clip_id")["label"]
    for row, clip in enumerate(ids):
        columns, i = source[clip]
        assert text.sequence("ids", row).tolist() == [101, 2204, 2143, 102]
        assert labels[clip] == pytest.approx(columns["regression_labels"][i], abs=1e-12)
        for modality in ("audio", "vision"):
            frames = Store(out / f"{modality}.arrow").sequence("frames", row)
            np.testing.assert_array_equal(frames, columns[modality][i, : columns[f"{modality}_lengths"][i]])


def test_text_that_the_encoder_does_not_know_is_refused_before_anything_is_written(
    pickled: Any, run: Any, tmp_path: Path
) -> None:
    for columns in pickled.values():
        columns["raw_text"] = ["真好", "我不想"]
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(pickled))
    with pytest.raises(UserError, match=r"mosi\.pkl.*bert-base-chinese"):
        run(MOSI)
    assert not (tmp_path / "out").exists()


def table(folder: Path, name: str, rows: list[str]) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_sent_emo.csv").write_text("\r\n".join([header, *rows, ""]))


def row(number: int) -> str:
    return f'{number},"Hello there",Ross,joy,positive,{number},0,1,1,"00:00:01,000","00:00:02,000"'


def problems(out: Path) -> list[list[str]]:
    with (out / "problems.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.slow
def test_words_replace_token_ids_of_another_vocabulary(
    pickled: Any, run: Any, tiny_encoder: Any, tmp_path: Path
) -> None:
    encoder = tiny_encoder(tmp_path / "encoder")
    content = (encoder / "tokenizer.json").read_text()
    (encoder / "tokenizer.json").write_text(content.replace('"film":', '"flim":'))
    changes: dict[str, Any] = {"extract.corpus": {"kind": "mmsa", "path": "mosi.pkl"}}
    changes["extract.text"] = {"extractor": "huggingface", "model": str(encoder), "max_tokens": 50}
    text = Store(run(changes) / "text.arrow")
    assert text.metadata["extractor"] == "huggingface"
    ids = text.sequence("ids", 0).tolist()
    assert ids[:2] == [101, 2204], "good"
    assert 2143 not in ids, "this vocabulary does not have the word film"
    for columns in pickled.values():
        del columns["raw_text"]
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(pickled))
    with pytest.raises(UserError, match=r"bert-base-uncased.*encoder"):
        run(changes)


@pytest.mark.slow
def test_a_missing_media_file_is_a_problem_until_it_exists(run: Any, tmp_path: Path) -> None:
    for name, folder in meld.FOLDERS.items():
        table(tmp_path / "meld", name, [row(1)])
        (tmp_path / "meld" / folder).mkdir()
        write_media(tmp_path / "meld" / folder / "dia1_utt0.mp4", seconds=0.5)
    missing = tmp_path / "meld/dev_splits_complete/dia1_utt0.mp4"
    moved = missing.rename(tmp_path / "moved.mp4")
    changes = MELD | {"extract.max_problem_share": 1.0}
    assert [line[:2] for line in problems(run(changes)) if line[0].startswith("dev")] == [
        ["dev-dia1_utt0", "audio"],
        ["dev-dia1_utt0", "vision"],
    ]
    moved.rename(missing)
    out = run(changes)
    (problem,) = (line for line in problems(out) if line[0].startswith("dev"))
    assert problem[1] == "vision"
    assert "no face" in problem[2]
    assert (Store(out / "audio.arrow").lengths("frames") > 0).all()


real = (shared_data() / "text" / "mintrec").resolve()


@pytest.mark.real_data
@pytest.mark.skipif(not real.is_dir(), reason=f"{real} does not exist")
def test_a_real_corpus_of_text_only_is_extracted_and_preprocessed(run: Any, params_file: Any, tmp_path: Path) -> None:
    changes = {
        "extract.corpus": {"kind": "mintrec", "path": str(real)},
        "extract.task": {"kind": "classification", "classes": list(mintrec.CLASSES)},
    }
    out = run(changes)
    assert problems(out) == []
    text = Store(out / "text.arrow")
    assert len(text) == 2224
    ids, words = MiniLM(50).extract("we are the manager.")
    at = text.clip_ids.index("S06_E06_589")
    assert text.sequence("ids", at).tolist() == ids.tolist()
    assert words[1:4] == ["we", "are", "the"]
    preprocess.run(parameters.load(params_file(changes)), tmp_path / "out")
    assert len(Store(tmp_path / "out/preprocess/train.arrow")) == 1334
