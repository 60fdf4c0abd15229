"""Procedurally drawn faces, and what they show: a data set of any size that needs no download.

Face coordinates are those of data/pen.py. Colours are RGB in [0, 255].
"""

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor

from data.pen import ANGLES, BLACK, CIRCLE, SUPERSAMPLING, WHITE, IdlePen, Pen, enlarge, mix, shadow

ACROSS = np.linspace(-1, 1, 15)  # from the left to the right corner of an eye, a brow, a mouth

SKINS, HAIRS, IRISES = (
    [np.array(ImageColor.getrgb(colour)) for colour in colours.split()]
    for colours in (
        "#ffe0ca #f3c6a4 #eab890 #e2aa7e #be8058 #86543a #5a382a",
        "#1e1a1e #3e281e #6e4226 #a64e26 #e0b462 #c4c0c0",
        "#462c1a #784c24 #407446 #3a70aa #687c86",
    )
)


class Style(NamedTuple):
    """A haircut; top and temple are heights of the hairline, -1 at the crown and 1 at the chin."""

    top: float  # hairline at the parting
    temple: float  # hairline at both sides
    power: float  # of the hairline's curve: 1 for two straight curtains, large for a fringe
    volume: float  # thickness above the skull, in head radii
    curl: float = 0.0  # height of the curls on the outline, in head radii
    length: float = 0.0  # how far the hair hangs down behind the head, 0 for not at all
    bun: bool = False


BALD = Style(top=0, temple=0, power=1, volume=0)
STYLES = [
    BALD,
    Style(-0.58, -0.10, 3.0, 0.17),  # short
    Style(-0.38, -0.08, 6.0, 0.16),  # short with a fringe
    Style(-0.55, -0.10, 4.0, 0.25, curl=0.05),
    Style(-0.75, 0.35, 1.8, 0.15, length=1.5),  # long, parted
    Style(-0.38, 0.40, 6.0, 0.16, length=1.0),  # bob with a fringe
    Style(-0.62, 0.30, 2.6, 0.26, curl=0.06, length=1.2),
    Style(-0.62, -0.05, 2.2, 0.09, bun=True),
]


class Person(NamedTuple):
    """What more than one feature has to know."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    style: Style
    light: np.ndarray  # unit vector towards the light; z points at the viewer
    rx: float  # half of the head's width
    ry: float  # half of the head's height
    jaw: float  # how much narrower the chin is than an ellipse's
    turn: float  # how far the features sit to the right of the head's middle
    spacing: float  # half of the distance between the eyes

    def outline(self, angles: np.ndarray) -> np.ndarray:
        """Points on the head's edge, (N, 2); angle 0 is the right, pi / 2 the chin."""
        cos, sin = np.cos(angles), np.sin(angles)
        narrow = 1 - self.jaw * sin.clip(0) ** 2
        return np.stack([self.rx * cos * narrow, self.ry * sin], axis=1)


def _palette(colours: list[np.ndarray], place: float) -> np.ndarray:
    """The colour at place, 0 .. 1, on the path through a list of colours."""
    low = min(int(place * (len(colours) - 1)), len(colours) - 2)
    return mix(colours[low], colours[low + 1], place * (len(colours) - 1) - low)


def _vivid(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    hue, s, v = rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, s, v))


def _lens(
    x: float, y: float, half_width: float, up: float, down: float, bend: float = 0.0
) -> np.ndarray:
    """A shape with two corners; up and down bulge its edges, bend > 0 lifts the corners."""
    xs, ys, bulge = x + half_width * ACROSS, y - bend * ACROSS**2, 1 - ACROSS**2
    upper = np.stack([xs, ys - up * bulge], axis=1)
    lower = np.stack([xs, ys + down * bulge], axis=1)
    return np.concatenate([upper, lower[::-1]])


