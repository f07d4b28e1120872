"""`qamoe predict` as a command, and the lines that it prints."""

import csv
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from qamoe.cli import predict
from qamoe.errors import UserError
from tests.fixtures.served import two_tracks, written

KEYS = ["clip", "score", "interval", "trust", "reasons"]
SRT = "1\n00:00:00,200 --> 00:00:01,000\na lovely film\n\n2\n00:00:02,000 --> 00:00:02,900\na dull film\n"


@pytest.fixture
def qamoe(checkpoint_folder, tmp_path):
    """Run the command with a pipe or a terminal of 100 columns as output; return exit code, stdout and stderr."""

    def run(*arguments, screen=False):
        command = [sys.executable, "-m", "qamoe", "predict", "--folder", checkpoint_folder, *arguments]
        terminal, output = pty.openpty() if screen else (None, subprocess.PIPE)
        environment = os.environ | {"COLUMNS": "100", "TERM": "dumb"}
        process = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.PIPE
        )
        displayed = b""
        if terminal is not None:
            os.close(output)
            displayed = b"".join(iter(lambda: _read(terminal), b""))
            os.close(terminal)
        out, err = process.communicate()
        return process.returncode, (out or displayed).decode(), err.decode()

    return run


def _read(terminal):
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux raises this when the other end is closed
        return b""


@pytest.fixture
def lines(checkpoint_folder, capsys):
    """Predict clips in this process; return the JSON lines and whether all clips have a prediction."""

    def predict_lines(*paths, text=None, window=None, folder=checkpoint_folder):
        complete = predict.predict(list(paths), text, window, "", folder, as_json=True, transcribe=False)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()], complete

    return predict_lines


def test_a_video_with_text_is_predicted_in_the_terminal(qamoe, film, lines):
    code, out, err = qamoe(film, "--text", "a lovely film", screen=True)
    assert code == 0, err
    assert err.startswith("qamoe: qamoe/1 ")
    assert "generated" in err
    assert err.count("\n") == 1
    screen = out.splitlines()
    assert screen[0].startswith("score  +")
    assert "90 % interval" in screen[0]
    assert {"text", "audio", "vision", "experts"} <= {line.split()[0] for line in screen if "%" in line}
    (answer,), complete = lines(film, text="a lovely film")
    assert complete
    assert list(answer)[:5] == KEYS
    assert (answer["clip"], answer["reasons"], answer["model"]) == (str(film), {}, "qamoe/1")
    assert f"{answer['score']:+.2f}" in screen[0]
    low, high = answer["interval"]
    assert low < answer["score"] < high
    assert sum(answer["routing"]) == pytest.approx(1)


@pytest.mark.slow
def test_an_unreadable_clip_has_a_reason_and_the_others_a_prediction(
    qamoe, checkpoint_folder, film, voice, tmp_path, monkeypatch, capsys
):
    """The output is JSON lines in a pipe and a table in a terminal."""
    (tmp_path / "clip.mp4").write_bytes(film.read_bytes())
    (tmp_path / "clip.txt").write_text("a lovely film")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "broken.txt").write_text("a text does not repair the video")
    written(tmp_path / "still.wav", np.zeros_like(voice))
    names = ("clip.mp4", "broken.mp4", "still.wav", "gone.mp4")
    code, out, err = qamoe(*names, "--no-transcribe")
    assert code == 1, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [line["clip"] for line in answers] == list(names)
    assert all(list(line)[:5] == KEYS for line in answers)
    assert (answers[0]["reasons"], answers[0]["trust"]["text"] > 0) == ({}, True)
    assert [line["score"] for line in answers[1:]] == [None] * 3
    assert [line["trust"] for line in answers[1:]] == [None] * 3
    assert answers[1]["reasons"]["clip"].startswith("cannot be decoded")
    assert answers[2]["reasons"] == {"text": "no transcript", "audio": "silence", "vision": "no video stream"}
    assert list(answers[3]["reasons"]) == ["clip"]
    assert "gone.mp4" in answers[3]["reasons"]["clip"]
    assert err.splitlines()[-1].startswith("qamoe: 3 of 4 clips")
    assert err.count("\n") == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert not predict.predict([Path(name) for name in names], None, None, "", checkpoint_folder, False, False)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert f"{answers[0]['score']:+.2f}  {answers[0]['interval'][0]:+.2f} to" in rows["clip.mp4"]
    assert "audio: silence" in rows["still.wav"]
    assert "cannot be decoded" in rows["broken.mp4"]


