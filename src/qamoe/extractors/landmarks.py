"""Facial expression features: MediaPipe's face landmarker (blendshapes, head pose) and a few distances.

MediaPipe is pinned to one version: later versions contact a host when a landmarker is created. The model is used
only if its SHA-256 is the one in weights/table.py.

One person is read over the whole clip. Where several are seen, all frames of a second are looked at, and the one whose
lips move with the sound is read (extractors/faces.py). A frame without that face is missing: its row is NaN, which
data/normalise.py turns into what training knows as a missing frame.
"""

import atexit
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.errors import UserError
from qamoe.extractors import faces
from qamoe.extractors.faces import Face
from qamoe.files import file_digest
from qamoe.media.decode import ClipError, note, read_frames, reading
from qamoe.weights.store import folder
from qamoe.weights.table import WEIGHTS

NAME = "landmarks"
VERSION = "3"
MEDIAPIPE = "0.10.33"
(_MODEL,) = WEIGHTS["face_landmarker"].files
MODEL_SHA256 = _MODEL.sha256
# MediaPipe's names; the first of its 52, _neutral, is left out because it measures nothing.
BLENDSHAPES = (
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthLeft",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthPucker",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "noseSneerLeft",
    "noseSneerRight",
)
POSE = ("head_pitch", "head_yaw", "head_roll", "head_x", "head_y", "head_z")  # radians; centimetres
# Distances in units of the distance between the outer eye corners, as (name, from point, to point) of the
# 478-point mesh. A rise is measured along the face's own upward axis, a width or an opening in space.
RISES = (
    ("mouth_corner_right_rise", 13, 61),
    ("mouth_corner_left_rise", 13, 291),
    ("brow_right_outer_rise", 33, 70),
    ("brow_right_middle_rise", 33, 105),
    ("brow_right_inner_rise", 133, 107),
    ("brow_left_outer_rise", 263, 300),
    ("brow_left_middle_rise", 263, 334),
    ("brow_left_inner_rise", 362, 336),
)
SPANS = (
    ("mouth_width", 61, 291),
    ("mouth_opening", 13, 14),
    ("lips_height", 0, 17),
    ("jaw_drop", 1, 152),
    ("eye_right_opening", 159, 145),
    ("eye_left_opening", 386, 374),
)
_MOST_FACES = 4  # in one frame; more than one costs nothing where there is only one
SMALLEST = 24  # pixels: the features of a face less wide have little to do with those of the same face in full size
# Outer eye corners and chin in an image of 64 x 64 pixels.
_LOOK_AT = np.array([[16, 20], [48, 20], [32, 60]], np.float32)
COLUMNS = (*BLENDSHAPES, *POSE, *(r[0] for r in RISES), *(s[0] for s in SPANS), "face_found")


def check_model(path: Path) -> None:
    """Raise UserError unless the file's SHA-256 is the pinned one."""
    digest = file_digest(path)
    if digest != MODEL_SHA256:
        raise UserError(f"{path} has the SHA-256 {digest}; the face landmarker's model must have {MODEL_SHA256}.")


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Redirect stderr to /dev/null; MediaPipe's C++ code has no switch for its start-up messages."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@cache
def _landmarker(model: Path) -> Any:
    with _quiet_stderr():
        from mediapipe import Image, ImageFormat
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model)),
            # Each image on its own: tracking would make a frame depend on those before it.
            running_mode=vision.RunningMode.IMAGE,
            num_faces=_MOST_FACES,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        landmarker = vision.FaceLandmarker.create_from_options(options)
        # MediaPipe prints its last start-up messages with the first image.
        landmarker.detect(Image(image_format=ImageFormat.SRGB, data=np.zeros((64, 64, 3), np.uint8)))
    # MediaPipe closes a landmarker through a thread pool. At interpreter exit the pool is already shut down, and
    # MediaPipe would print a traceback. The process releases everything anyway.
    atexit.register(setattr, landmarker, "_handle", None)
    return landmarker