def _person(rng: np.random.Generator) -> Person:
    skin, hair, iris = rng.uniform(size=3)
    dark_only = 1 - 0.6 * skin  # dark skin goes with dark hair and dark eyes
    light = np.array([rng.choice([-1, 1]) * rng.uniform(0.35, 0.75), rng.uniform(-0.6, -0.2), 0.75])
    return Person(
        skin=_palette(SKINS, skin),
        hair=_palette(HAIRS, hair * dark_only),
        iris=_palette(IRISES, iris * dark_only),
        style=STYLES[rng.choice(len(STYLES))],
        light=light / np.linalg.norm(light),
        rx=rng.uniform(0.47, 0.54),
        ry=rng.uniform(0.60, 0.68),
        jaw=rng.uniform(0.12, 0.32),
        turn=rng.uniform(-0.08, 0.08),
        spacing=rng.uniform(0.20, 0.235),
    )


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    base, sides = _vivid(rng, (0.1, 0.5), (0.6, 0.95)), rng.choice([-1, 1])
    corners = np.array([mix(base, tone, rng.uniform(0, 0.35)) for tone in (255, 255, 0, 0)])
    # The box runs between the pixels' centres: an even gradient without flat borders.
    return enlarge(corners.reshape(2, 2, 3)[:, ::sides], size, box=(0.5, 0.5, 1.5, 1.5))


def _hair_behind(pen: Pen, person: Person) -> None:
    style = person.style
    if style.bun:
        pen.fill_round(CIRCLE * 0.24 + (0, -person.ry * 1.15), person.hair, person.light, 0.5)
    if style.length:
        x, y = CIRCLE.T
        x = person.rx * (1.1 + style.volume) * np.sign(x) * np.abs(x) ** 0.5
        y = person.ry * np.where(y > 0, style.length, 1) * y
        curls = 1 + style.curl * np.cos(10 * ANGLES)
        pen.fill(np.stack([x * curls, y * curls], axis=1), shadow(person.hair, 0.3))


def _hair_front(pen: Pen, rng: np.random.Generator, person: Person) -> None:
    style, parting, lean = person.style, rng.uniform(-0.5, 0.5), rng.uniform(-0.4, 0.4)
    top = style.top + rng.uniform(-0.06, 0.06)
    if style is BALD:
        return
    low = np.arcsin(style.temple)
    over = np.linspace(np.pi - low, 2 * np.pi + low, 45)  # from the left temple over the crown
    thick = style.volume * (0.6 - 0.4 * np.sin(over) + lean * np.cos(over))
    skull = person.outline(over) * (1 + thick + style.curl * np.cos(11 * over))[:, None]
    x = np.linspace(1, -1, 25)  # and back along the hairline
    reach = np.abs(x - parting) / (1 - parting * np.sign(x - parting))
    y = top + (style.temple - top) * reach**style.power
    x *= person.outline(np.array([low]))[0, 0] * 0.97
    hairline = np.stack([x, y * person.ry], axis=1)
    pen.fill_round(np.concatenate([skull, hairline]), person.hair, person.light, 0.55)


def _body(pen: Pen, rng: np.random.Generator, person: Person) -> None:
    """Shoulders, neck and the chin's shadow on it."""
    cloth, width = _vivid(rng, (0.1, 0.7), (0.25, 0.95)), rng.uniform(0.75, 0.95)
    neck, neckline = person.rx * rng.uniform(0.46, 0.58), rng.choice([0.07, 0.2])
    x = np.array([-1, -0.97, -0.85, -0.6, -0.3, 0.3, 0.6, 0.85, 0.97, 1]) * width
    y = np.array([9, 1.03, 0.9, 0.81, 0.76, 0.76, 0.81, 0.9, 1.03, 9])  # out of a tall image
    pen.fill(np.stack([x, y], axis=1), cloth)
    throat = np.array([(-1, 0.3), (1, 0.3), (1, 0.78), (-1, 0.78)]) * (neck, 1)
    pen.fill(throat, shadow(person.skin, 0.25))
    pen.fill(_lens(0, 0.77, neck * 1.12, 0.02, neckline), shadow(person.skin, 0.16))
    below_chin = person.ry * 0.92
    pen.dot(0, below_chin, neck, 0.12, shadow(person.skin, 0.42), 0.8)