def test_text_without_a_clip_leaves_the_other_modalities_missing(lines):
    (answer,), _ = lines(text="a lovely film")
    assert answer["clip"] is None
    assert answer["trust"]["audio"] == answer["trust"]["vision"] == 0 < answer["trust"]["text"]
    assert answer["reasons"] == {"audio": "no clip", "vision": "no clip"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\U0001f600\U0001f680 \U0001f92f", "symbols"),
        ("\u8fd9\u90e8\u7535\u5f71\u5f88\u597d", "Chinese"),
        ("\u043e\u0447\u0435\u043d\u044c \u0445\u043e\u0440\u043e\u0448\u043e", "Cyrillic"),
        ("\u0641\u064a\u0644\u0645 \u062c\u0645\u064a\u0644", "Arabic"),
    ],
)
def test_a_text_that_the_encoder_does_not_know_is_missing(lines, voice, tmp_path, text, reason):
    spoken = written(tmp_path / "spoken.wav", voice)
    (answer,), complete = lines(spoken, text=text)
    (without,), _ = lines(spoken)
    assert complete
    assert (answer["score"], answer["trust"]["text"]) == (without["score"], 0)
    assert reason in answer["reasons"]["text"]
    (alone,), complete = lines(text=text)
    assert not complete
    assert alone["score"] is None


def test_a_text_that_is_cut_says_how_much_of_it_was_read(lines):
    (whole,), _ = lines(text=" ".join(["fine"] * 20))
    (cut,), _ = lines(text=" ".join(["fine"] * 60))
    assert "text" not in whole["reasons"]
    assert "48 of 60 words" in cut["reasons"]["text"]


def test_a_missing_modality_has_a_reason(lines, film, voice, tmp_path):
    """A clip without text is predicted like one with empty text; the text encoder is not loaded for it."""
    spoken = written(tmp_path / "spoken.wav", voice)
    (answer,), complete = lines(spoken)
    assert complete
    assert answer["trust"]["text"] == answer["trust"]["vision"] == 0 < answer["trust"]["audio"]
    assert answer["reasons"] == {"text": "no transcript", "vision": "no video stream"}
    silent = written(tmp_path / "silent.wav", np.zeros_like(voice))
    (with_clip,), complete = lines(silent, text="a lovely film")
    (text_only,), _ = lines(text="a lovely film")
    assert complete
    assert with_clip["score"] == text_only["score"]
    assert with_clip["reasons"] == {"audio": "silence", "vision": "no video stream"}
    hiss = 0.001 * np.random.default_rng(1).normal(size=len(voice))  # of a dead microphone, at -60 dB
    (with_hiss,), complete = lines(written(tmp_path / "hiss.wav", hiss), text="a lovely film")
    assert complete
    assert (with_hiss["score"], with_hiss["trust"]["audio"]) == (text_only["score"], 0)
    assert with_hiss["reasons"]["audio"].startswith("no speech")


def test_the_gain_of_a_recording_does_not_change_the_answer(lines, voice, tmp_path):
    answers = []
    for factor in (1, 0.25, 4):  # in floating point, which nothing clips
        path = tmp_path / f"gain-{factor}.wav"
        wavfile.write(path, 22_050, np.float32(factor) * voice)
        ((answer,), _) = lines(path)
        answers.append((answer["score"], answer["trust"]["audio"]))
    assert answers[0][1] > 0
    np.testing.assert_allclose(answers[1:], [answers[0]] * 2, atol=1e-3)


@pytest.mark.slow
def test_an_audio_track_is_named_by_number_or_language(qamoe, voice, tmp_path):
    clip = two_tracks(tmp_path / "clip.mkv", voice)

    def answer(*options):
        code, out, err = qamoe(clip, "--text", "a film", "--json", *options)
        assert code == 0, err
        return json.loads(out)

    assert "audio track 1 of 2" in answer()["reasons"]["audio"]
    english = answer("--audio-track", "eng")
    assert english["trust"]["audio"] > 0
    assert "audio" not in english["reasons"]
    assert answer("--audio-track", "2")["score"] == english["score"]
    unknown = answer("--audio-track", "deu")
    assert unknown["trust"]["audio"] == 0
    assert re.search(r"'deu'.*1 \(jpn.*2 \(eng", unknown["reasons"]["audio"])


