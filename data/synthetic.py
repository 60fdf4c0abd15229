"""Drawn faces, and what they show: a data set of any size that needs no download.

Face coordinates: (0, 0) lies between the eyes, x goes right, y goes down, and 1 is half of the
image's shorter side, so that a face is never stretched. Colours are RGB in [0, 255].
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageColor, ImageDraw

SUPERSAMPLING = 4  # shapes are drawn this much larger and averaged down: smooth edges
ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
ACROSS = np.linspace(-1, 1, 15)  # from the left to the right corner of an eye, a brow, a mouth
WHITE, BLACK, RED = np.array([(252, 250, 246), (22, 16, 18), (200, 60, 75)])
SKINS = "#ffe0ca #f3c6a4 #eab890 #e2aa7e #be8058 #86543a #5a382a"
HAIRS = "#1e1a1e #3e281e #6e4226 #a64e26 #e0b462 #c4c0c0"
IRISES = "#462c1a #784c24 #407446 #3a70aa #687c86"
BALD, BANGS = 0.0, 6.0
# Of the hairline: height at the parting, at the temples, power of its curve; then thickness above
# the skull, how far the hair hangs down, height of the curls.
HAIRCUTS = (
    (0.0, 0.0, 1.0, BALD, 0.0, 0.0),
    (-0.58, -0.10, 3.0, 0.17, 0.0, 0.0),
    (-0.38, -0.08, BANGS, 0.16, 0.0, 0.0),
    (-0.55, -0.10, 4.0, 0.25, 0.0, 0.05),
    (-0.75, 0.35, 1.8, 0.15, 1.5, 0.0),
    (-0.38, 0.40, BANGS, 0.16, 1.0, 0.0),
    (-0.62, 0.30, 2.6, 0.26, 1.2, 0.06),
)


class Face:
    """Face number `index`: all that chance decides, the same at every size."""

    def __init__(self, index: int) -> None:
        rng = np.random.default_rng(index)
        tone, hair, iris = rng.uniform(size=3)
        dark = 1 - 0.6 * tone  # dark skin goes with dark hair and dark eyes
        self.skin, self.hair = palette(SKINS, tone), palette(HAIRS, dark * hair)
        self.iris, self.cloth = palette(IRISES, dark * iris), rng.uniform(30, 230, 3)
        self.ground, self.light = rng.uniform(120, 240, 3), rng.uniform((-1, -0.7), (1, -0.2))
        self.place, self.tilt = rng.uniform((-0.06, 0.0), (0.06, 0.1)), rng.normal(0, 0.06)
        self.scale, self.rx, self.ry = rng.uniform((0.97, 0.47, 0.60), (1.13, 0.54, 0.68))
        self.jaw, self.turn, self.spacing = rng.uniform((0.12, -0.08, 0.20), (0.32, 0.08, 0.235))
        self.cut, self.parting = HAIRCUTS[rng.integers(len(HAIRCUTS))], rng.uniform(-0.5, 0.5)
        self.eye, self.gaze = rng.uniform((0.105, 0.06), (0.13, 0.09)), rng.uniform(-0.03, 0.03)
        self.brow, self.nose = rng.uniform((-0.23, 0.17), (-0.19, 0.22))  # their heights
        self.mouth = rng.uniform((0.37, 0.15, 0.025), (0.41, 0.21, 0.045))  # y, width, lips
        self.smile, self.opening = rng.uniform(0, 0.09), max(0.0, rng.uniform(-0.15, 0.11))
        self.glasses, self.beard = rng.uniform(size=2) < (0.2, 0.4 * (self.cut[4] == 0))

    def outline(self, angles: np.ndarray) -> np.ndarray:
        """Points on the head's edge, (N, 2); angle 0 is the right, pi / 2 the chin."""
        cos, sin = np.cos(angles), np.sin(angles)
        return np.stack([self.rx * cos * (1 - self.jaw * sin.clip(0) ** 2), self.ry * sin], axis=1)


def face_attributes(index: int) -> dict[str, bool]:
    """What face number `index` shows, by the names that CelebA has for it."""
    face = Face(index)
    return {
        "Bald": face.cut[3] == BALD,
        "Bangs": face.cut[2] == BANGS,
        "Eyeglasses": bool(face.glasses),
        "Mouth_Slightly_Open": face.opening > 0,
        "No_Beard": not face.beard,
        "Smiling": face.smile > 0.045,
        "Wavy_Hair": face.cut[5] > 0,
    }


def draw_face(index: int, size: tuple[int, int]) -> np.ndarray:
    """Draw face number `index`, the same person at every size.

    size is (H, W) in pixels. The head stays in the central square; clothes and background fill
    the rest. Returns (H, W, 3) uint8, a pure function of its arguments.
    """
    face, (height, width), unit = Face(index), size, min(size) / 2
    large = (SUPERSAMPLING * width, SUPERSAMPLING * height)
    image = Image.new("RGB", large, tuple(face.ground.astype(int)))
    scale, middle = SUPERSAMPLING * unit, np.array(large) / 2
    cos, sin = face.scale * np.cos(face.tilt), face.scale * np.sin(face.tilt)
    canvas = ImageDraw.Draw(image, "RGBA")  # this mode blends, so colours may have an alpha

    def fill(points: np.ndarray, colour: np.ndarray, alpha: float = 1.0) -> None:
        """The polygon of these points (N, 2), in face coordinates."""
        points = points @ np.array([[cos, sin], [-sin, cos]]) + face.place
        ink = *map(int, colour), int(255 * alpha)
        canvas.polygon((scale * points + middle).ravel().tolist(), ink)

    _draw_head(fill, face)
    _draw_features(fill, face)
    _draw_hair(fill, face)

    # One light for all of it, from a side and above.
    y, x = (np.mgrid[:height, :width] + 0.5 - np.reshape(size, (2, 1, 1)) / 2) / unit
    light = 1 + 0.3 * np.tanh(face.light[0] * x + face.light[1] * y)
    pixels = np.array(image.reduce(SUPERSAMPLING)) * light[..., None]
    return pixels.clip(0, 255).astype(np.uint8)