def _head(pen: Pen, rng: np.random.Generator, person: Person) -> None:
    ear, flush = rng.uniform(0.10, 0.13), rng.uniform(0, 0.35)
    for side in (-1, 1):
        x = side * person.rx * 1.01 - 0.5 * person.turn
        tone = 0.12 if side * person.light[0] > 0 else 0.3
        pen.dot(x, 0.06, 0.09, ear, shadow(person.skin, tone))
        pen.dot(x, 0.07, 0.045, ear * 0.55, shadow(person.skin, 0.35))
    pen.fill_round(person.outline(ANGLES), person.skin, person.light, 0.42)
    for side in (-1, 1):
        pen.dot(side * 0.29 + person.turn, 0.22, 0.11, 0.08, person.skin * (1, 0.72, 0.72), flush)


def _beard(pen: Pen, rng: np.random.Generator, person: Person) -> bool:
    """Whether there is one."""
    choice, grown = rng.uniform(), rng.choice([0.45, 0.9])  # grown: a beard, else stubble
    colour = mix(person.skin, person.hair, grown)
    if person.style.length or person.style.bun:
        return False
    if choice < 0.3:
        cheeks = np.stack([ACROSS * person.rx * 0.93, 0.24 - 0.3 * np.abs(ACROSS) ** 5], axis=1)
        jaw = person.outline(np.linspace(-0.1, np.pi + 0.1, 25)) * 1.03
        pen.fill_round(np.concatenate([jaw, cheeks]), colour, person.light, 0.4)
    elif choice < 0.4:
        pen.fill(_lens(person.turn, 0.28, 0.2, 0.05, 0.06, -0.05), colour)
    return choice < 0.4


def _eyes(pen: Pen, rng: np.random.Generator, person: Person) -> None:
    width, height = rng.uniform(0.105, 0.13), rng.uniform(0.06, 0.09)
    gaze_x, gaze_y = rng.uniform(-0.03, 0.03), rng.uniform(-0.01, 0.015)
    brow_y, thick, arch = rng.uniform((-0.23, 0.03, 0.0), (-0.19, 0.06, 0.06))
    lashes = 0.036 if person.style.length or person.style.bun else 0.024
    for side in (-1, 1):
        x = side * person.spacing + person.turn
        opening = _lens(x, 0, width, height, height * 0.85)
        pen.dot(x, -0.01, width * 1.2, height * 1.6, shadow(person.skin, 0.4), 0.4)
        pen.fill(opening, WHITE)
        pen.dot(x + gaze_x, gaze_y, 0.066, min(height, 0.066), person.iris)
        pen.dot(x + gaze_x, gaze_y, 0.034, 0.034, BLACK)
        pen.dot(x + gaze_x - 0.02, gaze_y - 0.025, 0.02, 0.02, WHITE)
        pen.stroke(opening[: len(ACROSS)], lashes, BLACK)
        pen.fill(_lens(x, brow_y, width * 1.15, thick, 0, -arch), shadow(person.hair, 0.35))


def _nose(pen: Pen, rng: np.random.Generator, person: Person) -> None:
    width, tip = rng.uniform(0.07, 0.11), rng.uniform(0.17, 0.22)
    x, unlit = person.turn * 1.5, -np.sign(person.light[0])
    bridge = np.array([(0.2, -0.06), (0.45, 0.6 * tip), (1.0, tip), (0, tip)])
    pen.fill(bridge * (unlit * width, 1) + (x, 0), shadow(person.skin, 0.5), 0.4)
    pen.fill(_lens(x, tip, width, 0.0, 0.05), shadow(person.skin, 0.5), 0.8)
    pen.dot(x - unlit * 0.02, tip - 0.03, 0.045, 0.035, mix(person.skin, WHITE, 0.45), 0.7)


