"""What faces are drawn with.

Face coordinates: (0, 0) lies between the eyes, x goes right, y goes down, and 1 is half of the
image's shorter side, so that a face is never stretched. Colours are RGB in [0, 255].
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

Colour = np.ndarray | tuple[int, int, int]

SUPERSAMPLING = 4  # shapes are drawn this much larger and averaged down: smooth edges
ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
BALL = np.stack(np.meshgrid(np.linspace(-1, 1, 12), np.linspace(-1, 1, 12)), axis=2)
BALL = np.dstack(
    [BALL, np.sqrt(np.clip(1.15 - (BALL**2).sum(2), 0, None))]
)  # normals of a ball, seen from the front
WHITE, BLACK = np.array((252, 250, 246)), np.array((22, 16, 18))


class Pen:
    """Draws shapes given in face coordinates on an image; tilt is in radians."""

    def __init__(self, image: Image.Image, centre: np.ndarray, scale: float, tilt: float) -> None:
        cos, sin = scale * np.cos(tilt), scale * np.sin(tilt)
        self.image, self.scale, self.centre = image, scale, centre
        self.rotation = np.array([[cos, sin], [-sin, cos]])
        self.draw = ImageDraw.Draw(image, "RGBA")  # this mode blends, so colours may have an alpha

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) face coordinates -> (N, 2) pixels of the image, x before y."""
        return points @ self.rotation + self.centre

    def fill(self, points: np.ndarray, colour: Colour, alpha: float = 1.0) -> None:
        """The polygon of these points (N, 2); alpha in [0, 1]."""
        red, green, blue = map(int, colour)
        ink = red, green, blue, int(255 * alpha)
        self.draw.polygon(self.pixels(points).ravel().tolist(), ink)

    def dot(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """An ellipse about (x, y) with these radii."""
        self.fill(CIRCLE * (rx, ry) + (x, y), colour, alpha)

    def stroke(self, points: ArrayLike, width: float, colour: Colour) -> None:
        """A line through points (N, 2), width in face coordinates."""
        path = self.pixels(np.asarray(points)).ravel().tolist()
        self.draw.line(path, tuple(map(int, colour)), round(width * self.scale), joint="curve")

    def fill_round(
        self, points: np.ndarray, colour: np.ndarray, light: np.ndarray, depth: float
    ) -> None:
        """Fill as if the shape were a ball lit from `light`; depth in [0, 1] is the contrast."""
        pixels = self.pixels(points)
        corner = np.floor(pixels.min(0)).astype(int)
        mask = Image.new("L", tuple(np.ceil(pixels.max(0)).astype(int) - corner + 1))
        ImageDraw.Draw(mask).polygon((pixels - corner).ravel().tolist(), 255)
        lit = (BALL @ light).clip(0, 1)[..., None]
        shades = mix(shadow(colour, depth), mix(colour, WHITE, 0.25 * depth), lit)
        self.image.paste(enlarge(shades, mask.size), tuple(corner), mask)


class IdlePen(Pen):
    """Draws nothing: for what a face shows, of which nobody wants a picture."""

    def fill(self, *args: Any, **settings: Any) -> None: ...

    stroke = fill_round = fill  # type: ignore[assignment]


def enlarge(
    colours: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """A smooth image of size (W, H) from a coarse grid; what is smooth needs no supersampling."""
    width, height = (-(-side // SUPERSAMPLING) for side in size)
    small = Image.fromarray(colours.astype(np.uint8))
    small = small.resize((width, height), Image.Resampling.BILINEAR, box)
    return small.resize(size, Image.Resampling.NEAREST)


def mix(a: Any, b: Any, share_of_b: Any) -> np.ndarray:
    return a + (b - a) * share_of_b


def shadow(colour: np.ndarray, amount: float) -> np.ndarray:
    """A darker and slightly warmer tone of the same colour."""
    return colour * (1 - amount * np.array([0.85, 1.0, 1.0]))
