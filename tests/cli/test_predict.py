"""`qamoe predict`: as a command, and the lines that it prints."""

import csv
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qamoe.cli import predict
from qamoe.errors import UserError
from tests.fixtures.served import written

KEYS = ["clip", "score", "interval", "trust", "reasons"]
SRT = "1\n00:00:00,200 --> 00:00:01,000\na lovely film\n\n2\n00:00:02,000 --> 00:00:02,900\na dull film\n"
GENERATED = "trained on generated clips only: it says nothing about real people.\n"


@pytest.fixture
def qamoe(checkpoint_folder, tmp_path):
    """Run the command with a pipe for its output, or with a terminal of 100 columns; exit code and both outputs."""

    def run(*arguments, screen=False):
        command = [sys.executable, "-m", "qamoe", "predict", "--folder", checkpoint_folder, *arguments]
        ours, theirs = pty.openpty() if screen else (None, subprocess.PIPE)
        environment = os.environ | {"COLUMNS": "100", "TERM": "dumb"}
        process = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=theirs, stderr=subprocess.PIPE
        )
        shown = b""
        if ours is not None:
            os.close(theirs)
            shown = b"".join(iter(lambda: _read(ours), b""))
            os.close(ours)
        out, err = process.communicate()
        return process.returncode, (out or shown).decode(), err.decode()

    return run


def _read(screen):
    try:
        return os.read(screen, 65_536)
    except OSError:  # Linux's way to say that nobody holds the other end any more
        return b""


@pytest.fixture
def lines(checkpoint_folder, capsys):
    """The lines of JSON for some clips, in this process, and whether all were answered."""

    def of(*paths, text=None, window=None, folder=checkpoint_folder):
        whole = predict.predict(list(paths), text, window, "", folder, as_json=True)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()], whole

    return of


def test_a_film_with_its_words_is_answered_in_the_terminal(qamoe, film, lines):
    code, out, err = qamoe(film, "--text", "a lovely film", screen=True)
    assert code == 0, err
    assert err == f"qamoe: qamoe/1 was {GENERATED}"
    shown = out.splitlines()
    assert shown[0].startswith("score  +")
    assert "90 % interval" in shown[0]
    assert {"text", "audio", "vision", "experts"} <= {line.split()[0] for line in shown if "%" in line}
    (answer,), whole = lines(film, text="a lovely film")
    assert whole
    assert list(answer)[:5] == KEYS
    assert (answer["clip"], answer["reasons"], answer["model"]) == (str(film), {}, "qamoe/1")
    assert f"{answer['score']:+.2f}" in shown[0]
    low, high = answer["interval"]
    assert low < answer["score"] < high
    assert sum(answer["routing"]) == pytest.approx(1)


def test_one_clip_that_cannot_be_read_costs_itself_and_says_why(
    qamoe, checkpoint_folder, film, voice, tmp_path, monkeypatch, capsys
):
    """In a pipe as lines of JSON, in a terminal as a table."""
    (tmp_path / "film.mp4").write_bytes(film.read_bytes())
    (tmp_path / "film.txt").write_text("a lovely film")
    (tmp_path / "broken.mp4").write_bytes(b"no film at all")
    (tmp_path / "broken.txt").write_text("words do not make a broken file a clip")
    written(tmp_path / "still.wav", np.zeros_like(voice))
    names = ("film.mp4", "broken.mp4", "still.wav", "gone.mp4")
    code, out, err = qamoe(*names)
    assert code == 1, err
    made = [json.loads(line) for line in out.splitlines()]
    assert [line["clip"] for line in made] == list(names)
    assert all(list(line)[:5] == KEYS for line in made)
    assert (made[0]["reasons"], made[0]["trust"]["text"] > 0) == ({}, True)
    assert [line["score"] for line in made[1:]] == [None] * 3
    assert [line["trust"] for line in made[1:]] == [None] * 3
    assert made[1]["reasons"]["clip"].startswith("cannot be decoded")
    assert made[2]["reasons"] == {"text": "no transcript", "audio": "silence", "vision": "no video stream"}
    assert made[3]["reasons"] == {"clip": "There is no file gone.mp4."}
    assert err.endswith("qamoe: 3 of 4 clips have no answer; the reasons are given above.\n")
    assert err.count("\n") == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert not predict.predict([Path(name) for name in names], None, None, "", checkpoint_folder, as_json=False)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert f"{made[0]['score']:+.2f}  {made[0]['interval'][0]:+.2f} to" in rows["film.mp4"]
    assert "audio: silence" in rows["still.wav"]
    assert "cannot be decoded" in rows["broken.mp4"]


