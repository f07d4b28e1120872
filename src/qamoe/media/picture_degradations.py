"""Damage the pictures of a clip: each kind is one generator of frames from frames, severity and draws.

The amounts are our decisions. Frames are (H, W, 3) uint8 RGB and are never changed in place. All kinds but `size` keep
their shape.
"""

from collections.abc import Callable, Iterable, Iterator
from math import sqrt

import numpy as np

from qamoe.signal_rng import SignalDraws

Frame = np.ndarray  # (H, W, 3) uint8 RGB
FrameDegradation = Callable[[Iterable[Frame], float, SignalDraws], Iterator[Frame]]


def occlusion(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Hide a share `severity` of the area under a grey rectangle, at one position per clip."""
    down, right = draws.uniform(2)
    side = sqrt(severity)
    for frame in frames:
        height, width = frame.shape[:2]
        rows, columns = round(side * height), round(side * width)
        top, left = round(down * (height - rows)), round(right * (width - columns))
        hidden = frame.copy()
        hidden[top : top + rows, left : left + columns] = 128
        yield hidden


def blur(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Blur with a Gaussian whose standard deviation is severity / 20 of the frame's height."""
    import cv2

    for frame in frames:
        yield cv2.GaussianBlur(frame, (0, 0), severity * frame.shape[0] / 20)


def motion_blur(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Smear along a straight line of severity / 4 of the frame's height, in one direction per clip."""
    import cv2

    angle = np.pi * draws.uniform(1)[0]
    for frame in frames:
        reach = severity * frame.shape[0] / 8
        size = 2 * int(np.ceil(reach)) + 1
        centre = size // 2
        line = np.zeros((size, size), np.float32)
        for step in np.linspace(-reach, reach, 4 * size):
            line[round(centre + step * np.sin(angle)), round(centre + step * np.cos(angle))] += 1
        yield cv2.filter2D(frame, -1, line / line.sum(), borderType=cv2.BORDER_REFLECT)


def darkness(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Scale the light by 1 - severity and add sensor noise (8 grey levels x severity, the same in R, G and B)."""
    for number, frame in enumerate(frames):
        height, width = frame.shape[:2]
        grain = draws.numbered(number).normal(height * width).reshape(height, width, 1)
        yield np.rint((1 - severity) * frame + 8 * severity * grain).clip(0, 255).astype(np.uint8)


def sensor_noise(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Add Gaussian noise of 100 grey levels x severity to each pixel and colour."""
    for number, frame in enumerate(frames):
        grain = draws.numbered(number).normal(frame.size).reshape(frame.shape)
        yield np.rint(frame + 100 * severity * grain).clip(0, 255).astype(np.uint8)


def small_face(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Move the camera away: the picture fills .5 of each side just above severity 0, .3 at .5, .1 at 1; grey around it.

    A face of two thirds of a picture of 240 pixels is then 80 to 16 pixels high.
    """
    import cv2

    down, right = draws.uniform(2)
    for frame in frames:
        height, width = frame.shape[:2]
        rows, columns = (max(1, round((0.5 - 0.4 * severity) * side)) for side in (height, width))
        top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
        far = np.full_like(frame, 128)
        small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
        far[top : top + rows, left : left + columns] = small
        yield far


def low_resolution(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Lose resolution: blocks of 1 + 15 x severity pixels of a picture 240 pixels high become one pixel."""
    import cv2

    for frame in frames:
        height, width = frame.shape[:2]
        block = 1 + 15 * severity * height / 240
        size = max(1, round(width / block)), max(1, round(height / block))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        yield cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Compress as JPEG of quality 30 just above severity 0, 15 at .5 and 1 at 1."""
    import cv2

    for frame in frames:
        quality = max(1, round(30 * (1 - severity)))
        _, coded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        yield np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1]


def lost_frames(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Lose each frame with probability `severity`; the last frame is shown in its place, or black before the first."""
    shown: Frame | None = None
    for number, frame in enumerate(frames):
        if draws.numbered(number).uniform(1)[0] >= severity:
            shown = frame
        yield np.zeros_like(frame) if shown is None else shown


def brightness(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Harmless: scale the light by up to 20 % at severity 1, up or down."""
    factor = 1 + (0.2 if draws.uniform(1)[0] < 0.5 else -0.2) * severity
    for frame in frames:
        yield np.rint(factor * frame).clip(0, 255).astype(np.uint8)


def size(frames: Iterable[Frame], severity: float, draws: SignalDraws) -> Iterator[Frame]:
    """Harmless: scale the whole picture, at severity 1 to .7 or 1.4 of its size."""
    import cv2

    factor = (1.4 if draws.uniform(1)[0] < 0.5 else 0.7) ** severity
    for frame in frames:
        height, width = frame.shape[:2]
        shape = max(1, round(factor * width)), max(1, round(factor * height))
        yield cv2.resize(frame, shape, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


KINDS: dict[str, FrameDegradation] = {
    function.__name__: function
    for function in (
        *(blur, occlusion, darkness, small_face, motion_blur, sensor_noise, low_resolution, jpeg, lost_frames),
        *(brightness, size),
    )
}
HARMLESS = ("brightness", "size")
