"""Draw faces of the sample corpus: invented people whose mouth, brows and eyes follow the feeling.

The head is drawn once per clip at twice the final size, its moving parts once per frame. The result is rotated,
shifted and scaled down in one step. Positions in a head are shares of its half width and half height, y downwards, so
that one description fits every geometry.
"""

from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 240  # pixels, width and height of a frame
_SCALE = 2  # the canvas is this much larger
_CANVAS = SIZE * _SCALE
_SHIFT = 4  # OpenCV takes sub-pixel positions as integers with this many fractional bits
Colour = tuple[float, float, float]  # RGB, 0 to 255

# fmt: off
SKINS: tuple[Colour, ...] = (
    (246, 216, 194), (236, 196, 166), (224, 178, 142), (202, 152, 114),
    (176, 124, 88), (146, 98, 68), (116, 76, 54), (94, 60, 44),
)
HAIR: tuple[Colour, ...] = (
    (28, 24, 26), (58, 38, 28), (96, 62, 38), (142, 98, 56),
    (206, 170, 110), (148, 64, 36), (150, 148, 148), (212, 208, 204),
)
# fmt: on
EYES: tuple[Colour, ...] = ((84, 56, 36), (58, 40, 30), (70, 110, 150), (84, 124, 84), (120, 132, 140), (122, 96, 54))
STYLES = ("short", "curly", "bald", "long", "bob", "bun")


@dataclass(frozen=True)
class Face:
    """The appearance of an invented person. Lengths are shares of the head's half width or height."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    shirt: Colour
    wall: Colour
    style: str
    beard: float  # 0 (none) to 1
    glasses: bool
    width: float  # half width of the head, pixels of the canvas
    height: float
    jaw: float  # how much the lower half narrows
    eye_apart: float
    eye_size: float
    brow_high: float
    brow_thick: float
    nose: float
    mouth_width: float
    lips_full: float
    rest_smile: float  # position of the corners of the mouth at rest
    rest_brow: float


@dataclass(frozen=True)
class Expression:
    """The moving parts, each about -1 to 1, except `opening` (of the mouth) and `blink`: 0 to 1."""

    smile: float
    brow: float  # up or down
    frown: float  # inner ends of the brows down and together (below 0: up, as in grief)
    squint: float  # narrowed eyes (below 0: wide open)
    opening: float
    blink: float = 0.0
    turn: float = 0.0  # degrees, the head's tilt
    right: float = 0.0  # pixels of the final frame
    down: float = 0.0
    gaze: float = 0.0


def invent(random: np.random.Generator) -> Face:
    """Draw a person."""
    tone = int(random.integers(len(SKINS)))
    # Fair hair on dark skin is left out, because the brows would not contrast with the forehead.
    hair = HAIR[int(random.integers(len(HAIR) if tone < 4 else 2))]
    skin = _vary(SKINS[tone], 6, random)
    bearded = random.random() < 0.28
    return Face(
        skin=skin,
        hair=_vary(hair, 8, random),
        iris=_vary(EYES[int(random.integers(len(EYES) if tone < 5 else 2))], 8, random),
        lips=_mix(skin, (176, 62, 66), random.uniform(0.35, 0.65)),
        shirt=_hue(random.uniform(0, 180), random.uniform(60, 150), random.uniform(70, 190)),
        wall=_hue(random.uniform(0, 180), random.uniform(25, 90), random.uniform(130, 225)),
        style=STYLES[int(random.integers(3 if bearded else len(STYLES)))],
        beard=random.uniform(0.35, 0.8) if bearded else 0.0,
        glasses=bool(random.random() < 0.15),
        width=random.uniform(112, 132),
        height=random.uniform(156, 172),
        jaw=random.uniform(0.10, 0.26),
        eye_apart=random.uniform(0.39, 0.45),
        eye_size=random.uniform(0.185, 0.225),
        brow_high=random.uniform(0.15, 0.19),
        brow_thick=random.uniform(0.028, 0.05),
        nose=random.uniform(0.85, 1.2),
        mouth_width=random.uniform(0.33, 0.41),
        lips_full=random.uniform(0.042, 0.072),
        rest_smile=random.normal(0, 0.12),
        rest_brow=random.normal(0, 0.12),
    )


class Portrait:
    """A person to be drawn; the parts that do not move within a clip are drawn once, here."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self._room = _room(face)
        self._head, self._alpha = _head(face)

    def draw(self, expression: Expression) -> np.ndarray:
        """Draw one frame (SIZE, SIZE, 3) uint8 RGB."""
        head = self._head.copy()
        _draw_mouth(head, self.face, expression)
        _draw_eyes(head, self.face, expression)
        _draw_brows(head, self.face, expression)
        if self.face.glasses:
            _draw_glasses(head, self.face)
        transform = cv2.getRotationMatrix2D((_CANVAS / 2, _CANVAS * 0.72), expression.turn, 1 / _SCALE)
        transform[:, 2] += np.array([SIZE / 2 + expression.right, SIZE * 0.72 + expression.down]) - np.array(
            [_CANVAS / 2, _CANVAS * 0.72]
        )
        small = cv2.warpAffine(head, transform, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
        alpha = cv2.warpAffine(self._alpha, transform, (SIZE, SIZE), flags=cv2.INTER_LINEAR)[..., None]
        mixed = small.astype(np.float32) * alpha + self._room * (1 - alpha)
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


# Colours and positions.


def _vary(colour: Colour, by: float, random: np.random.Generator) -> Colour:
    r, g, b = (float(np.clip(c + random.uniform(-by, by), 0, 255)) for c in colour)
    return r, g, b


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    x, y, z = (p * (1 - share) + q * share for p, q in zip(a, b, strict=True))
    return x, y, z


def _darken(colour: Colour, by: float) -> Colour:
    return colour[0] * by, colour[1] * by, colour[2] * by


def _hue(hue: float, saturation: float, value: float) -> Colour:
    pixel = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return float(pixel[0]), float(pixel[1]), float(pixel[2])


def _at(face: Face, points: "np.ndarray | list[tuple[float, float]]") -> np.ndarray:
    """Convert shares of the head (N, 2) to pixels of the canvas."""
    centre = np.array([_CANVAS / 2, _CANVAS * 0.475])
    return np.asarray(points, np.float64) * (face.width, face.height) + centre


def _fill(canvas: np.ndarray, points: np.ndarray, colour: "Colour | float") -> None:
    fixed = np.rint(points * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], colour, cv2.LINE_AA, _SHIFT)


