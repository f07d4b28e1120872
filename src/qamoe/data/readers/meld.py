"""Read MELD (declare-lab): {train,dev,test}_sent_emo.csv and, if present, the clips `dia{D}_utt{U}.mp4`.

Dialogue numbers restart in every split, so ids and sources include the split. A source is a dialogue. The main cast
speaks in all splits, because MELD splits by dialogue and not by speaker.
"""

from pathlib import Path

from qamoe.config.task import Task, is_classification
from qamoe.data.clip import (
    WINDOWS_1252,
    Corpus,
    LabelledClip,
    check_clips,
    collect_faults,
    label_value,
    open_table,
    utterance,
)
from qamoe.errors import UserError

SPLITS = {"train": "train", "dev": "valid", "test": "test"}  # file -> split
# In the order of the public readers; lower case in the files.
EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENTS = ("neutral", "positive", "negative")
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
_COLUMNS = ("Utterance", "Speaker", "Dialogue_ID", "Utterance_ID")


def read(path: Path, task: Task, faults: list[str] | None = None) -> Corpus:
    """Read a folder of MELD. Raises UserError if the folder has another layout.

    The task's classes select the label: the seven of column Emotion or the three of column Sentiment. Without all
    three folders of clips, the corpus lacks audio and vision; a missing clip is a problem of that clip only. If
    `faults` is a list, errors of single rows are appended to it and the other rows are read.
    """
    column = _column(task)
    tables = path / "data" / "MELD" if (path / "data" / "MELD").is_dir() else path
    files = {name: tables / f"{name}_sent_emo.csv" for name in SPLITS}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file} does not exist; MELD needs train_, dev_ and test_sent_emo.csv in one folder.")
    folders = {name: path / folder for name, folder in FOLDERS.items() if (path / folder).is_dir()}
    if folders and len(folders) < len(FOLDERS):
        missing = next(folder for name, folder in FOLDERS.items() if name not in folders)
        raise UserError(f"{path / missing} does not exist; MELD's clips are in {', '.join(FOLDERS.values())}.")
    clips = [clip for name in SPLITS for clip in _clips(files[name], name, folders.get(name), column, task, faults)]
    check_clips(clips, str(path), faults)
    streams = ("audio", "vision") if folders else ()
    return Corpus(clips, ("text", *streams), {"corpus": "meld", "label": column, "media": bool(folders)})


def _column(task: Task) -> str:
    for column, classes in (("Emotion", EMOTIONS), ("Sentiment", SENTIMENTS)):
        if is_classification(task) and set(task.classes) == set(classes):
            return column
    raise UserError(
        f"MELD needs extract.task of kind classification with the classes {', '.join(EMOTIONS)} "
        f"or {', '.join(SENTIMENTS)}."
    )


def _clips(
    file: Path, name: str, folder: Path | None, column: str, task: Task, faults: list[str] | None
) -> list[LabelledClip]:
    clips = []
    with open_table(file) as reader:
        missing = [c for c in (*_COLUMNS, column) if c not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f"{file} lacks the column {missing[0]}.")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            with collect_faults(faults):
                dialogue, number = (_number(row[c], c, where) for c in ("Dialogue_ID", "Utterance_ID"))
                name_in_dialogue = f"dia{dialogue}_utt{number}"
                media = folder / f"{name_in_dialogue}.mp4" if folder else None
                words = (row["Utterance"] or "").translate(WINDOWS_1252).strip()
                clip = LabelledClip(
                    span=utterance(f"{name}-{name_in_dialogue}", words, where, media),
                    source=f"{name}-dia{dialogue}",
                    split=SPLITS[name],
                    label=label_value((row[column] or "").strip(), task, where),
                )
                clips.append(clip)
    return clips


def _number(cell: str | None, name: str, where: str) -> int:
    text = (cell or "").strip()
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise UserError(f"{where}: {name} is {cell!r}, must be an integer of at least 0.")
    return int(text)
