"""The transcript of a clip: files next to it by their names and times, and a track inside it."""

import json
from pathlib import Path
from typing import Any

import av
import pytest

from qamoe.data.subtitles import transcript
from qamoe.media.decode import ClipError, contents

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
    assert transcript(clip) == "What a lovely film, isn't it? 7 of 10 never"
    assert transcript(clip, 0.0, 2.0) == "What a lovely film,"
    assert transcript(clip, 2.0, 4.0) == "isn't it? 7 of 10"
    assert transcript(clip, 4.0, 6.0) == ""
    assert transcript(clip, 3600.0, None) == "never"


def test_a_txt_is_the_transcript_of_the_whole_file_only(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    assert transcript(clip) == ""
    (tmp_path / "clip.txt").write_bytes("\ufeffa lovely\n\nfilm \u2026\n".encode())
    assert transcript(clip) == "a lovely film \u2026"
    for span in ((1.0, None), (0.0, 2.0)):
        with pytest.raises(ClipError, match=r"clip\.txt .*clip\.srt"):
            transcript(clip, *span)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfea\x00", r"clip\.srt .*UTF-8"), (b"a lovely film\n", r"clip\.srt .*00:00:01,000 -->")],
)
def test_an_invalid_srt_is_a_problem_and_an_empty_one_has_no_words(tmp_path: Path, content: bytes, reason: str) -> None:
    srt = tmp_path / "clip.srt"
    srt.write_bytes(content)
    with pytest.raises(ClipError, match=reason):
        transcript(tmp_path / "clip.mp4")
    srt.write_bytes(b"\n \n")
    assert transcript(tmp_path / "clip.mp4") == ""


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
        transcript(tmp_path / "clip.mp4")
    assert "clip.srt" in str(problem.value)
    assert times[:20] in str(problem.value)


@pytest.mark.parametrize(
    "name",
    [
        "clip.SRT",
        "clip.vtt",
        "clip.VTT",
        "clip.en.srt",
        "clip.en-US.vtt",
        "clip.mp4.srt",
        "clip.mp4.en.vtt",
        "clip.eng.sdh.Srt",
    ],
)
def test_names_that_a_transcript_may_have(tmp_path: Path, name: str) -> None:
    head = "WEBVTT\n\n" if name.lower().endswith("vtt") else ""
    (tmp_path / name).write_text(f"{head}00:00:00.200 --> 00:00:01.200\nspoken words\n")
    (tmp_path / "clip.txt").write_text("not these words")
    (tmp_path / "clip2.srt").write_text("00:00:00.200 --> 00:00:01.200\nof another clip\n")
    assert transcript(tmp_path / "clip.mp4") == "spoken words"
    assert transcript(tmp_path / "clip.mp4", 1.0, 2.0) == ""


def test_english_is_read_and_of_several_other_languages_none(tmp_path: Path) -> None:
    cue = "00:00:00.200 --> 00:00:01.200\n"
    (tmp_path / "clip.de.srt").write_text(f"{cue}deutsch\n")
    assert transcript(tmp_path / "clip.mp4") == "deutsch"
    (tmp_path / "clip.fr.srt").write_text(f"{cue}français\n")
    with pytest.raises(ClipError, match=r"clip\.mp4 .*de, fr.*clip\.srt"):
        transcript(tmp_path / "clip.mp4")
    (tmp_path / "clip.en.srt").write_text(f"{cue}english\n")
    assert transcript(tmp_path / "clip.mp4") == "english"
    (tmp_path / "clip.srt").write_text(f"{cue}of no language\n")
    assert transcript(tmp_path / "clip.mp4") == "of no language"