def _line(canvas: np.ndarray, points: np.ndarray, colour: Colour, thick: int) -> None:
    fixed = np.rint(points * 2**_SHIFT).astype(np.int32)
    cv2.polylines(canvas, [fixed], False, colour, thick, cv2.LINE_AA, _SHIFT)


def _oval(x: float, y: float, rx: float, ry: float, count: int = 64) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def _curve(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], count: int = 16) -> np.ndarray:
    """Return a quadratic curve from a to c that passes through b halfway."""
    t = np.linspace(0, 1, count)[:, None]
    pull = 2 * np.array(b) - (np.array(a) + np.array(c)) / 2
    return (1 - t) ** 2 * np.array(a) + 2 * t * (1 - t) * pull + t**2 * np.array(c)


def _outline(face: Face) -> np.ndarray:
    """Return the outline of the head in shares: an ellipse whose lower half narrows towards the chin."""
    points = _oval(0, 0, 1, 1, 96)
    below = np.clip(points[:, 1], 0, 1)
    points[:, 0] *= 1 - face.jaw * below**1.5
    return points


# Parts that do not move.


def _room(face: Face) -> np.ndarray:
    """Draw wall and shoulders at the final size, float32."""
    down = np.linspace(1.06, 0.88, _CANVAS)[:, None, None]
    room = np.clip(np.array(face.wall) * down * np.ones((1, _CANVAS, 1)), 0, 255).astype(np.uint8)
    room = np.ascontiguousarray(room)
    middle = _CANVAS / 2
    _fill(room, _oval(middle, _CANVAS * 1.06, face.width * 1.62, _CANVAS * 0.20), face.shirt)
    _fill(room, _oval(middle, _CANVAS * 0.885, face.width * 0.62, _CANVAS * 0.05), _darken(face.shirt, 0.75))
    neck = np.array([(-0.43, 0.5), (0.43, 0.5), (0.5, 1.0), (0, 1.13), (-0.5, 1.0)])
    _fill(room, _at(face, neck), _darken(face.skin, 0.78))
    return cv2.resize(room, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)