class Landmarks:
    """Extract 72 columns per image at `rate` Hz: 51 blendshapes, head pose, 14 distances, and whether a face was found.

    `model` is another copy of face_landmarker.task; the default is that of weights/table.py.
    """

    name = NAME
    version = VERSION
    columns: tuple[str, ...] = COLUMNS
    made_with = MODEL_SHA256

    def __init__(self, rate: float, model: Path | None = None) -> None:
        if not rate > 0:
            raise ValueError(f"rate is {rate}, must be above 0 Hz")
        self.rate = rate
        self._model = model

    def reads(self, media: Path) -> Path:
        return media

    def warm_up(self) -> None:
        self.describe(np.zeros((64, 64, 3), np.uint8))

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Read a span of a file -> (T, 72) float32. A frame without the face is NaN, and face_found is 0.

        Notes how many faces were seen, and in how many frames the face is absent or too small. Raises ClipError if that
        is so in all, NoStream if the file has no video stream.
        """
        seen = [self._faces(image) for image in read_frames(path, self.rate, start_s, end_s)]
        held = [found[0] if found else None for found in seen]
        boxes = np.array([face.box for face in held if face is not None]).reshape(-1, 4)
        jumps = np.maximum(boxes[1:, :2], boxes[:-1, :2]) >= np.minimum(boxes[1:, 2:], boxes[:-1, 2:])
        which = "a"
        if jumps.any() or any(len(found) > 1 for found in seen):
            held, sentence = self._held(path, seen, start_s, end_s)
            if sentence:
                which = "that"
                note(sentence)
        frames = np.full((len(seen), len(COLUMNS)), np.nan, np.float32)
        frames[:, -1] = 0
        for row, face in zip(frames, held, strict=True):
            if face is not None and face.width >= SMALLEST:
                row[:] = face.row
        absent = held.count(None)
        if absent == len(held):
            raise ClipError("no face in any video frame")
        if absent:
            note(f"{absent} of {len(held)} frames ({100 * absent / len(held):.0f} %) without {which} face")
        small = [face.width for face in held if face is not None and face.width < SMALLEST]
        if small:
            pixels = f"{np.median(small):.0f} pixels wide in {len(small)} of {len(held)} frames"
            sentence = f"the face is too small to be read, {pixels}; at least {SMALLEST} are needed"
            if not frames[:, -1].any():
                raise ClipError(sentence)
            note(sentence)
        return frames

    def _held(
        self, path: Path, seen: list[list[Face]], start_s: float, end_s: float | None
    ) -> tuple[list[Face | None], str]:
        """Return the faces of one person, by frame, and how many people were seen; "" if it was only one.

        `seen` are the faces of each frame at `rate`. The frames between are looked at for at most WATCHED_S.
        """
        step = math.ceil(faces.WATCHED_HZ / self.rate)
        span = math.ceil(faces.WATCHED_S * self.rate)
        several = next((number for number, found in enumerate(seen) if len(found) > 1), 0)
        first = max(0, min(several, len(seen) - span))
        last = min(first + span, len(seen))
        begin_s = start_s + first / self.rate
        stop_s = end_s if last == len(seen) else start_s + last / self.rate
        between: list[tuple[list[Face], list[np.ndarray]]] = []  # faces and looks
        changes: list[int] = []  # numbers of the frames that differ from the one before
        with reading(None):  # what is left out of the file was noted when it was read first
            # Looks take time, and a clip with one face needs none: so the file is read again for them.
            images = read_frames(path, self.rate, start_s, end_s)
            known = [(found, _looks(image, found)) for found, image in zip(seen, images, strict=True)]
            shown: np.ndarray | None = None
            for number, image in enumerate(read_frames(path, self.rate * step, begin_s, stop_s)):
                if number == (last - first) * step:
                    break
                if shown is None or not np.array_equal(image, shown):
                    changes.append(number)
                    new = self._faces(image) if number % step else []
                    between.append((new, _looks(image, new)) if number % step else known[first + number // step])
                else:
                    between.append(between[-1])
                shown = image
            times = np.array(changes) / (self.rate * step)
            loudness = faces.loudness_after(path, begin_s, stop_s, times)
        tracks = faces.follow([*known[:first], *between, *known[last:]])
        tracks = [track for track in tracks if sum(face is not None for face in track) > 1] or tracks
        readable = [t for t in tracks if np.median([face.width for face in t if face is not None]) >= SMALLEST]
        candidates = readable or tracks
        chosen, speaks = faces.choose([[t[first + k] for k in changes] for t in candidates], loudness)
        track = candidates[chosen]
        rows = [*range(first), *range(first, first + len(between), step)][:last]
        rows += range(first + len(between), len(track))
        count = max(len(tracks), *(len(found) for found in seen))
        how = "whose mouth moves with the sound" if speaks else "that is largest"
        sentence = f"{count} faces were seen; the one {how} was read" if count > 1 else ""
        return [track[k] for k in rows], sentence

    def describe(self, image: np.ndarray) -> np.ndarray:
        """Describe the first face of an image (H, W, 3) uint8 RGB -> (72,) float32, zeros without a face."""
        found = self._faces(image)
        return found[0].row if found else np.zeros(len(COLUMNS), np.float32)

    def _faces(self, image: np.ndarray) -> list[Face]:
        """Return the faces of an image (H, W, 3) uint8 RGB."""
        from mediapipe import Image, ImageFormat

        landmarker = _landmarker(_checked_model(self._model))
        detected = landmarker.detect(Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(image)))
        height, width = image.shape[:2]
        found = []
        for number, mesh in enumerate(detected.face_landmarks):
            scores = {c.category_name: c.score for c in detected.face_blendshapes[number]}
            points = np.array([(p.x * width, -p.y * height, -p.z * width) for p in mesh])
            head = np.asarray(detected.facial_transformation_matrixes[number])  # (4, 4), the head's pose
            pitch = math.atan2(head[2, 1], head[2, 2])
            yaw = math.asin(float(np.clip(-head[2, 0], -1, 1)))
            roll = math.atan2(head[1, 0], head[0, 0])
            pose = (pitch, yaw, roll, *head[:3, 3])
            row = np.array([*(scores[name] for name in BLENDSHAPES), *pose, *_distances(points), 1.0], np.float32)
            if not np.isfinite(row).all():
                continue
            flat = points[:, :2] * (1, -1)
            eyes = float(np.linalg.norm(flat[263] - flat[33])) or 1.0
            lips = float(np.linalg.norm(flat[17] - flat[0])) / eyes
            corners = flat[[33, 263, 152]].astype(np.float32)
            found.append(Face(row, np.concatenate([flat.min(0), flat.max(0)]), lips, corners))
        return found


def _looks(image: np.ndarray, found: list[Face]) -> list[np.ndarray]:
    """Return how each face of an image (H, W, 3) looks: (8, 8, 3) float32, eyes and chin in place."""
    import cv2

    looks = []
    for face in found:
        turn = cv2.getAffineTransform(face.corners, _LOOK_AT)
        upright = cv2.warpAffine(image, turn, (64, 64), borderMode=cv2.BORDER_REPLICATE)
        looks.append(cv2.resize(upright, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32))
    return looks


@cache
def _checked_model(model: Path | None) -> Path:
    if model is None:
        return folder("face_landmarker") / _MODEL.name
    check_model(model)
    return model


def _distances(points: np.ndarray) -> list[float]:
    """Return the 14 distances of mesh points (478, 3), y upwards; independent of the head's size, position and tilt."""
    across = points[263] - points[33]
    unit = float(np.linalg.norm(across)) or 1.0
    across = across / unit
    up = points[10] - points[152]
    up = up - across * (up @ across)
    up = up / (float(np.linalg.norm(up)) or 1.0)
    rises = [float((points[b] - points[a]) @ up) / unit for _, a, b in RISES]
    spans = [float(np.linalg.norm(points[b] - points[a])) / unit for _, a, b in SPANS]
    return rises + spans
