"""IEMOCAP in GCNet's layout, pickled by Python 2 or 3, with features, with audio files, or with text only."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.config.task import Task
from qamoe.data.readers.iemocap import CLASSES, FEATURES, read
from qamoe.errors import UserError

pytestmark = pytest.mark.integration  # a process interprets each pickle
FOUR = Task(kind="classification", classes=("neutral", "happy", "sad", "angry"))  # another order than in the file
SIX = Task(kind="classification", classes=CLASSES[6])
# dialogue -> (utterance, label, speaker, sentence)
DIALOGUES = {
    "Ses01F_impro01": [("Ses01F_impro01_F000", 2, "F", "Excuse me."), ("Ses01F_impro01_M000", 3, "M", "Do you have?")],
    "Ses03M_script01_1": [("Ses03M_script01_1_M001", 0, "M", "Yeah, café.")],
    "Ses04F_impro02": [("Ses04F_impro02_F003", 1, "F", "I don't know.")],
    "Ses05F_impro08b": [("Ses05F_impro08b_F001", 0, "F", "Great!"), ("Ses05F_impro08b_M002", 2, "M", "Okay.")],
}
TEST = {"Ses05F_impro08b"}


def content(dialogues: dict[str, Any] | None = None) -> list[Any]:
    chosen = DIALOGUES if dialogues is None else dialogues
    columns = [{name: [row[i] for row in rows] for name, rows in chosen.items()} for i in range(4)]
    return [*columns, set(chosen) - TEST, set(chosen) & TEST]


def store(folder: Path, items: Any, name: str = "IEMOCAP_features_raw_4way.pkl", protocol: int = 2) -> Path:
    (folder / name).write_bytes(pickle.dumps(items, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_utterances_become_clips(tmp_path: Path, protocol: int) -> None:
    corpus = read(store(tmp_path, content(), protocol=protocol), FOUR)
    assert corpus.modalities == ("text",)
    expected = [
        (utterance, dialogue, CLASSES[4][label], sentence)
        for dialogue, rows in DIALOGUES.items()
        for utterance, label, _, sentence in rows
    ]
    assert [(c.clip_id, c.source, FOUR.classes[int(c.label)], c.text) for c in corpus.clips] == expected
    assert [c.split for c in corpus.clips] == ["train", "train", "train", "valid", "test", "test"]


def test_the_number_of_classes_selects_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"IEMOCAP_features_raw_6way\.pkl"):
        read(store(tmp_path, content()), SIX)
    items = content()
    items[1]["Ses04F_impro02"] = [5]
    corpus = read(store(tmp_path, items, "IEMOCAP_features_raw_6way.pkl"), SIX)
    assert [SIX.classes[int(c.label)] for c in corpus.clips if c.split == "valid"] == ["frustrated"]


def test_features_are_read_exactly(tmp_path: Path) -> None:
    """wav2vec: one file per utterance. manet: one folder per utterance with both faces, or no face at all."""
    draws = np.random.default_rng(0)
    audio, faces = tmp_path / "features" / FEATURES["audio"], tmp_path / "features" / FEATURES["vision"]
    audio.mkdir(parents=True)
    expected: dict[tuple[str, str], np.ndarray] = {}
    for rows in DIALOGUES.values():
        for i, (utterance, _, speaker, _) in enumerate(rows):
            expected[utterance, "audio"] = x = draws.standard_normal((3 + i, 512)).astype(np.float32)
            np.save(audio / f"{utterance}.npy", x if i else x[0])
            (faces / utterance).mkdir(parents=True)
            for who in "FM":
                x = draws.standard_normal((2 + i, 1024)).astype(np.float32)
                np.save(faces / utterance / f"compress_{who}.npy", x)
                if who == speaker:
                    expected[utterance, "vision"] = x
            if not i:
                expected[utterance, "audio"] = expected[utterance, "audio"][:1]
    without_features = "Ses05F_impro08b_M002"
    np.save(faces / without_features / "compress_M.npy", np.array([]))
    (audio / f"{without_features}.npy").unlink()
    expected[without_features, "audio"], expected[without_features, "vision"] = np.zeros((0, 512)), np.zeros((0, 1024))
    corpus = read(store(tmp_path, content()), FOUR)
    assert corpus.modalities == ("text", "audio", "vision")
    for clip in corpus.clips:
        for modality in ("audio", "vision"):
            np.testing.assert_array_equal(clip.frames[modality], expected[clip.clip_id, modality])


def test_the_audio_files_of_the_corpus_are_media(tmp_path: Path) -> None:
    (tmp_path / "Session1/sentences/wav").mkdir(parents=True)
    corpus = read(store(tmp_path, content()), FOUR)
    assert corpus.modalities == ("text", "audio")
    first, last = corpus.clips[0].media, corpus.clips[5].media
    assert first is not None
    assert last is not None
    assert first.path == tmp_path / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    assert last.path == tmp_path / "Session5/sentences/wav/Ses05F_impro08b/Ses05F_impro08b_M002.wav"


def with_item(index: int, key: Any, value: Any) -> list[Any]:
    items = content()
    items[index][key] = value
    return items


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([{}] * 9, r"9 items, .*\b6 items \(utterance ids, "),
        ({"train": 1}, r"\bdict, .*\b6 items"),
        ([*content()[:3], [], set(), set()], "utterance ids, labels, speakers, sentences .*dict"),
        ([*content()[:4], None, set()], "training dialogues and test dialogues .*set"),
        (with_item(0, "Ses02F_impro01", []), "dialogue 'Ses02F_impro01' .*split"),
        ([*content()[:4], set(DIALOGUES), TEST], "dialogue Ses05F_impro08b .*training .*test"),
        (with_item(1, "Ses04F_impro02", [1, 2]), "dialogue Ses04F_impro02: .*length"),
        (with_item(1, "Ses04F_impro02", [4]), r"utterance Ses04F_impro02_F003: label .*\b4\b.*0 to 3"),
        (with_item(1, "Ses04F_impro02", ["1"]), "utterance Ses04F_impro02_F003: label .*'1'.*0 to 3"),
        (with_item(3, "Ses04F_impro02", "I don't know."), "list .*dialogue Ses04F_impro02"),
        (with_item(0, "Ses04F_impro02", ["../../x"]), r"utterance \.\./\.\./x: .*Ses01 to Ses05"),
        (content({k: v for k, v in DIALOGUES.items() if k[4] in "15"}), r"training .*\b1 sessions.*\b2\b"),
    ],
)
def test_another_layout_is_rejected(tmp_path: Path, items: Any, named: str) -> None:
    with pytest.raises(UserError, match=rf"IEMOCAP_features_raw_4way\.pkl.*{named}") as raised:
        read(store(tmp_path, items), FOUR)
    assert "\n" not in str(raised.value)


def test_invalid_features_and_tasks_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extract\.task .*happy, sad, neutral, angry"):
        read(tmp_path, Task(kind="classification", classes=("happy", "sad")))
    store(tmp_path, content())
    audio = tmp_path / "features" / FEATURES["audio"]
    audio.mkdir(parents=True)
    with pytest.raises(UserError, match=r"wav2vec-large-c-UTT .*UTTERANCE\.npy"):
        read(tmp_path, FOUR)
    file = audio / "Ses01F_impro01_F000.npy"
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"F000\.npy .*array of numbers"):
        read(tmp_path, FOUR)
    np.save(file, np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match=r"F000\.npy .*\(2, 2, 2\)"):
        read(tmp_path, FOUR)
    np.save(file, np.zeros((2, 3)))
    np.save(audio / "Ses01F_impro01_M000.npy", np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"wav2vec-large-c-UTT: .*\[3, 4\]"):
        read(tmp_path, FOUR)