def _head(face: Face) -> tuple[np.ndarray, np.ndarray]:
    """Draw the still parts of the head on the canvas; return RGB uint8 and the opacity of each pixel (float32)."""
    head = np.empty((_CANVAS, _CANVAS, 3), np.uint8)
    head[:] = np.array(face.hair, np.uint8)
    alpha = np.zeros((_CANVAS, _CANVAS), np.uint8)
    _hair_behind(head, alpha, face)
    for side in (-1, 1):
        ear = _at(face, _oval(side * 0.99, 0.03, 0.12, 0.17))
        _fill(head, ear, _darken(face.skin, 0.86))
        _fill(head, _at(face, _oval(side * 1.01, 0.03, 0.06, 0.10)), _darken(face.skin, 0.74))
        _fill(alpha, ear, 255)
    mask = np.zeros((_CANVAS, _CANVAS), np.uint8)
    _fill(mask, _at(face, _outline(face)), 255)
    share = mask.astype(np.float32)[..., None] / 255
    head = (head * (1 - share) + _skin(face) * share).astype(np.uint8)
    alpha = np.maximum(alpha, mask)
    _nose(head, face)
    _hair_before(head, alpha, face)
    return head, alpha.astype(np.float32) / 255


def _skin(face: Face) -> np.ndarray:
    """Draw the lit surface of the head (rounded form, sockets, cheeks, beard), (canvas, canvas, 3) float32."""
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32)
    u = (x - _CANVAS / 2) / face.width
    v = (y - _CANVAS * 0.475) / face.height
    depth = np.sqrt(np.clip(1.08 - u**2 - v**2, 0.02, None))
    light = 0.66 + 0.40 * np.clip(-0.34 * u - 0.38 * v + 0.84 * depth, 0, None)

    def blob(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return np.exp(-(((u - cx) / rx) ** 2) - ((v - cy) / ry) ** 2)

    for side in (-1, 1):
        light -= 0.13 * blob(side * face.eye_apart, -0.13, 0.27, 0.12)
        light += 0.05 * blob(side * 0.5, 0.17, 0.2, 0.12)
        # The fold between cheek and mouth.
        light -= 0.035 * blob(side * 0.40, 0.36, 0.07, 0.12)
    light -= 0.09 * blob(0, 0.645, 0.22, 0.035)  # below the lower lip
    light += 0.05 * blob(0, 0.78, 0.18, 0.08)  # chin
    light -= 0.05 * blob(0, 0.385, 0.05, 0.05)
    surface = np.array(face.skin, np.float32) * light[..., None]
    blush = blob(-0.55, 0.22, 0.2, 0.11) + blob(0.55, 0.22, 0.2, 0.11)
    surface += blush[..., None] * np.array([14, -6, -4], np.float32)
    if face.beard:
        edge = 0.22 + 0.30 * (1 - np.clip(np.abs(u) / 0.75, 0, 1))
        beard = np.clip((v - edge) / 0.10, 0, 1) * (1 - blob(0, 0.505, 0.40, 0.085) * 0.9)
        beard = np.maximum(beard, 0.9 * blob(0, 0.385, 0.30, 0.035))
        beard = (beard * face.beard)[..., None]
        surface = surface * (1 - beard) + np.array(face.hair, np.float32) * light[..., None] * beard
    return np.clip(surface, 0, 255)


def _nose(head: np.ndarray, face: Face) -> None:
    """Draw the nose: shadows at its side and below, nostrils, and a light on its ridge."""
    w = 0.15 * face.nose
    shadow, shine = np.zeros(head.shape[:2], np.uint8), np.zeros(head.shape[:2], np.uint8)
    side = [(0.03, -0.14), (0.07, -0.10), (0.08, 0.10), (w + 0.03, 0.24), (w, 0.29), (0.04, 0.26), (0.03, 0.1)]
    _fill(shadow, _at(face, side), 130)
    _fill(shadow, _at(face, _oval(0, 0.275, w * 1.05, 0.035)), 170)
    _fill(shine, _at(face, [(-0.05, -0.1), (0.0, -0.1), (0.02, 0.18), (-0.05, 0.18)]), 90)
    _fill(shine, _at(face, _oval(-0.02, 0.20, 0.06, 0.04)), 130)
    dark, bright = (cv2.GaussianBlur(m, (0, 0), 6).astype(np.float32) / 255 for m in (shadow, shine))
    light = 1 - 0.42 * dark + 0.30 * bright
    head[:] = np.clip(head * light[..., None], 0, 255).astype(np.uint8)
    for sign in (-1, 1):
        _fill(head, _at(face, _oval(sign * w * 0.55, 0.268, 0.042, 0.017)), _darken(face.skin, 0.42))
        wing = _curve((sign * w * 0.95, 0.20), (sign * w * 1.12, 0.25), (sign * w * 0.8, 0.285))
        _line(head, _at(face, wing), _darken(face.skin, 0.66), 2)


def _hair_behind(head: np.ndarray, alpha: np.ndarray, face: Face) -> None:
    shapes = {
        "short": [_oval(0, -0.22, 1.07, 0.88)],
        "long": [_oval(0, -0.1, 1.16, 1.02), np.array([(-1.16, -0.1), (1.16, -0.1), (1.28, 1.12), (-1.28, 1.12)])],
        "bob": [_oval(0, -0.1, 1.16, 1.0), np.array([(-1.16, -0.1), (1.16, -0.1), (1.2, 0.55), (-1.2, 0.55)])],
        "curly": [_oval(x, y, 0.42, 0.32) for x, y in _oval(0, -0.32, 0.95, 0.72, 14)],
        "bald": [],
        "bun": [_oval(0, -0.2, 1.06, 0.9), _oval(0, -1.08, 0.34, 0.2)],
    }
    for shape in shapes[face.style]:
        _fill(head, _at(face, shape), _darken(face.hair, 0.8))
        _fill(alpha, _at(face, shape), 255)


def _hair_before(head: np.ndarray, alpha: np.ndarray, face: Face) -> None:
    """Draw the hair over the forehead, between the upper edge of the head and a hairline."""
    if face.style == "bald":
        return
    parting = (-0.12, -0.80)
    locks = _curve((-1.02, 0.2), (-0.5, -0.48), parting), _curve(parting, (0.55, -0.5), (1.02, 0.2))
    straight = [(-1.02, 0.3), (-0.86, -0.2), (-0.7, -0.47), (0, -0.52), (0.7, -0.47), (0.86, -0.2), (1.02, 0.3)]
    line = {
        "short": _curve((-0.99, -0.15), (0.05, -0.72), (0.99, -0.15)),
        "long": np.concatenate(locks),
        "bob": np.array(straight),
        "curly": _curve((-1.0, -0.1), (0.0, -0.66), (1.0, -0.1)),
        "bun": _curve((-0.99, -0.2), (0.0, -0.78), (0.99, -0.2)),
    }[face.style]
    angle = np.linspace(np.arcsin(0.0), -np.pi, 40)
    top = np.stack([1.04 * np.cos(angle), 1.07 * np.sin(angle)], 1)
    shape = _at(face, np.concatenate([line, top]))
    _fill(head, shape, face.hair)
    _fill(alpha, shape, 255)
    for offset in (-0.5, -0.2, 0.15, 0.45):
        strand = _curve((offset * 0.8, -1.0), (offset * 1.25, -0.9), (offset * 1.7, -0.72))
        _line(head, _at(face, strand), _mix(face.hair, (255, 255, 255), 0.10), 2)


# Parts that move.


def _draw_mouth(head: np.ndarray, face: Face, e: Expression) -> None:
    smile = np.clip(e.smile + face.rest_smile, -1.3, 1.3)
    opening = float(np.clip(e.opening, 0, 1.1))
    half = face.mouth_width * (1 + 0.16 * smile - 0.10 * opening)
    corner = 0.50 - 0.062 * smile
    upper = 0.50 + 0.012 * smile - 0.012 * opening
    lower = 0.506 + 0.022 * smile + 0.23 * opening
    full = face.lips_full * (1 - 0.12 * abs(smile))
    left, right = (-half, corner), (half, corner)
    inner_top = _curve(left, (0, upper), right)
    inner_bottom = _curve(left, (0, lower), right)
    bow = np.concatenate(
        [
            _curve(left, (-half * 0.52, (corner + upper) / 2 - full * 0.85), (-0.04, upper - full * 1.05)),
            _curve((-0.04, upper - full * 1.05), (0, upper - full * 0.85), (0.04, upper - full * 1.05)),
            _curve((0.04, upper - full * 1.05), (half * 0.52, (corner + upper) / 2 - full * 0.85), right),
        ]
    )
    outer_bottom = _curve(left, (0, lower + full * 1.3), right)
    _fill(head, _at(face, np.concatenate([bow, inner_top[::-1]])), _darken(face.lips, 0.86))
    _fill(head, _at(face, np.concatenate([inner_bottom, outer_bottom[::-1]])), face.lips)
    inside = np.concatenate([inner_top, inner_bottom[::-1]])
    _fill(head, _at(face, inside), (62, 20, 24))
    gap = lower - upper
    if gap > 0.05:
        tooth = min(0.045, gap * 0.45)
        wide = half * 0.68
        edge = upper + (corner - upper) * 0.46
        top = _curve((-wide, edge), (0, upper), (wide, edge))
        bottom = (top + np.array([0, tooth]))[::-1] * (0.94, 1)
        _fill(head, _at(face, np.concatenate([top, bottom])), (236, 230, 222))
    _line(head, _at(face, inner_top), _darken(face.lips, 0.45), 2)
    for side in (-1, 1):
        _fill(head, _at(face, _oval(side * half, corner, 0.018, 0.012, 16)), _darken(face.lips, 0.5))
        if smile > 0.25 and not face.beard:
            fold = _curve((side * 0.26, 0.32), (side * (half * 0.62 + 0.17), 0.385), (side * (half + 0.075), 0.46))
            _line(head, _at(face, fold), _darken(face.skin, 0.86 - 0.12 * min(smile, 1)), 2)


def _draw_eyes(head: np.ndarray, face: Face, e: Expression) -> None:
    wide = face.eye_size
    open_ = 0.066 * (1 - 0.36 * float(np.clip(e.squint, -0.9, 1.1))) * (1 - 0.92 * e.blink)
    for side in (-1, 1):
        x, y = side * face.eye_apart, -0.12
        inner, outer = (x - side * wide, y + 0.012), (x + side * wide, y - 0.004)
        lid_top = _curve(inner, (x, y - open_), outer)
        lid_bottom = _curve(inner, (x, y + open_ * 0.62), outer)
        shape = _at(face, np.concatenate([lid_top, lid_bottom[::-1]]))
        # The iris is drawn on a separate patch, of which only the part between the lids is copied.
        x0, y0 = np.floor(shape.min(0)).astype(int) - 4
        x1, y1 = np.ceil(shape.max(0)).astype(int) + 5
        patch = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        patch[:] = (238, 234, 228)
        cx, cy = _at(face, [(x + 0.03 * e.gaze, y - 0.006)])[0] - (x0, y0)
        radius = 0.105 * face.width
        _fill(patch, _oval(cx, cy, radius, radius), _darken(face.iris, 0.6))
        _fill(patch, _oval(cx, cy, radius * 0.84, radius * 0.84), face.iris)
        _fill(patch, _oval(cx, cy, radius * 0.42, radius * 0.42), (16, 14, 16))
        _fill(patch, _oval(cx - radius * 0.35, cy - radius * 0.35, 2.6, 2.6, 16), (250, 250, 250))
        mask = np.zeros(patch.shape[:2], np.uint8)
        _fill(mask, shape - (x0, y0), 255)
        share = mask.astype(np.float32)[..., None] / 255
        area = head[y0:y1, x0:x1]
        area[:] = (area * (1 - share) + patch * share).astype(np.uint8)
        _line(head, _at(face, lid_top), (34, 26, 26), 4)
        _line(head, _at(face, lid_bottom), _darken(face.skin, 0.62), 2)
        crease = _curve((inner[0], y - 0.03), (x, y - open_ - 0.035), (outer[0], y - 0.03))
        _line(head, _at(face, crease), _darken(face.skin, 0.68), 2)


def _draw_brows(head: np.ndarray, face: Face, e: Expression) -> None:
    high = -0.12 - face.brow_high - 0.052 * (e.brow + face.rest_brow)
    colour = _darken(face.hair, 0.72) if sum(face.hair) < 480 else _darken(face.hair, 0.62)
    for side in (-1, 1):
        x = side * face.eye_apart
        inner = (x - side * (0.23 - 0.03 * np.clip(e.frown, -1, 1)), high + 0.055 * e.frown + 0.012)
        outer = (x + side * 0.25, high - 0.010 * e.frown + 0.02)
        middle = (x + side * 0.03, high - 0.028 + 0.010 * e.frown)
        top = _curve(inner, (middle[0], middle[1] - face.brow_thick * 0.5), outer)
        bottom = _curve((inner[0], inner[1] + face.brow_thick), (middle[0], middle[1] + face.brow_thick * 0.6), outer)
        _fill(head, _at(face, np.concatenate([top, bottom[::-1]])), colour)
    if e.frown > 0.4:
        for x in (-0.045, 0.045):
            line = _curve((x, -0.27), (x * 0.8, -0.23), (x, -0.19))
            _line(head, _at(face, line), _darken(face.skin, 0.82), 2)


def _draw_glasses(head: np.ndarray, face: Face) -> None:
    for side in (-1, 1):
        rim = _at(face, _oval(side * face.eye_apart, -0.105, 0.335, 0.165, 48))
        _line(head, np.concatenate([rim, rim[:1]]), (42, 40, 46), 3)
        _line(head, _at(face, [(side * (face.eye_apart + 0.33), -0.12), (side * 0.99, -0.06)]), (42, 40, 46), 3)
    bridge = _curve((-face.eye_apart + 0.335, -0.12), (0, -0.15), (face.eye_apart - 0.335, -0.12))
    _line(head, _at(face, bridge), (42, 40, 46), 3)
