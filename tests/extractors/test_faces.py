"""One face of several is read over a clip: the one that speaks, also if they change places or one is a picture."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from qamoe.data.synthetic import face, video, voice
from qamoe.data.synthetic.face import Expression, Portrait
from qamoe.extractors.landmarks import COLUMNS, SMALLEST, Landmarks
from qamoe.media.decode import ClipError, reading

pytestmark = pytest.mark.integration  # mediapipe starts ldconfig

FRAMES = 24
REST = Expression(smile=0, brow=0, frown=0, squint=0, opening=0.05)
SPEAKER, OTHER = (Portrait(face.invent(np.random.default_rng(seed))) for seed in (1, 4))


def loudness() -> np.ndarray:
    """Return the loudness of each frame (FRAMES,), 0 to 1: syllables of different length."""
    return np.repeat(np.random.default_rng(7).permutation(np.linspace(0, 1, FRAMES // 2)), 2)


def wave() -> np.ndarray:
    time = np.arange(FRAMES * video.SAMPLES_PER_FRAME) / voice.RATE
    loud = np.repeat(loudness(), video.SAMPLES_PER_FRAME)
    return np.asarray(loud * np.sin(2 * np.pi * 180 * time), np.float32)


def talk(person: Portrait, opening: np.ndarray) -> list[np.ndarray]:
    return [person.draw(replace(REST, opening=0.6 * share)) for share in opening]


def speaking() -> list[np.ndarray]:
    return talk(SPEAKER, loudness())


def chewing() -> list[np.ndarray]:
    return talk(OTHER, np.random.default_rng(3).permutation(loudness()))


def framed(image: np.ndarray, scale: float = 2 / 3) -> np.ndarray:
    """Return the image smaller, on a grey wall of the same size."""
    import cv2

    height, width = (round(scale * side) for side in image.shape[:2])
    wall = np.full_like(image, 90)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    wall[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return wall


def write(path: Path, frames: Sequence[np.ndarray], codec: str = "libx264", sound: bool = True) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=video.FRAME_RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.thread_count = "yuvj420p" if codec == "mjpeg" else "yuv420p", 1
        stream.bit_rate = 4_000_000
        coding = {".mkv": "pcm_s16le", ".mov": "pcm_s16le", ".avi": "libmp3lame", ".webm": "libopus"}
        rate = 48_000 if path.suffix == ".webm" else voice.RATE
        audio: Any = container.add_stream(coding.get(path.suffix, "aac"), rate=rate, layout="mono") if sound else None
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
        if audio is None:
            return path
        spoken = av.AudioFrame.from_ndarray(
            (wave() * 20_000).astype(np.int16).reshape(1, -1), format="s16", layout="mono"
        )
        spoken.sample_rate = voice.RATE
        container.mux(audio.encode(spoken))
        container.mux(audio.encode(None))
    return path


def extract(clip: Path) -> tuple[np.ndarray, str]:
    """Return the side of the face in each frame (T,), -1 left, 1 right, 0 not seen, and the notes."""
    with reading() as notes:
        frames = Landmarks(5).extract(clip)
    side = np.where(frames[:, -1] > 0, np.sign(frames[:, COLUMNS.index("head_x")]), 0)
    return side, "; ".join(notes)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mp4"), ("mpeg4", "a.mkv")])
def test_the_face_that_moves_with_the_sound_is_held(tmp_path: Path, left: bool, codec: str, name: str) -> None:
    pairs = [(a, b) if left else (b, a) for a, b in zip(speaking(), chewing(), strict=True)]
    side, notes = extract(write(tmp_path / name, [np.hstack(pair) for pair in pairs], codec))
    assert side.tolist() == [-1 if left else 1] * (FRAMES // 2)
    assert "2 faces" in notes


@pytest.mark.parametrize(
    ("layout", "name", "codec"),
    [
        (lambda speaker, other: np.vstack([other, speaker]), "a.webm", "libvpx"),
        (lambda speaker, other: np.hstack([other, speaker, other[:, ::-1]]), "a.avi", "mjpeg"),
        (lambda speaker, other: np.hstack([framed(speaker), other]), "a.mov", "libx264"),
    ],
    ids=["one above the other", "between two others", "smaller than the other"],
)
def test_the_one_who_speaks_is_held_in_other_arrangements(tmp_path: Path, layout: Any, name: str, codec: str) -> None:
    images = [layout(speaker, other) for speaker, other in zip(speaking(), chewing(), strict=True)]
    with reading() as notes:
        frames = Landmarks(5).extract(write(tmp_path / name, images, codec))
    opening = frames[:, COLUMNS.index("mouth_opening")]
    assert np.corrcoef(opening, loudness()[::2])[0, 1] > 0.9
    assert any("faces were seen; the one whose mouth moves with the sound" in note for note in notes)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mjpeg"), ("a.webm", "libvpx"), ("a.mov", "mpeg4")])
def test_without_sound_the_largest_face_is_held(tmp_path: Path, name: str, codec: str) -> None:
    pairs = zip(speaking(), chewing(), strict=True)
    images = [np.hstack([framed(speaker), other]) for speaker, other in pairs]
    side, notes = extract(write(tmp_path / name, images, codec, sound=False))
    assert side.tolist() == [1] * (FRAMES // 2)
    assert "2 faces were seen; the one that is largest was read" in notes


def test_a_picture_of_a_face_is_not_read(tmp_path: Path) -> None:
    poster = OTHER.draw(REST)
    side, notes = extract(write(tmp_path / "a.mp4", [np.hstack([poster, image]) for image in speaking()]))
    assert side.tolist() == [1] * (FRAMES // 2)
    assert "2 faces" in notes


def test_a_face_is_held_when_the_two_change_places(tmp_path: Path) -> None:
    pairs = [(a, b) if n < FRAMES // 2 else (b, a) for n, (a, b) in enumerate(zip(speaking(), chewing(), strict=True))]
    side, _ = extract(write(tmp_path / "a.mp4", [np.hstack(pair) for pair in pairs]))
    assert side.tolist() == [-1] * (FRAMES // 4) + [1] * (FRAMES // 4)


def test_a_second_person_who_enters_late_does_not_take_over(tmp_path: Path) -> None:
    wall = np.full_like(OTHER.draw(REST), 90)
    late = [wall] * (FRAMES // 2) + chewing()[FRAMES // 2 :]
    side, notes = extract(write(tmp_path / "a.mp4", [np.hstack(pair) for pair in zip(late, speaking(), strict=True)]))
    assert side.tolist() == [1] * (FRAMES // 2)
    assert "2 faces" in notes


def test_the_share_of_frames_without_a_face_is_told(tmp_path: Path) -> None:
    image = SPEAKER.draw(REST)
    side, notes = extract(write(tmp_path / "a.mp4", [image] * 2 + [np.full_like(image, 90)] * (FRAMES - 2)))
    assert np.flatnonzero(side).size <= 1
    assert f"11 of {FRAMES // 2} frames (92 %)" in notes


@pytest.mark.parametrize(
    ("seen", "name", "codec"),
    [
        ([False] * 12 + [True] * 12, "a.webm", "libvpx"),
        ([True] * 8 + [False] * 12 + [True] * 4, "a.avi", "mjpeg"),
        ([True, True, False, False] * 6, "a.mov", "mpeg4"),
    ],
    ids=["comes late", "leaves and comes back", "comes and goes"],
)
def test_frames_without_the_face_are_missing_wherever_they_are(
    tmp_path: Path, seen: list[bool], name: str, codec: str
) -> None:
    images = [image if there else np.full_like(image, 90) for image, there in zip(speaking(), seen, strict=True)]
    side, notes = extract(write(tmp_path / name, images, codec))
    assert (side != 0).tolist() == seen[::2]
    assert "6 of 12 frames (50 %) without a face" in notes


def test_a_person_who_leaves_is_not_replaced_by_the_other(tmp_path: Path) -> None:
    images = [np.hstack(pair) for pair in zip(speaking(), chewing(), strict=True)]
    for image in images[FRAMES // 2 :]:
        image[:, : image.shape[1] // 2] = 90
    side, notes = extract(write(tmp_path / "a.mkv", images, "mpeg4"))
    assert side.tolist() == [-1] * (FRAMES // 4) + [0] * (FRAMES // 4)
    assert "6 of 12 frames (50 %) without that face" in notes


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx"), ("a.avi", "mjpeg"), ("a.mov", "mpeg4")])
def test_frames_in_which_the_face_is_too_small_are_missing(tmp_path: Path, name: str, codec: str) -> None:
    import cv2

    images = [framed(image, 0.3) if n >= FRAMES // 2 else image for n, image in enumerate(speaking())]
    shrunk = [cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA) for image in images]
    with reading() as notes:
        frames = Landmarks(5).extract(write(tmp_path / name, shrunk, codec))
    assert frames[:, -1].tolist() == [1] * (FRAMES // 4) + [0] * (FRAMES // 4)
    assert any("too small" in note and f"at least {SMALLEST}" in note for note in notes)


def test_a_face_too_small_to_be_read_is_told(tmp_path: Path) -> None:
    import cv2

    small = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in speaking()]
    with pytest.raises(ClipError, match=rf"too small.* at least {SMALLEST} "):
        extract(write(tmp_path / "a.mp4", small))