def test_windows_are_predicted_like_the_spans_of_a_csv(lines, voice, tmp_path):
    talk = written(tmp_path / "talk.wav", np.concatenate([voice, voice[::2], voice[::3], 0.3 * voice])[:66_150])
    (tmp_path / "talk.srt").write_text(SRT)
    windows, complete = lines(talk, window=1.0)
    assert complete
    assert [line["clip"] for line in windows] == [f"{talk}@{start}s" for start in (0, 1, 2)]
    assert [line["reasons"].get("text") for line in windows] == [None, "the transcript has no words at this time", None]
    with (tmp_path / "spans.csv").open("w", newline="") as file:
        rows = [("a", 0, 1, "a lovely film"), ("b", 1, 2, ""), ("c", 2, "", "a dull film")]
        csv.writer(file).writerows([("clip_id", "start_s", "end_s", "text", "path"), *((*r, "talk.wav") for r in rows)])
    spans, _ = lines(tmp_path / "spans.csv")
    assert [line["clip"] for line in spans] == ["a", "b", "c"]
    assert len({line["score"] for line in spans}) == 3
    for name in ("score", "interval", "trust", "r"):
        assert [line[name] for line in windows] == [line[name] for line in spans]


def test_a_user_error_is_one_sentence_and_exit_code_2(qamoe):
    code, out, err = qamoe(__file__)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert Path(__file__).name in err
    assert "cannot be decoded" in err


@pytest.mark.parametrize(
    ("names", "options", "values"),
    [
        ((), {}, "--text"),
        (("nowhere.mp4",), {}, "nowhere.mp4"),
        (("a.mp4", "b.mp4"), {"text": "words"}, "--text.* 2\\b"),
        (("a.mp4",), {"text": "words", "window": 2.0}, "--text.*--window"),
        (("a.mp4",), {"window": 0.0}, "--window.* 0 s.* 0.5 s"),
        (("a.mp4",), {"window": float("nan")}, "--window.* nan s"),
    ],
)
def test_invalid_arguments_are_refused_before_a_model_is_loaded(lines, names, options, values):
    with pytest.raises(UserError, match=values):
        lines(*map(Path, names), folder=Path("no checkpoint"), **options)


@pytest.mark.slow
def test_the_longest_clip_of_training_limits_clips_and_windows(lines, voice, tmp_path, tiny_checkpoint, tiny_stats):
    talk = written(tmp_path / "talk.wav", np.tile(voice, 3))
    with pytest.raises(UserError, match=r"talk\.wav .*4\.5 s.*4\.0 s.*--window"):
        lines(talk)
    with pytest.raises(UserError, match=r"--window .*4\.1 s.*4\.0 s"):
        lines(talk, window=4.1)
    older = {key: value for key, value in tiny_stats.items() if key != "seconds_max"}
    (answer,), _ = lines(talk, folder=tiny_checkpoint(tmp_path / "older", stats=older))
    assert answer["score"] is not None


def test_a_model_of_real_clips_causes_no_warning(tmp_path, tiny_checkpoint, capsys):
    folder = tiny_checkpoint(tmp_path / "real", trained_on_generated=False)
    assert predict.predict([], "a lovely film", None, "", folder, as_json=True)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_control_characters_in_a_name_do_not_reach_the_terminal(
    checkpoint_folder, voice, tmp_path, monkeypatch, capsys
):
    for name in ("\x1b[2Jred.wav", "[bold]b.wav"):
        written(tmp_path / name, voice)
    monkeypatch.chdir(tmp_path)
    assert predict.predict([Path()], None, None, "", checkpoint_folder, as_json=False)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]b.wav" in out


@pytest.mark.parametrize(
    "dotted", ["modalities", "stats", "stats.audio", "extract", "extract.audio", "models", "task", "trust", "seed"]
)
def test_a_model_json_that_lacks_a_key_is_one_sentence(voice, tmp_path, tiny_checkpoint, dotted):
    """The extractors are chosen before the model is loaded, and each missing key gave a traceback there."""
    folder, clip = tiny_checkpoint(tmp_path / "1"), written(tmp_path / "a.wav", voice)
    config = json.loads((folder / "model.json").read_text())
    config["stats"]["audio"]["rate"] = 20.0  # so that audio is extracted from media
    *parents, key = dotted.split(".")
    parent = config
    for name in parents:
        parent = parent[name]
    del parent[key]
    (folder / "model.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=dotted.split(".")[0]) as refusal:
        predict.predict([clip], None, None, "", folder, as_json=True)
    assert "\n" not in str(refusal.value)
    assert "model.json" in str(refusal.value)