def test_the_transcript_of_another_clip_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "clip.en.mp4").touch()
    (tmp_path / "clip.en.srt").write_text("00:00:00.200 --> 00:00:01.200\nof clip.en\n")
    assert transcript(tmp_path / "clip.mp4") == ""
    assert transcript(tmp_path / "clip.en.mp4") == "of clip.en"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("I don&#39;t like it &amp; it&nbsp;was &gt;&gt; awful", "I don't like it & it was >> awful"),
        ("5 &lt; 7 &#x2013; caf&eacute;", "5 < 7 \u2013 caf\u00e9"),
        ("it\x92s \x93fine\x94 \x96 isn\u2019t it\x85", "it\u2019s \u201cfine\u201d \u2013 isn\u2019t it\u2026"),
        ("<c.yellow>hello</c><00:00:00.500><c> world</c>", "hello world"),
        ("&lt;i&gt; stays", "<i> stays"),
    ],
)
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_entities_and_control_characters_are_read_as_what_they_mean(
    tmp_path: Path, written: str, read: str, suffix: str
) -> None:
    (tmp_path / f"clip{suffix}").write_text(f"00:00:00.200 --> 00:00:01.200\n{written}\n")
    assert transcript(tmp_path / "clip.mp4") == read


ROLLING = {
    "two lines": [
        (0, 1000, "we saw it"),
        (1000, 1010, "we saw it"),
        (1010, 2000, "we saw it\nand left"),
        (2000, 2010, "and left"),
    ],
    "three lines": [(0, 900, "a b\nc d\ne f"), (900, 1800, "c d\ne f\ng h"), (1800, 2700, "e f\ng h\ni j")],
    "a growing line": [
        (0, 500, "I must"),
        (500, 1000, "I must say"),
        (1000, 1500, "I must say that"),
        (1500, 2000, "it was"),
    ],
    "overlapping": [(0, 1500, "one two"), (1200, 2500, "one two\nthree"), (2400, 3000, "three\nfour")],
}
WORDS = {
    "two lines": "we saw it and left",
    "three lines": "a b c d e f g h i j",
    "a growing line": "I must say that it was",
    "overlapping": "one two three four",
}


def captions(cues: list[tuple[int, int, str]], vtt: bool) -> str:
    def time(ms: int) -> str:
        return f"00:00:{ms // 1000:02}{'.' if vtt else ','}{ms % 1000:03}"

    parts = [f"{time(begin)} --> {time(end)} align:start\n{text}\n" for begin, end, text in cues]
    return "WEBVTT\nKind: captions\n\nNOTE none of this\n\n" + "\n".join(parts) if vtt else "\n".join(parts)


@pytest.mark.parametrize("kind", ROLLING)
@pytest.mark.parametrize("vtt", [True, False])
def test_captions_that_roll_give_each_word_once(tmp_path: Path, kind: str, vtt: bool) -> None:
    (tmp_path / f"clip.{'vtt' if vtt else 'srt'}").write_text(captions(ROLLING[kind], vtt))
    assert transcript(tmp_path / "clip.mp4") == WORDS[kind]


@pytest.mark.parametrize(
    "cues",
    [
        [(0, 1000, "no"), (1000, 2000, "no"), (2000, 3000, "never")],
        [(0, 1000, "no"), (1000, 2000, "no way"), (2000, 3000, "never")],
        [(0, 1000, "he said"), (5000, 6000, "he said\nit again")],
    ],
)
def test_what_was_said_twice_stays(tmp_path: Path, cues: list[tuple[int, int, str]]) -> None:
    (tmp_path / "clip.srt").write_text(captions(cues, vtt=False))
    assert transcript(tmp_path / "clip.mp4") == " ".join(" ".join(text.split()) for *_, text in cues)


def test_a_vtt_has_times_without_hours_and_text_up_to_an_empty_line(tmp_path: Path) -> None:
    content = (
        "WEBVTT - title\n\nSTYLE\n::cue { color: red }\n\nintro\n00:01.000 --> 00:02.000 line:0\n"
        "<v Anna>hello\nthere\n\nNOTE\nnot this\n"
    )
    (tmp_path / "clip.vtt").write_text(content)
    assert transcript(tmp_path / "clip.mp4") == "hello there"
    assert transcript(tmp_path / "clip.mp4", 1.0, 2.0) == "hello there"
    (tmp_path / "clip.vtt").write_text("WEBVTT\n")
    assert transcript(tmp_path / "clip.mp4") == ""