# ---- Its parts ----------------------------------------------------------------------------------


def palette(colours: str, place: float) -> np.ndarray:
    """The colour at place, 0 .. 1, on the path through some."""
    channels = np.array([ImageColor.getrgb(colour) for colour in colours.split()]).T
    steps = np.linspace(0, 1, len(channels[0]))
    return np.array([np.interp(place, steps, channel) for channel in channels])


def shadow(colour: np.ndarray, amount: float) -> np.ndarray:
    """A darker and slightly warmer tone of the same colour."""
    return colour * (1 - amount * np.array([0.85, 1.0, 1.0]))


def dot(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return CIRCLE * (rx, ry) + (x, y)


def lens(x: float, y: float, half: float, up: float, down: float, bend: float = 0) -> np.ndarray:
    """A shape with two corners; up and down bulge its edges, bend > 0 lifts the corners."""
    xs, ys, bulge = x + half * ACROSS, y - bend * ACROSS**2, 1 - ACROSS**2
    upper, lower = np.stack([xs, ys - up * bulge], 1), np.stack([xs, ys + down * bulge], 1)
    return np.concatenate([upper, lower[::-1]])


def _draw_head(fill: Callable, face: Face) -> None:
    """What is behind it, then a ball that is brightest towards the light, and a beard."""
    _, _, _, volume, length, curl = face.cut
    if length:
        x, y = CIRCLE.T * (1 + curl * np.cos(10 * ANGLES))
        x = face.rx * (1.1 + volume) * np.sign(x) * np.abs(x) ** 0.5
        y = face.ry * np.where(y > 0, length, 1) * y
        fill(np.stack([x, y], axis=1), shadow(face.hair, 0.3))
    fill(lens(0, 1.3, 0.95, 0.6, 9), face.cloth)
    fill(lens(0, 0.7, 0.3, 0.5, 0.2), shadow(face.skin, 0.3))
    for side in (-1, 1):
        fill(dot(side * face.rx - 0.5 * face.turn, 0.06, 0.09, 0.12), shadow(face.skin, 0.25))
    for k in range(8):
        ball = face.outline(ANGLES) * (1 - 0.1 * k) + 0.02 * k * face.light
        fill(ball, shadow(face.skin, 0.3 - 0.04 * k))
    if face.beard:
        cheeks = np.stack([ACROSS * face.rx * 0.93, 0.24 - 0.3 * np.abs(ACROSS) ** 5], axis=1)
        jaw = face.outline(np.linspace(-0.1, np.pi + 0.1, 25)) * 1.03
        fill(np.concatenate([jaw, cheeks]), 0.7 * face.hair + 0.3 * face.skin)


def _draw_features(fill: Callable, face: Face) -> None:
    width, height = face.eye
    for x in (face.turn - face.spacing, face.turn + face.spacing):
        fill(dot(x, -0.01, width * 1.2, height * 1.6), shadow(face.skin, 0.4), 0.4)
        fill(lens(x, 0, width, height * 1.4, 0), BLACK)  # lashes
        fill(lens(x, 0, width, height, height * 0.85), WHITE)
        fill(dot(x + face.gaze, 0, 0.066, min(height, 0.066)), face.iris)
        fill(dot(x + face.gaze, 0, 0.034, 0.034), BLACK)
        fill(lens(x, face.brow, width * 1.15, 0.06, 0), shadow(face.hair, 0.35))
    fill(lens(1.5 * face.turn, face.nose, 0.09, 0.0, 0.05), shadow(face.skin, 0.5), 0.8)
    if face.glasses:
        for side in (-1, 1):
            x = face.turn + side * face.spacing
            fill(np.concatenate([dot(x, 0, 0.17, 0.15), dot(x, 0, 0.13, 0.11)]), BLACK)
        fill(dot(face.turn, 0, face.spacing - 0.15, 0.02), BLACK)

    x, (y, width, full) = 1.2 * face.turn, face.mouth
    lips = 0.5 * shadow(face.skin, 0.35) + 0.5 * RED
    fill(lens(x, y, width, full, face.opening + full * 1.3, face.smile), lips)
    fill(lens(x, y, width * 0.9, 0.0, max(0.015, face.opening), face.smile), BLACK)
    fill(lens(x, y, width * 0.8, 0.0, face.opening * 0.55, face.smile), WHITE)


def _draw_hair(fill: Callable, face: Face) -> None:
    top, temple, power, volume, _, curl = face.cut
    if volume == BALD:
        return
    low = np.arcsin(temple)
    over = np.linspace(np.pi - low, 2 * np.pi + low, 45)  # from the left temple over the crown
    thick = 1 + volume * (0.6 - 0.4 * np.sin(over)) + curl * np.cos(11 * over)
    x = np.linspace(1, -1, 25)  # and back along the hairline
    reach = np.abs(x - face.parting) / (1 - face.parting * np.sign(x - face.parting))
    y = face.ry * (top + (temple - top) * reach**power)
    hairline = np.stack([x * face.outline(np.array([low]))[0, 0] * 0.97, y], axis=1)
    fill(np.concatenate([face.outline(over) * thick[:, None], hairline]), face.hair)
