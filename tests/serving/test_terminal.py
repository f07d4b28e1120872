"""`qamoe predict`, as a command."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def qamoe(checkpoint_folder, tmp_path):
    def run(*arguments):
        command = [
            sys.executable,
            "-m",
            "qamoe.cli",
            "predict",
            "--folder",
            str(checkpoint_folder),
            *map(str, arguments),
        ]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_a_film_with_its_words_is_answered_in_the_terminal(qamoe, film):
    done = qamoe(film, "--text", "a lovely film")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("score  +")
    assert "90 % interval" in lines[0]
    shown = {line.split()[0] for line in lines if "%" in line}
    assert {"text", "audio", "vision", "experts"} <= shown
    as_json = json.loads(qamoe(film, "--text", "a lovely film", "--json").stdout)
    assert f"{as_json['score']:+.2f}" in lines[0]
    assert as_json["routing"] == pytest.approx(as_json["routing"])
    assert sum(as_json["routing"]) == pytest.approx(1)


def test_words_alone_leave_the_rest_missing(qamoe):
    answer = json.loads(qamoe("--text", "a lovely film", "--json").stdout)
    assert answer["trust"]["audio"] == answer["trust"]["vision"] == 0 < answer["trust"]["text"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "There is nothing to predict"),
        (("nowhere.mp4",), "There is no file nowhere.mp4"),
        ((__file__,), "has nothing that can be used"),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_2(qamoe, arguments, sentence):
    done = qamoe(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert sentence in done.stderr
