"""OpenFace's csv next to a clip: frames follow its times, a lost face is missing, a damaged file is one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.data.normalise import Columns, clean
from qamoe.extractors.openface import COLUMNS, OpenFace
from qamoe.media.decode import ClipError, reading

HEADER = ["frame", "face_id", "timestamp", "confidence", "success", *COLUMNS[:-1], "x_0"]


def write(folder: Path, rows: list[tuple[float, int, float]], header: list[str] = HEADER) -> Path:
    """Write a csv of (time, success, value), with the value in every other column; return the clip's path."""
    lines = [", ".join(header)]
    for number, (time, success, value) in enumerate(rows):
        cells: dict[str, Any] = {"frame": number, "timestamp": time, "success": success}
        lines.append(", ".join(str(cells.get(name, value)) for name in header))
    (folder / "clip.csv").write_text("\n".join([*lines, ""]))
    return folder / "clip.mp4"


def steps(count: int) -> list[tuple[float, int, float]]:
    return [(k / 10, 1, float(k)) for k in range(count)]


def values(frames: np.ndarray) -> list[float]:
    return frames[:, 0].tolist()


def test_frames_are_the_rows_at_each_time(tmp_path: Path) -> None:
    path = write(tmp_path, steps(20))
    frames = OpenFace(5).extract(path)
    assert frames.shape == (10, len(COLUMNS))
    assert frames.dtype == np.float32
    assert values(frames) == list(range(0, 20, 2))
    assert values(OpenFace(20).extract(path)) == [k // 2 for k in range(40)]
    assert values(OpenFace(5).extract(path, 0.4, 1.2)) == [4, 6, 8, 10]
    assert values(OpenFace(5).extract(path, 1.6, 9.0)) == [16, 18]


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    header = [HEADER[2], HEADER[4], *reversed(COLUMNS[:-1])]
    (tmp_path / "clip.csv").write_text(
        ",".join(header) + "\n" + ",".join(["0.0", "1", *(str(COLUMNS.index(name)) for name in header[2:])]) + "\n"
    )
    (frame,) = OpenFace(5).extract(tmp_path / "clip.mp4", 0.0, 0.2)
    assert frame.tolist() == [*range(len(COLUMNS) - 1), 1.0]


def test_a_lost_face_and_a_nan_are_missing_frames(tmp_path: Path) -> None:
    rows = [(0.0, 1, 1.0), (0.2, 0, 2.0), (0.4, 1, float("nan")), (0.6, 1, 4.0)]
    with reading() as notes:
        frames = OpenFace(5).extract(write(tmp_path, rows))
    assert frames[:, -1].tolist() == [1, 0, 0, 1]
    assert np.isnan(frames[1:3, :-1]).all()
    assert frames[[0, 3], 0].tolist() == [1, 4]
    assert notes == ["2 of 4 frames (50 %) without a face"]
    columns = Columns(np.arange(43), np.full(43, 3.0), np.ones(43), 0)
    assert not clean(frames, columns)[1:3].any(), "as a missing frame in training"


def test_of_several_faces_the_first_counts(tmp_path: Path) -> None:
    rows = [(0.0, 1, 1.0), (0.0, 1, 9.0), (0.2, 1, 2.0), (0.2, 1, 9.0)]
    assert values(OpenFace(5).extract(write(tmp_path, rows))) == [1, 2]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, r"clip\.csv"),
        ("", r"clip\.csv .*gaze_angle_x"),
        (", ".join(HEADER) + "\n", r"clip\.csv .*no rows"),
        (", ".join(HEADER) + "\n1, 0, 0.0\n", r"clip\.csv, line 2\b"),
        (", ".join(HEADER) + "\n" + ", ".join(["x"] * len(HEADER)) + "\n", r"clip\.csv, line 2\b"),
    ],
)
def test_a_damaged_file_is_a_problem(tmp_path: Path, content: str | None, named: str) -> None:
    if content is not None:
        (tmp_path / "clip.csv").write_text(content)
    with pytest.raises(ClipError, match=named):
        OpenFace(5).extract(tmp_path / "clip.mp4")


def test_times_that_go_backwards_and_a_span_without_a_face_are_problems(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"clip\.csv, line 3\b.*\b0 s"):
        OpenFace(5).extract(write(tmp_path, [(0.2, 1, 1.0), (0.0, 1, 2.0)]))
    path = write(tmp_path, [(0.0, 1, 1.0), (0.2, 0, 2.0), (0.4, 0, 2.0)])
    with pytest.raises(ClipError, match="no face"):
        OpenFace(5).extract(path, 0.2)
    with pytest.raises(ClipError, match=r"clip\.csv .*\b3 s"):
        OpenFace(5).extract(path, 3.0)


def test_a_damaged_time_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"clip\.csv, line 3\b.*\b3600 s"):
        OpenFace(5).extract(write(tmp_path, [(0.0, 1, 1.0), (2e9, 1, 2.0)]))


def test_it_reads_the_csv_so_a_new_csv_makes_new_parts(tmp_path: Path) -> None:
    assert OpenFace(5).reads(tmp_path / "clip.mp4") == tmp_path / "clip.csv"
