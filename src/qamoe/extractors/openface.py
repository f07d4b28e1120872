"""Pictures as OpenFace's measurements (Baltrusaitis et al., 2018, doi:10.1109/FG.2018.00019), read from its csv files.

OpenFace itself is not run: its FeatureExtraction (2.0 to 2.2, with -aus -pose -gaze) writes NAME.csv for NAME.mp4,
and that file is looked for beside the clip. Its header has blanks before the names. `timestamp` is in seconds from the
file's beginning; `success` is 0 where no face was tracked.
"""

import csv
import math
from pathlib import Path

import numpy as np

from qamoe.media.decode import LONGEST_GAP_S, ClipError

NAME = "openface"
VERSION = "1"
_UNITS = ("01", "02", "04", "05", "06", "07", "09", "10", "12", "14", "15", "17", "20", "23", "25", "26", "45")
COLUMNS = (
    *("gaze_angle_x", "gaze_angle_y"),  # radians
    *("pose_Tx", "pose_Ty", "pose_Tz"),  # millimetres
    *("pose_Rx", "pose_Ry", "pose_Rz"),  # radians
    *(f"AU{unit}_r" for unit in _UNITS),  # intensity, 0 to 5
    *(f"AU{unit}_c" for unit in (*_UNITS[:-1], "28", "45")),  # presence, 0 or 1
    "face_found",
)
_NEEDED = (*COLUMNS[:-1], "timestamp", "success")
_SAME_TIME_S = 1e-4


class OpenFace:
    """44 columns at `rate` Hz: gaze, head pose, action units, and whether a face was found.

    Frame k is the row on show at start + k / rate, as pictures are chosen. A row without success, or with a value that
    is not finite, is a frame of zeros. Where a time has several faces, the first of the file counts.
    """

    name = NAME
    version = VERSION
    columns: tuple[str, ...] = COLUMNS
    made_with = ""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def reads(self, media: Path) -> Path:
        return media.with_suffix(".csv")

    def warm_up(self) -> None:
        """There is nothing to load."""

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """A span of the csv beside a file -> (T, 44) float32. Raises ClipError where there is no such csv, it is
        damaged, or it has no face in the span."""
        times, rows = _table(self.reads(path))
        step_s = float(np.median(np.diff(times))) if len(times) > 1 else 1 / self.rate
        last_s = times[-1] + step_s if end_s is None else min(end_s, times[-1] + step_s)
        count = math.ceil((last_s - start_s) * self.rate - _SAME_TIME_S * self.rate)
        if count < 1:
            raise ClipError(f"no row of {self.reads(path).name} from {start_s:g} s on")
        frame_times = start_s + np.arange(count) / self.rate
        shown = np.searchsorted(times, frame_times + _SAME_TIME_S, side="right") - 1
        frames = rows[shown.clip(min=0)]
        if not frames[:, -1].any():
            raise ClipError("no face in any picture")
        return frames


def _table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (N,) in seconds, ascending, and rows (N, 44) float32, zeros where there is no face."""
    if not path.is_file():
        raise ClipError(f"no OpenFace file {path.name} beside the clip")
    times: list[float] = []
    rows: list[np.ndarray] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as lines:
        try:
            reader = csv.reader(lines, skipinitialspace=True)
            header = [name.strip() for name in next(reader, [])]
            lacking = [name for name in _NEEDED if name not in header]
            if lacking:
                raise ClipError(f"{path.name} lacks OpenFace's column {lacking[0]}")
            places = [header.index(name) for name in _NEEDED]
            for line in filter(None, reader):
                *values, time, success = (float(line[place]) for place in places)
                if times and time <= times[-1] + _SAME_TIME_S:
                    if time < times[-1] - _SAME_TIME_S:
                        raise ClipError(f"{path.name}, line {reader.line_num}: its time goes backwards")
                    continue
                if time - (times[-1] if times else 0.0) > LONGEST_GAP_S:
                    raise ClipError(f"{path.name}, line {reader.line_num}: nothing before it for {LONGEST_GAP_S:g} s")
                row = np.array([*values, 1.0], np.float64)
                tracked = success == 1 and bool((np.abs(row) < np.finfo(np.float32).max).all())
                times.append(time)
                rows.append((row if tracked else np.zeros_like(row)).astype(np.float32))
        except (ValueError, IndexError, csv.Error):
            raise ClipError(f"{path.name}, line {reader.line_num}: no row of OpenFace's numbers") from None
    if not rows or not np.isfinite(times).all():
        raise ClipError(f"{path.name} holds no rows of OpenFace's")
    return np.array(times), np.stack(rows)
