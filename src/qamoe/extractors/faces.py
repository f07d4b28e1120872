"""Follow faces from frame to frame, and find the one that speaks.

A face is followed by where it is and by how it looks. Who speaks is decided by the lips: they move just before the
sound changes (measured on GRID, docs/notebook/f01.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qamoe.media.decode import ClipError, read_audio

WATCHED_HZ = 25.0  # frames per second that show lips well enough
WATCHED_S = 10.0  # this much of a clip decides who speaks
# Mean difference of two looks, 0 to 255. Of one person: at most 14 on GRID, 7 drawn; of two: from 25 and 11.
_UNLIKE, _UNLIKE_IN_PLACE = 25.0, 60.0
_OVERLAP = 10.0  # a whole overlap of boxes outweighs this difference of looks
_IN_PLACE = 0.2
_STILL = 0.25  # a mouth that moves less than this share of the one that moves most belongs to a picture
_SURE = 3.0  # standard deviations: so much evidence is not chance, however little the mouth moves
_LEAST_CHANGES = 8
_SOUND_S = 0.12
_RATE = 16_000  # Hz


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image: features (72,), box (left, top, right, bottom) in pixels, lips and corners.

    lips: their height in units of the distance between the outer eye corners. corners: (3, 2), these two and the chin.
    """

    row: np.ndarray
    box: np.ndarray
    lips: float
    corners: np.ndarray

    @property
    def width(self) -> float:
        return float(self.box[2] - self.box[0])


Track = list[Face | None]  # one person: the face in each frame, None where it is not seen


def follow(frames: Sequence[tuple[Sequence[Face], Sequence[np.ndarray]]]) -> list[Track]:
    """Return one track per person, of the faces that were found in each frame, with the look (8, 8, 3) of each."""
    from scipy.optimize import linear_sum_assignment  # a late import: most clips have one face

    tracks: list[Track] = []
    last: list[tuple[np.ndarray, np.ndarray]] = []  # box and look of each track
    for number, (found, looks) in enumerate(frames):
        for track in tracks:
            track.append(None)
        scores = np.array([[_match(*known, *face) for face in zip(found, looks, strict=True)] for known in last])
        scores = scores.reshape(len(last), len(found))
        joined = {face: track for track, face in zip(*linear_sum_assignment(-scores), strict=True)}
        for index, face in enumerate(found):
            track_number = joined.get(index)
            if track_number is None or scores[track_number, index] <= _NO_MATCH:
                tracks.append([None] * number + [face])
                last.append((face.box, looks[index]))
                continue
            tracks[track_number][-1] = face
            look = last[track_number][1]
            last[track_number] = (face.box, look + 0.1 * (looks[index] - look))
    return tracks


_NO_MATCH = -1e6


def _match(box: np.ndarray, look: np.ndarray, face: Face, face_look: np.ndarray) -> float:
    """Return how well a face continues a track: the overlap of their boxes, less the difference of their looks."""
    sides = np.minimum(box[2:], face.box[2:]) - np.maximum(box[:2], face.box[:2])
    shared = float(np.prod(sides.clip(0)))
    overlap = shared / (float(np.prod(box[2:] - box[:2]) + np.prod(face.box[2:] - face.box[:2])) - shared + 1e-9)
    unlike = float(np.abs(face_look - look).mean())
    if unlike > (_UNLIKE_IN_PLACE if overlap > _IN_PLACE else _UNLIKE):
        return _NO_MATCH
    return overlap - unlike / _OVERLAP


def choose(tracks: Sequence[Track], loudness: np.ndarray | None) -> tuple[int, bool]:
    """Return which track to read, and whether its lips move with the sound; else it is the largest one.

    `tracks` have frames that differ from the one before, and `loudness` (T,) that of the sound after each of them; NaN
    and None where it is not known. A face whose lips stay still is chosen only if all do, or if it speaks for sure.
    """
    moves, evidence = [], []
    for track in tracks:
        lips = np.array([np.nan if face is None else face.lips for face in track])
        change = np.diff(lips, prepend=np.nan)
        moves.append(float(np.nanstd(change)) if np.isfinite(change).any() else 0.0)
        evidence.append(0.0 if loudness is None else _evidence(change, loudness))
    moving = [number for number, move in enumerate(moves) if move >= _STILL * max(moves) or evidence[number] > _SURE]
    best = max(moving, key=lambda number: evidence[number])
    if evidence[best] > 0:
        return best, True
    return max(moving, key=lambda number: size(tracks[number])), False


def size(track: Track) -> float:
    """Return the area of a face, summed over the frames."""
    return float(sum(np.prod(face.box[2:] - face.box[:2]) for face in track if face is not None))


def _evidence(change: np.ndarray, loudness: np.ndarray) -> float:
    """Return Fisher's z of the correlation of the lips' movement with the loudness, in standard deviations.

    So a face that is seen for a short time does not win by chance.
    """
    known = np.isfinite(change) & np.isfinite(loudness)
    x, y = change[known], loudness[known]
    if len(x) < _LEAST_CHANGES or x.std() < 1e-9 or y.std() < 1e-9:
        return 0.0
    return float(np.arctanh(np.clip(np.corrcoef(x, y)[0, 1], -0.999, 0.999)) * np.sqrt(len(x) - 3))


def loudness_after(path: Path, start_s: float, end_s: float | None, times: np.ndarray) -> np.ndarray | None:
    """Return the loudness of the _SOUND_S after each time (T,), in seconds after start_s; None without audio."""
    try:
        wave = read_audio(path, _RATE, start_s, end_s)
    except ClipError:
        return None
    power = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    begin = np.rint(times * _RATE).astype(int).clip(0, len(wave))
    end = np.rint((times + _SOUND_S) * _RATE).astype(int).clip(0, len(wave))
    with np.errstate(invalid="ignore"):  # NaN after the end of the audio
        return np.asarray(((power[end] - power[begin]).clip(0) / (end - begin)) ** 0.15)  # about as loud as it is heard