def _mouth(pen: Pen, rng: np.random.Generator, person: Person) -> tuple[bool, bool]:
    """Whether it smiles, and whether it is open."""
    x, y, width = person.turn * 1.2, rng.uniform(0.37, 0.41), rng.uniform(0.15, 0.21)
    smile, full = rng.uniform(0.0, 0.09), rng.uniform(0.025, 0.045)
    opening, is_open = rng.uniform(0.05, 0.11), rng.uniform() < 0.4
    lips = mix(shadow(person.skin, 0.35), np.array((200, 60, 75)), rng.uniform(0.3, 0.75))
    pen.fill(_lens(x, y, width, full, is_open * opening + full * 1.3, smile), lips)
    if is_open:
        pen.fill(_lens(x, y, width * 0.85, 0.0, opening, smile), (90, 24, 32))
        pen.fill(_lens(x, y, width * 0.8, 0.0, opening * 0.55, smile), WHITE)
    else:
        pen.stroke(_lens(x, y, width, 0, 0, smile)[: len(ACROSS)], 0.024, shadow(lips, 0.5))
    return smile > 0.045, is_open


def _glasses(pen: Pen, rng: np.random.Generator, person: Person) -> bool:
    """Whether there are any."""
    colour = _vivid(rng, (0.2, 0.8), (0.1, 0.45))
    rx, ry, corner = rng.uniform(0.155, 0.175), rng.uniform(0.12, 0.16), rng.uniform(0.5, 1)
    if rng.uniform() > 0.2:
        return False
    rim = np.sign(CIRCLE) * np.abs(CIRCLE) ** corner * (rx, ry)
    for side in (-1, 1):
        x = side * person.spacing + person.turn
        pen.fill(rim + (x, 0.01), WHITE, 0.18)
        pen.stroke(np.concatenate([rim, rim[:2]]) + (x, 0.01), 0.035, colour)
        pen.stroke([(x + side * rx, -0.01), (side * person.rx * 0.96, -0.03)], 0.035, colour)
    bridge = person.spacing - rx
    pen.stroke([(person.turn - bridge, 0), (person.turn + bridge, 0)], 0.035, colour)
    return True


def draw_face(index: int, size: tuple[int, int]) -> np.ndarray:
    """Draw face number `index`, the same person at every size.

    size is (H, W) in pixels. The head stays in the central square; clothes and background fill
    the rest. Returns (H, W, 3) uint8, a pure function of its arguments.
    """
    return np.array(_draw(index, size, Pen)[0].reduce(SUPERSAMPLING))


def face_attributes(index: int) -> dict[str, bool]:
    """What face number `index` shows, by the names that CelebA has for it."""
    return _draw(index, (1, 1), IdlePen)[1]


def _draw(
    index: int, size: tuple[int, int], kind: type[Pen]
) -> tuple[Image.Image, dict[str, bool]]:
    """Face number `index`, SUPERSAMPLING times as large as size, and what it shows."""
    # No draw from rng may depend on size.
    rng = np.random.default_rng(index)
    height, width = (SUPERSAMPLING * side for side in size)
    image = _background(rng, (width, height))
    person = _person(rng)
    unit = min(height, width) / 2
    scale, tilt = unit * rng.uniform(0.97, 1.13), rng.normal(0, 0.06)
    centre = (width / 2, height / 2) + unit * rng.uniform((-0.06, 0.0), (0.06, 0.1))
    pen = kind(image, centre, scale, tilt)
    _hair_behind(pen, person)
    _body(kind(image, centre, scale, 0.0), rng, person)
    _head(pen, rng, person)
    beard = _beard(pen, rng, person)
    _eyes(pen, rng, person)
    _nose(pen, rng, person)
    smiles, is_open = _mouth(pen, rng, person)
    _hair_front(pen, rng, person)
    shown = {
        "Bald": person.style is BALD,
        "Bangs": person.style.power == 6,
        "Eyeglasses": _glasses(pen, rng, person),
        "Mouth_Slightly_Open": is_open,
        "No_Beard": not beard,
        "Smiling": smiles,
        "Wavy_Hair": person.style.curl > 0,
    }
    return image, shown
