"""Facial expression features: MediaPipe's face landmarker (blendshapes, head pose) and a few distances.

MediaPipe is pinned to one version: later versions contact a host when a landmarker is created. The model is used
only if its SHA-256 is the one in weights/table.py.
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
from qamoe.files import file_digest
from qamoe.media.decode import ClipError, read_frames
from qamoe.weights.store import folder
from qamoe.weights.table import WEIGHTS

NAME = "landmarks"
VERSION = "1"
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
            num_faces=1,
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
        """Read a span of a file -> (T, 72) float32. An image without a face is a row of zeros.

        Raises ClipError if no image has a face, NoStream if the file has no video stream.
        """
        rows = [self.describe(image) for image in read_frames(path, self.rate, start_s, end_s)]
        frames = np.stack(rows)
        if not frames[:, -1].any():
            raise ClipError("no face in any video frame")
        return frames

    def describe(self, image: np.ndarray) -> np.ndarray:
        """Describe an image (H, W, 3) uint8 RGB -> (72,) float32."""
        from mediapipe import Image, ImageFormat

        landmarker = _landmarker(_checked_model(self._model))
        detected = landmarker.detect(Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(image)))
        row = np.zeros(len(COLUMNS), np.float32)
        if not detected.face_landmarks:
            return row
        scores = {c.category_name: c.score for c in detected.face_blendshapes[0]}
        height, width = image.shape[:2]
        points = np.array([(p.x * width, -p.y * height, -p.z * width) for p in detected.face_landmarks[0]])
        head = np.asarray(detected.facial_transformation_matrixes[0])  # (4, 4), the head's pose
        pitch = math.atan2(head[2, 1], head[2, 2])
        yaw = math.asin(float(np.clip(-head[2, 0], -1, 1)))
        roll = math.atan2(head[1, 0], head[0, 0])
        pose = (pitch, yaw, roll, *head[:3, 3])
        row[:] = [*(scores[name] for name in BLENDSHAPES), *pose, *_distances(points), 1.0]
        return row if np.isfinite(row).all() else np.zeros_like(row)


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