def test_words_alone_leave_the_rest_missing(lines):
    (answer,), _ = lines(text="a lovely film")
    assert answer["clip"] is None
    assert answer["trust"]["audio"] == answer["trust"]["vision"] == 0 < answer["trust"]["text"]
    assert answer["reasons"] == {"audio": "no clip", "vision": "no clip"}


def test_what_is_missing_is_said(lines, film, voice, tmp_path):
    """A clip without words counts as one with empty words, also for an encoder that is then not loaded."""
    sound = written(tmp_path / "sound.wav", voice)
    (answer,), whole = lines(sound)
    assert whole
    assert answer["trust"]["text"] == answer["trust"]["vision"] == 0 < answer["trust"]["audio"]
    assert answer["reasons"] == {"text": "no transcript", "vision": "no video stream"}
    silent = written(tmp_path / "silent.wav", np.zeros_like(voice))
    (with_words,), whole = lines(silent, text="a lovely film")
    (words_alone,), _ = lines(text="a lovely film")
    assert whole
    assert with_words["score"] == words_alone["score"]
    assert with_words["reasons"] == {"audio": "silence", "vision": "no video stream"}


def test_windows_are_answered_like_the_spans_of_a_csv(lines, voice, tmp_path):
    talk = written(tmp_path / "talk.wav", np.concatenate([voice, voice[::2], voice[::3], 0.3 * voice])[:66_150])
    (tmp_path / "talk.srt").write_text(SRT)
    windows, whole = lines(talk, window=1.0)
    assert whole
    assert [line["clip"] for line in windows] == [f"{talk}@{start}s" for start in (0, 1, 2)]
    assert [line["reasons"].get("text") for line in windows] == [None, "no transcript", None]
    with (tmp_path / "spans.csv").open("w", newline="") as file:
        rows = [("a", 0, 1, "a lovely film"), ("b", 1, 2, ""), ("c", 2, "", "a dull film")]
        csv.writer(file).writerows([("clip_id", "start_s", "end_s", "text", "path"), *((*r, "talk.wav") for r in rows)])
    spans, _ = lines(tmp_path / "spans.csv")
    assert [line["clip"] for line in spans] == ["a", "b", "c"]
    assert len({line["score"] for line in spans}) == 3
    for name in ("score", "interval", "trust", "r"):
        assert [line[name] for line in windows] == [line[name] for line in spans]


def test_a_refusal_is_one_sentence_and_exit_code_2(qamoe):
    code, out, err = qamoe(__file__)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has nothing that can be used (cannot be decoded" in err


@pytest.mark.parametrize(
    ("names", "more", "sentence"),
    [
        ((), {}, "There is nothing to predict"),
        (("nowhere.mp4",), {}, "There is no file nowhere.mp4"),
        (("a.mp4", "b.mp4"), {"text": "words"}, "--text is what is said in one clip, and these are 2"),
        (("a.mp4",), {"text": "words", "window": 2.0}, "--text has no times"),
        (("a.mp4",), {"window": 0.0}, "--window is 0 s; allowed are 0.5 s and more"),
        (("a.mp4",), {"window": float("nan")}, "--window is nan s"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(lines, names, more, sentence):
    with pytest.raises(UserError, match=sentence):
        lines(*map(Path, names), folder=Path("no checkpoint"), **more)


def test_the_longest_clip_of_training_bounds_clips_and_windows(lines, voice, tmp_path, tiny_checkpoint, tiny_stats):
    talk = written(tmp_path / "talk.wav", np.tile(voice, 3))
    with pytest.raises(UserError, match=r"lasts 4\.5 s, more than twice the longest clip of training \(2\.0 s\)"):
        lines(talk)
    with pytest.raises(UserError, match=r"--window is 4\.1 s; allowed are up to 4\.0 s"):
        lines(talk, window=4.1)
    older = {key: value for key, value in tiny_stats.items() if key != "seconds_max"}
    (answer,), _ = lines(talk, folder=tiny_checkpoint(tmp_path / "older", stats=older))
    assert answer["score"] is not None


def test_a_model_of_real_clips_is_not_warned_about(tmp_path, tiny_checkpoint, capsys):
    folder = tiny_checkpoint(tmp_path / "real", trained_on_generated=False)
    assert predict.predict([], "a lovely film", None, "", folder, as_json=True)
    assert capsys.readouterr().err == ""


def test_a_name_cannot_command_the_terminal(checkpoint_folder, voice, tmp_path, monkeypatch, capsys):
    for name in ("\x1b[2Jred.wav", "[bold]b.wav"):
        written(tmp_path / name, voice)
    monkeypatch.chdir(tmp_path)
    assert predict.predict([Path()], None, None, "", checkpoint_folder, as_json=False)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]b.wav" in shown
