"""MELD: the three csv files with the quotes and line ends of the published ones, with and without clips."""

from pathlib import Path

import pytest

from qamoe.config.task import Task
from qamoe.data.readers.meld import EMOTIONS, FOLDERS, SENTIMENTS, read
from qamoe.errors import UserError

EMOTION = Task(kind="classification", classes=EMOTIONS)
SENTIMENT = Task(kind="classification", classes=SENTIMENTS)
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
ROWS = {
    "train": [
        '1,"also I was the point person, you know",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:21,731"',
        '2,You must’ve had your hands full.,"The Interviewer",surprise,positive,0,1,8,21,"0:16:21,940","0:16:23,442"',
    ],
    "dev": ['1,"Oh my God, he’s ""lost"" it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"'],
    "test": ['3,Why?,Mark,anger,negative,0,0,3,19,"00:14:38,127","00:14:40,378"'],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        (tmp_path / f"{name}_sent_emo.csv").write_bytes("".join(f"{r}\r\n" for r in (HEADER, *rows)).encode())
    return tmp_path


def test_rows_become_clips_of_their_split(folder: Path) -> None:
    corpus = read(folder, EMOTION)
    assert corpus.modalities == ("text",)
    assert [(c.clip_id, c.source, c.split, EMOTIONS[int(c.label)], c.text) for c in corpus.clips] == [
        ("train-dia0_utt0", "train-dia0", "train", "neutral", "also I was the point person, you know"),
        ("train-dia0_utt1", "train-dia0", "train", "surprise", "You must’ve had your hands full."),
        ("dev-dia0_utt0", "dev-dia0", "valid", "sadness", 'Oh my God, he’s "lost" it.'),
        ("test-dia0_utt0", "test-dia0", "test", "anger", "Why?"),
    ]


def test_control_characters_of_windows_1252_are_read_as_what_they_mean(folder: Path) -> None:
    """MELD's tables were read as Latin-1 once: an apostrophe is the control character U+0092."""
    file = folder / "train_sent_emo.csv"
    file.write_bytes(file.read_bytes().replace("’".encode(), "\x92".encode()))
    assert read(folder, EMOTION).clips[1].text == "You must’ve had your hands full."


def test_the_classes_of_the_task_select_the_label(folder: Path) -> None:
    corpus = read(folder, SENTIMENT)
    assert [SENTIMENTS[int(c.label)] for c in corpus.clips] == ["neutral", "positive", "negative", "negative"]
    assert corpus.about["label"] == "Sentiment"


def test_tables_are_found_in_the_folder_of_the_repository(folder: Path) -> None:
    (folder / "data/MELD").mkdir(parents=True)
    for file in folder.glob("*.csv"):
        file.rename(folder / "data/MELD" / file.name)
    assert len(read(folder, EMOTION).clips) == 4


def test_clips_are_whole_media_files(folder: Path) -> None:
    for name in FOLDERS.values():
        (folder / name).mkdir()
    corpus = read(folder, EMOTION)
    assert corpus.modalities == ("text", "audio", "vision")
    assert [c.media and c.media.path for c in corpus.clips] == [
        folder / "train_splits/dia0_utt0.mp4",
        folder / "train_splits/dia0_utt1.mp4",
        folder / "dev_splits_complete/dia0_utt0.mp4",
        folder / "output_repeated_splits_test/dia0_utt0.mp4",
    ]
    assert all(c.media and (c.media.start_s, c.media.end_s) == (0.0, None) for c in corpus.clips)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("surprise", "Surprise", r", line 3: label 'Surprise' .*neutral"),
        ("Dialogue_ID", "Dialogue", r" .*column Dialogue_ID"),
        ("positive,0,1", "positive,0,0", r", line 3: .*'train-dia0_utt0'.*line 2"),
        ("positive,0,1", "positive,../0,1", r", line 3: Dialogue_ID .*'\.\./0'"),
    ],
)
def test_an_invalid_table_is_rejected(folder: Path, old: str, new: str, named: str) -> None:
    path = folder / "train_sent_emo.csv"
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(UserError, match=rf"train_sent_emo\.csv{named}"):
        read(folder, EMOTION)


def test_missing_files_and_other_tasks_are_rejected(folder: Path) -> None:
    with pytest.raises(UserError, match=r"MELD .*extract\.task .*neutral, surprise"):
        read(folder, Task(kind="regression", low=-3, high=3))
    (folder / "train_splits").mkdir()
    with pytest.raises(UserError, match=r"/dev_splits_complete .*train_splits"):
        read(folder, EMOTION)
    (folder / "dev_sent_emo.csv").unlink()
    with pytest.raises(UserError, match=r"/dev_sent_emo\.csv "):
        read(folder, EMOTION)
