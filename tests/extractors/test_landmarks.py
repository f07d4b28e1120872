"""The face extractor: its columns follow a drawn face, frames without one are missing, and it stays offline."""

import ctypes
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from qamoe.data.normalise import Columns, clean
from qamoe.data.synthetic import face, video
from qamoe.data.synthetic.face import Expression, Portrait
from qamoe.errors import UserError
from qamoe.extractors import landmarks
from qamoe.extractors.landmarks import COLUMNS, Landmarks
from qamoe.media.decode import ClipError, NoStream, reading
from tests.fixtures.research_data import shared_data

real_clips = shared_data() / "clips" / "cremad"
needs_real_clips = pytest.mark.skipif(not real_clips.is_dir(), reason=f"{real_clips} does not exist")
pytestmark = pytest.mark.integration  # mediapipe starts ldconfig

STILL = Expression(smile=0, brow=0, frown=0, squint=0, opening=0)


def portrait(seed: int = 1) -> Portrait:
    return Portrait(face.invent(np.random.default_rng(seed)))


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    time = np.arange(len(frames) * video.SAMPLES_PER_FRAME) / 22_050
    video.write(path, np.sin(2 * np.pi * 220 * time).astype(np.float32) / 4, frames)
    return path


def column(row: np.ndarray, name: str) -> float:
    return float(row[COLUMNS.index(name)])


def test_the_pinned_version_is_installed() -> None:
    assert version("mediapipe") == landmarks.MEDIAPIPE


def test_column_names_are_unique_and_include_all_blendshapes_of_mediapipe() -> None:
    assert len(set(COLUMNS)) == len(COLUMNS) == 72
    assert COLUMNS[-1] == "face_found"
    assert len(landmarks.BLENDSHAPES) == 51


def test_columns_follow_the_face() -> None:
    person, extractor = portrait(2), Landmarks(5)

    def described(**moves: float) -> np.ndarray:
        return extractor.describe(person.draw(Expression(**{**vars(STILL), **moves})))

    assert (
        column(described(smile=1), "mouth_corner_left_rise")
        > column(described(smile=-1), "mouth_corner_left_rise") + 0.05
    )
    assert column(described(smile=1), "mouthSmileLeft") > column(described(smile=-1), "mouthSmileLeft") + 0.2
    assert column(described(opening=0.8), "jawOpen") > column(described(), "jawOpen") + 0.1
    assert column(described(opening=0.8), "mouth_opening") > column(described(), "mouth_opening") + 0.1
    assert (
        column(described(brow=1), "brow_left_middle_rise") > column(described(brow=-1), "brow_left_middle_rise") + 0.05
    )
    assert column(described(turn=12), "head_roll") > column(described(turn=-12), "head_roll") + 0.3


def test_distances_do_not_depend_on_the_position_or_tilt_of_the_head() -> None:
    person, extractor = portrait(3), Landmarks(5)
    first = COLUMNS.index(landmarks.RISES[0][0])
    still = extractor.describe(person.draw(STILL))[first:-1]
    moved = extractor.describe(person.draw(Expression(**{**vars(STILL), "turn": 8, "right": 10, "down": -6})))
    assert np.abs(moved[first:-1] - still).max() < 0.06


@pytest.mark.slow
def test_every_invented_face_is_found() -> None:
    extractor = Landmarks(5)
    portraits = [portrait(seed) for seed in range(20)]
    moves = (STILL, Expression(0.9, 0.5, -0.4, 0.5, 0.6), Expression(-0.9, -0.6, 0.9, 0.5, 0.2, blink=1))
    rows = np.stack([extractor.describe(person.draw(move)) for person in portraits for move in moves])
    assert rows[:, -1].all()


def test_repeated_extraction_gives_the_same_bytes(tmp_path: Path) -> None:
    person = portrait()
    clip = write_video(tmp_path / "clip.mp4", [person.draw(Expression(k / 10, 0, 0, 0, 0.3)) for k in range(10)])
    once = Landmarks(5).extract(clip)
    assert once.shape == (5, 72)
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    assert Landmarks(5).extract(clip).tobytes() == once.tobytes()
    # With tracking from image to image, a frame would depend on where the span begins.
    assert Landmarks(5).extract(clip, 0.4).tobytes() == once[2:].tobytes()


