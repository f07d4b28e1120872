"""The transcript next to a clip: a .srt by its times, a .txt as a whole."""

from pathlib import Path

import pytest

from qamoe.data.subtitles import sidecar_transcript
from qamoe.media.decode import ClipError

SRT = """\ufeff1\r
00:00:00,200 --> 00:00:01,200\r
<i>What</i> a\r
lovely film,\r
\r
2\r
00:00:01,500 --> 00:00:02,700 X1:40 X2:600\r
{\\an8}isn't it?\r
\r
7 of 10\r
3\r
01:00:00.5 --> 01:00:01.0\r
never\r
"""


def test_a_cue_belongs_to_the_span_that_contains_its_middle(tmp_path: Path) -> None:
    (tmp_path / "clip.srt").write_bytes(SRT.encode())
    (tmp_path / "clip.txt").write_text("not these words")
    clip = tmp_path / "clip.mp4"
    assert sidecar_transcript(clip) == "What a lovely film, isn't it? 7 of 10 never"
    assert sidecar_transcript(clip, 0.0, 2.0) == "What a lovely film,"
    assert sidecar_transcript(clip, 2.0, 4.0) == "isn't it? 7 of 10"
    assert sidecar_transcript(clip, 4.0, 6.0) == ""
    assert sidecar_transcript(clip, 3600.0, None) == "never"


def test_a_txt_is_the_transcript_of_the_whole_file_only(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    assert sidecar_transcript(clip) == ""
    (tmp_path / "clip.txt").write_bytes("\ufeffa lovely\n\nfilm \u2026\n".encode())
    assert sidecar_transcript(clip) == "a lovely film \u2026"
    for span in ((1.0, None), (0.0, 2.0)):
        with pytest.raises(ClipError, match=r"clip\.txt .*clip\.srt"):
            sidecar_transcript(clip, *span)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfea\x00", r"clip\.srt .*UTF-8"), (b"a lovely film\n", r"clip\.srt .*00:00:01,000 -->")],
)
def test_an_invalid_srt_is_a_problem_and_an_empty_one_has_no_words(tmp_path: Path, content: bytes, reason: str) -> None:
    srt = tmp_path / "clip.srt"
    srt.write_bytes(content)
    with pytest.raises(ClipError, match=reason):
        sidecar_transcript(tmp_path / "clip.mp4")
    srt.write_bytes(b"\n \n")
    assert sidecar_transcript(tmp_path / "clip.mp4") == ""


@pytest.mark.parametrize(
    "times",
    [
        "9999999999:00:00,000 --> 9999999999:00:01,000",
        f"{'9' * 5000}:00:00,000 --> {'9' * 5000}:00:01,000",
        "1001:00:00,000 --> 1001:00:01,000",
        "-00:00:01,000 --> 00:00:02,000",
        "00:00:05,000 --> 00:00:02,000",
    ],
)
def test_absurd_times_are_a_problem_of_the_clip(tmp_path: Path, times: str) -> None:
    (tmp_path / "clip.srt").write_text(f"1\n{times}\nwords\n")
    with pytest.raises(ClipError) as problem:
        sidecar_transcript(tmp_path / "clip.mp4")
    assert "clip.srt" in str(problem.value)
    assert times[:20] in str(problem.value)
