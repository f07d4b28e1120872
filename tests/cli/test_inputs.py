"""What `qamoe predict` makes of its arguments before any model is asked."""

from pathlib import Path

import numpy as np
import pytest

from qamoe.cli import inputs
from qamoe.cli.inputs import InputOptions, PredictInput
from qamoe.data.clip import MediaSpan
from tests.fixtures.served import written

SRT = "1\n00:00:00,500 --> 00:00:01,500\nlovely\n\n2\n00:00:04,100 --> 00:00:05,000\nthe end\n"


@pytest.fixture
def talk(tmp_path: Path, voice: np.ndarray) -> Path:
    """A sound of 4.5 s."""
    return written(tmp_path / "talk.wav", np.tile(voice, 3))


def clip(path: Path, **changes: object) -> MediaSpan:
    return MediaSpan(clip_id=path.name, path=path, **changes)  # type: ignore[arg-type]


def spans(made: list[PredictInput]) -> list[tuple[str, float, float | None]]:
    return [(each.name, each.span.start_s, each.span.end_s) for each in made if each.span]


def test_windows_cover_the_clip_and_a_small_rest_has_none_of_its_own(talk: Path) -> None:
    whole = [("talk.wav", 0.0, None)]
    assert spans(inputs.inputs_of(clip(talk), InputOptions())) == whole
    assert spans(inputs.inputs_of(clip(talk), InputOptions(window=4.5))) == whole
    assert spans(inputs.inputs_of(clip(talk), InputOptions(window=4.4))) == whole
    two = [("talk.wav@0s", 0.0, 2.0), ("talk.wav@2s", 2.0, 4.0), ("talk.wav@4s", 4.0, None)]
    assert spans(inputs.inputs_of(clip(talk), InputOptions(window=2.0))) == two
    part = clip(talk, start_s=0.5, end_s=60.0)  # a csv may promise more than the file holds
    assert spans(inputs.inputs_of(part, InputOptions(window=2.0))) == [
        ("talk.wav@0.5s", 0.5, 2.5),
        ("talk.wav@2.5s", 2.5, 60.0),
    ]


def test_a_clip_longer_than_twice_the_longest_of_training_is_refused_with_the_sentence(talk: Path) -> None:
    (refused,) = inputs.inputs_of(clip(talk), InputOptions(longest=2.0))
    assert refused.span is None
    assert refused.fault == (
        "talk.wav lasts 4.5 s, more than twice the longest clip of training (2.0 s); with --window S it is answered in "
        "windows of S seconds, up to 4.0 s."
    )
    for options in (InputOptions(longest=2.25), InputOptions(longest=None), InputOptions(longest=2.0, window=4.0)):
        assert all(each.span and not each.fault for each in inputs.inputs_of(clip(talk), options))
    (part,) = inputs.inputs_of(
        clip(talk, start_s=1.0, end_s=4.9), InputOptions(longest=2.0)
    )  # its span counts, not its file
    assert part.span


def test_words_come_from_the_option_the_csv_or_a_file_beside(talk: Path) -> None:
    def said(options: InputOptions, **changes: object) -> list[tuple[str, str]]:
        return [(each.words, each.silent) for each in inputs.inputs_of(clip(talk, **changes), options)]

    assert said(InputOptions()) == [("", "no transcript")]
    talk.with_suffix(".txt").write_text("beside\n")
    assert said(InputOptions()) == [("beside", "")]
    assert said(InputOptions(), text="of the csv") == [("of the csv", "")]
    assert said(InputOptions(text="given"), text="of the csv") == [("given", "")]
    assert said(InputOptions(text="")) == [("", "no transcript")]
    assert {why for _, why in said(InputOptions(window=2.0))} == {
        "talk.txt has no times, so that its words cannot be placed; talk.srt would have"
    }
    talk.with_suffix(".srt").write_text(SRT)
    assert said(InputOptions()) == [("lovely the end", "")]
    assert said(InputOptions(window=2.0)) == [("lovely", ""), ("", "no transcript"), ("the end", "")]
    assert said(InputOptions(), start_s=4.0) == [("the end", "")]
    talk.with_suffix(".srt").unlink()
    talk.with_suffix(".txt").unlink()
    assert {why for _, why in said(InputOptions(window=2.0), text="of the csv")} == {
        "the words of the csv have no times, so that they cannot be placed in a window"
    }


def test_files_folders_and_csv_files_are_clips_in_a_stable_order(talk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.wav", "a.mp4", "a.txt", "notes.md"):
        (folder / name).write_bytes(b"content")
    listed = tmp_path / "list.csv"
    listed.write_text("path,text\ntalk.wav,words\ngone.wav,\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    found = inputs.clips([talk, folder, listed, tmp_path / "gone.mp4", empty])
    clips = [(c.clip_id, c.text, c.path) for c in found if isinstance(c, MediaSpan)]
    assert clips == [
        (str(talk), "", talk),
        (str(folder / "a.mp4"), "", folder / "a.mp4"),
        (str(folder / "b.wav"), "", folder / "b.wav"),
        ("talk.wav", "words", talk),
    ]
    faults = [each.fault for each in found if isinstance(each, PredictInput)]
    assert faults == [
        f"{listed}, line 3: there is no file 'gone.wav' in the corpus folder.",
        f"There is no file {tmp_path / 'gone.mp4'}.",
        f"There are no media in {empty}, and no manifest.csv that lists some.",
    ]
    assert [inputs.one_file([path]) for path in (talk, folder, listed)] == [True, False, False]
    assert not inputs.one_file([talk, talk])