def test_frames_without_a_face_are_missing(tmp_path: Path) -> None:
    person, wall = portrait(), np.full((240, 240, 3), 90, np.uint8)
    clip = write_video(tmp_path / "clip.mp4", [person.draw(STILL)] * 6 + [wall] * 4)
    with reading() as notes:
        frames = Landmarks(10).extract(clip)
    assert frames[:, -1].tolist() == [1] * 6 + [0] * 4
    assert np.isnan(frames[6:, :-1]).all()
    # In training, a missing frame is zeros after standardisation, whatever the columns' means are.
    columns = Columns(np.arange(71), np.full(71, 3.0), np.ones(71), 0)
    assert not clean(frames, columns)[6:].any()
    (note,) = notes
    assert "4 of 10 frames (40 %)" in note
    with pytest.raises(ClipError, match="no face"):
        Landmarks(5).extract(write_video(tmp_path / "wall.mp4", [wall] * 10))


def test_a_file_without_video_is_not_a_problem(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\1" * 8000)
    with pytest.raises(NoStream):
        Landmarks(5).extract(tmp_path / "voice.wav")


def test_another_model_is_rejected(tmp_path: Path) -> None:
    other = tmp_path / "face_landmarker.task"
    other.write_bytes(b"another model")
    with pytest.raises(UserError, match=rf"face_landmarker\.task .*{landmarks.MODEL_SHA256}"):
        Landmarks(5, model=other).describe(np.zeros((64, 64, 3), np.uint8))


def test_a_rate_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="rate is 0"):
        Landmarks(0)


# The process installs a kernel filter that kills it when it opens a socket, and then continues.
WITHOUT_SOCKETS = """
import ctypes, struct, sys

def forbid_sockets(number):
    load, equal, give = (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x80000000)
    program = b"".join(struct.pack("HBBI", *step) for step in (load, equal, give, (0x06, 0, 0, 0x7FFF0000)))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
        sys.exit(77)

forbid_sockets(int(sys.argv[1]))
"""
OPEN_ONE = "import socket\nsocket.socket()\n"
FIND_A_FACE = """
import numpy as np
from qamoe.data.synthetic.face import Expression, Portrait, invent
from qamoe.extractors.landmarks import Landmarks
row = Landmarks(5).describe(Portrait(invent(np.random.default_rng(1))).draw(Expression(0, 0, 0, 0, 0)))
print("found", row[-1])
"""
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
KILLED_BY_FILTER = -31  # SIGSYS


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in SOCKET_CALL or ctypes.sizeof(ctypes.c_void_p) != 8,
    reason="the kernel filter is written only for Linux on x86_64 and aarch64",
)
def test_the_landmarker_opens_no_socket() -> None:
    def run_without_sockets(work: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_SOCKETS + work, str(SOCKET_CALL[platform.machine()])]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    control = run_without_sockets(OPEN_ONE)
    if control.returncode == 77:
        pytest.skip("this kernel does not accept the filter")
    assert control.returncode == KILLED_BY_FILTER
    described = run_without_sockets(FIND_A_FACE)
    assert (described.returncode, described.stdout) == (0, "found 1.0\n"), described.stderr
    assert not described.stderr


@pytest.mark.real_data
@needs_real_clips
def test_real_faces_are_found_in_every_frame() -> None:
    for path in sorted(real_clips.glob("*.flv")):
        frames = Landmarks(5).extract(path)
        assert frames[:, -1].all()
        assert np.ptp(frames[:, COLUMNS.index("jawOpen")]) > 0.02


@pytest.mark.real_data
@needs_real_clips
def test_a_real_smile_differs_from_anger() -> None:
    happy, angry = (
        Landmarks(5).extract(real_clips / f"1001_DFA_{emotion}_XX.flv").mean(0) for emotion in ("HAP", "ANG")
    )
    assert column(happy, "mouthSmileLeft") > column(angry, "mouthSmileLeft") + 0.1
