"""Facial features of OpenFace (Baltrusaitis et al., 2018, doi:10.1109/FG.2018.00019), read from its csv files.

OpenFace itself is not run. Its FeatureExtraction (2.0 to 2.2, with -aus -pose -gaze) writes NAME.csv for NAME.mp4;
the file must be next to the clip. Its header has blanks before the names. `timestamp` is in seconds from the file's
beginning; `success` is 0 where no face was tracked.
"""

import csv
import math
from pathlib import Path

import numpy as np

from qamoe.media.decode import LONGEST_GAP_S, ClipError, note

NAME = "openface"
VERSION = "2"
_UNITS = ("01", "02", "04", "05", "06", "07", "09", "10", "12", "14", "15", "17", "20", "23", "25", "26", "45")
COLUMNS = (
    *("gaze_angle_x", "gaze_angle_y"),  # radians
    *("pose_Tx", "pose_Ty", "pose_Tz"),  # millimetres
    *("pose_Rx", "pose_Ry", "pose_Rz"),  # radians
    *(f"AU{unit}_r" for unit in _UNITS),  # intensity, 0 to 5
    *(f"AU{unit}_c" for unit in (*_UNITS[:-1], "28", "45")),  # presence, 0 or 1
    "face_found",
)
_REQUIRED = (*COLUMNS[:-1], "timestamp", "success")
_SAME_TIME_S = 1e-4


class OpenFace:
    """Read 44 columns at `rate` Hz: gaze, head pose, action units, and whether a face was found.

    Frame k is the row at time start + k / rate, chosen as video frames are. A row without success, or with a value that
    is not finite, is a missing frame: NaN, and face_found is 0. If a time has several faces, the first in the file
    counts.
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
        """Do nothing; this extractor loads no model."""

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Read a span of the csv next to a file -> (T, 44) float32.

        Notes in how many frames there is no face. Raises ClipError if the csv is missing or damaged, or has no face in
        the span.
        """
        times, rows = _table(self.reads(path))
        step_s = float(np.median(np.diff(times))) if len(times) > 1 else 1 / self.rate
        last_s = times[-1] + step_s if end_s is None else min(end_s, times[-1] + step_s)
        count = math.ceil((last_s - start_s) * self.rate - _SAME_TIME_S * self.rate)
        if count < 1:
            raise ClipError(f"{self.reads(path).name} has no row after {start_s:g} s")
        frame_times = start_s + np.arange(count) / self.rate
        shown = np.searchsorted(times, frame_times + _SAME_TIME_S, side="right") - 1
        frames = rows[shown.clip(min=0)]
        absent = int((frames[:, -1] == 0).sum())
        if absent == count:
            raise ClipError("no face in any video frame")
        if absent:
            note(f"{absent} of {count} frames ({100 * absent / count:.0f} %) without a face")
        return frames


def _table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return times (N,) in seconds, ascending, and rows (N, 44) float32, NaN and a last 0 where no face was tracked."""
    if not path.is_file():
        raise ClipError(f"no OpenFace file {path.name} next to the clip")
    times: list[float] = []
    rows: list[np.ndarray] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as lines:
        try:
            reader = csv.reader(lines, skipinitialspace=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in _REQUIRED if name not in header]
            if missing:
                raise ClipError(f"{path.name} lacks OpenFace's column {missing[0]}")
            indices = [header.index(name) for name in _REQUIRED]
            for line in filter(None, reader):
                *values, time, success = (float(line[index]) for index in indices)
                if times and time <= times[-1] + _SAME_TIME_S:
                    if time < times[-1] - _SAME_TIME_S:
                        raise ClipError(
                            f"{path.name}, line {reader.line_num}: timestamp {time:g} s is before that of the row above"
                        )
                    continue
                if time - (times[-1] if times else 0.0) > LONGEST_GAP_S:
                    raise ClipError(
                        f"{path.name}, line {reader.line_num}: more than {LONGEST_GAP_S:g} s without a row before it"
                    )
                row = np.array([*values, 1.0], np.float64)
                tracked = success == 1 and bool((np.abs(row) < np.finfo(np.float32).max).all())
                times.append(time)
                rows.append(np.array(row if tracked else [*[np.nan] * len(values), 0.0], np.float32))
        except (ValueError, IndexError, csv.Error):
            raise ClipError(f"{path.name}, line {reader.line_num}: not a row of OpenFace's numbers") from None
    if not rows or not np.isfinite(times).all():
        raise ClipError(f"{path.name} holds no rows")
    return np.array(times), np.stack(rows)