SEGMENTS = [{"start": 0.0, "end": 1.0, "text": " I don't"}, {"start": 2.0, "end": 3.0, "text": " know it."}]
TIMED_WORDS = [
    {"word": " I", "start": 0.0, "end": 0.2},
    {"word": " don", "start": 0.2, "end": 0.5},
    {"word": "'t", "start": 0.5, "end": 0.6},
    {"word": " know", "start": 2.0, "end": 2.4},
]


@pytest.mark.parametrize(
    ("content", "whole", "second"),
    [
        ({"text": "I don't know it.", "segments": SEGMENTS, "language": "en"}, "I don't know it.", "know it."),
        ({"segments": [{"start": 0, "end": 3, "text": "?", "words": TIMED_WORDS}]}, "I don't know", "know"),
        (
            {"transcription": [{"offsets": {"from": 2000, "to": 3000}, "text": " know it."}], "model": {}},
            "know it.",
            "know it.",
        ),
    ],
)
def test_the_json_of_whisper_has_words_with_times(
    tmp_path: Path, content: dict[str, object], whole: str, second: str
) -> None:
    (tmp_path / "clip.json").write_text(json.dumps(content))
    assert transcript(tmp_path / "clip.mp4") == whole
    assert transcript(tmp_path / "clip.mp4", 2.0, 4.0) == second


def test_another_json_is_ignored_and_a_damaged_one_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text('{"title": "a film"}')
    assert transcript(tmp_path / "clip.mp4") == ""
    (tmp_path / "clip.txt").write_text("spoken words")
    assert transcript(tmp_path / "clip.mp4") == "spoken words"
    for content in ("{", '{"segments": [{"start": 2, "end": 1, "text": "x"}]}', '{"segments": [{"text": "x"}]}'):
        (tmp_path / "clip.json").write_text(content)
        with pytest.raises(ClipError, match=r"clip\.json"):
            transcript(tmp_path / "clip.mp4")


ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\nFormat: Name, Fontname, Fontsize\r\n"
    b"Style: Default,Arial,16\r\n\r\n[Events]\r\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, "
    b"Effect, Text\r\n"
)


def with_track(source: Path, target: Path, cues: list[tuple[int, int, str]]) -> Path:
    """Copy a clip and add a text track: subrip in mkv, and 3GPP text, which has lengths before its texts, in mp4."""
    mov = target.suffix != ".mkv"
    srt = target.with_suffix(".tmp")
    srt.write_text(captions(cues, vtt=False))
    with av.open(str(source)) as read, av.open(str(srt), format="srt") as texts, av.open(str(target), "w") as written:
        outs: dict[int, Any] = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
        track: Any = written.add_stream("mov_text") if mov else written.add_stream_from_template(texts.streams[0])
        if mov:
            track.codec_context.subtitle_header = ASS_HEADER
        packets = [(packet, outs[packet.stream.index]) for packet in read.demux() if packet.dts is not None]
        for packet in texts.demux():
            if packet.size:
                content = bytes(packet)
                moved = av.Packet(len(content).to_bytes(2, "big") + content if mov else content)
                moved.pts = moved.dts = packet.pts
                moved.duration, moved.time_base = packet.duration, packet.time_base
                packets.append((moved, track))
        for packet, out in sorted(packets, key=lambda pair: (pair[0].dts or 0) * pair[0].time_base):
            packet.stream = out
            written.mux(packet)
    srt.unlink()
    return target


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.mov"])
def test_a_track_inside_the_file_is_read_where_no_file_is_next_to_it(tmp_path: Path, film: Path, name: str) -> None:
    path = with_track(film, tmp_path / name, [(200, 900, "don&#39;t\nlook"), (1000, 1400, "{\\an8}now")])
    assert contents(path).subtitles
    assert not contents(film).subtitles
    assert transcript(path) == "don't look now"
    assert transcript(path, 0.0, 0.95) == "don't look"
    assert transcript(path, inside=False) == ""
    (tmp_path / "clip.srt").write_text("00:00:00.200 --> 00:00:01.200\nbeside\n")
    assert transcript(path) == "beside"
