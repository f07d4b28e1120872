"""The inputs that `qamoe predict` reads from its arguments before it loads a model."""

import re
from pathlib import Path

import numpy as np
import pytest

from qamoe.cli import inputs
from qamoe.cli.inputs import InputOptions, PredictInput
from qamoe.data.clip import MediaSpan
from tests.fixtures.served import written

SRT = "1\n00:00:00,500 --> 00:00:01,500\nlovely\n\n2\n00:00:04,100 --> 00:00:05,000\nthe end\n"
NOT_THEN = "the transcript has no words at this time"


@pytest.fixture
def talk(tmp_path: Path, voice: np.ndarray) -> Path:
    """Write an audio file of 4.5 s."""
    return written(tmp_path / "talk.wav", np.tile(voice, 3))


def clip(path: Path, **changes: object) -> MediaSpan:
    return MediaSpan(clip_id=path.name, path=path, **changes)  # type: ignore[arg-type]


def spans(clips: list[PredictInput]) -> list[tuple[str, float, float | None]]:
    return [(one.name, one.span.start_s, one.span.end_s) for one in clips if one.span]


def test_windows_cover_the_clip_and_the_last_one_includes_a_short_rest(talk: Path) -> None:
    whole = [("talk.wav", 0.0, None)]
    assert spans(inputs.inputs_of(clip(talk), InputOptions())) == whole
    assert spans(inputs.inputs_of(clip(talk), InputOptions(window=4.5))) == whole
    assert spans(inputs.inputs_of(clip(talk), InputOptions(window=4.4))) == whole
    two = [("talk.wav@0s", 0.0, 2.0), ("talk.wav@2s", 2.0, 4.0), ("talk.wav@4s", 4.0, None)]
    assert spans(inputs.inputs_of(clip(talk), InputOptions(window=2.0))) == two
    part = clip(talk, start_s=0.5, end_s=60.0)  # the end in a csv may be after the end of the file
    assert spans(inputs.inputs_of(part, InputOptions(window=2.0))) == [
        ("talk.wav@0.5s", 0.5, 2.5),
        ("talk.wav@2.5s", 2.5, 60.0),
    ]


def test_a_clip_longer_than_twice_the_longest_of_training_is_refused(talk: Path) -> None:
    (refused,) = inputs.inputs_of(clip(talk), InputOptions(longest=2.0))
    assert refused.span is None
    for value in ("talk.wav", "4.5 s", "4.0 s", "--window"):
        assert value in refused.fault
    for options in (InputOptions(longest=2.25), InputOptions(longest=None), InputOptions(longest=2.0, window=4.0)):
        assert all(one.span and not one.fault for one in inputs.inputs_of(clip(talk), options))
    # The length of the span counts, not that of the file.
    (part,) = inputs.inputs_of(clip(talk, start_s=1.0, end_s=4.9), InputOptions(longest=2.0))
    assert part.span


def test_text_comes_from_the_option_the_csv_or_a_file_next_to_the_clip(talk: Path) -> None:
    def texts(options: InputOptions, **changes: object) -> list[tuple[str, str]]:
        return [(one.words, one.silent) for one in inputs.inputs_of(clip(talk, **changes), options)]

    assert texts(InputOptions()) == [("", "no transcript")]
    talk.with_suffix(".txt").write_text("text file\n")
    assert texts(InputOptions()) == [("text file", "")]
    assert texts(InputOptions(), text="of the csv") == [("of the csv", "")]
    assert texts(InputOptions(text="option"), text="of the csv") == [("option", "")]
    assert texts(InputOptions(text="")) == [("", "--text is empty")]
    (reason,) = {why for _, why in texts(InputOptions(window=2.0))}
    assert re.search(r"talk\.txt .*talk\.srt", reason)
    talk.with_suffix(".srt").write_text(SRT)
    assert texts(InputOptions()) == [("lovely the end", "")]
    assert texts(InputOptions(window=2.0)) == [("lovely", ""), ("", NOT_THEN), ("the end", "")]
    assert texts(InputOptions(), start_s=4.0) == [("the end", "")]
    assert texts(InputOptions(), start_s=1.9, end_s=2.1) == [("", NOT_THEN)], "a transcript file wins over the voice"
    talk.with_suffix(".srt").unlink()
    talk.with_suffix(".txt").unlink()
    (reason,) = {why for _, why in texts(InputOptions(window=2.0), text="of the csv")}
    assert "csv" in reason


def test_files_folders_and_csv_files_are_clips_in_a_stable_order(talk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.wav", "a.mp4", "a.txt", "notes.md"):
        (folder / name).write_bytes(b"content")
    listed = tmp_path / "list.csv"
    listed.write_text("path,text\ntalk.wav,words\ngone.wav,\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    results = inputs.clips([talk, folder, listed, tmp_path / "gone.mp4", empty])
    clips = [(c.clip_id, c.text, c.path) for c in results if isinstance(c, MediaSpan)]
    assert clips == [
        (str(talk), "", talk),
        (str(folder / "a.mp4"), "", folder / "a.mp4"),
        (str(folder / "b.wav"), "", folder / "b.wav"),
        ("talk.wav", "words", talk),
    ]
    faults = [one.fault for one in results if isinstance(one, PredictInput)]
    expected = [(str(listed), "line 3", "'gone.wav'"), (str(tmp_path / "gone.mp4"),), (str(empty), "manifest.csv")]
    for fault, values in zip(faults, expected, strict=True):
        assert [value for value in values if value not in fault] == []
    assert [inputs.one_file([path]) for path in (talk, folder, listed)] == [True, False, False]
    assert not inputs.one_file([talk, talk])
