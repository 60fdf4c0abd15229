"""A picture of somebody's own, and a mask for it: read as training images are, at its own size too,
and put together again.

C: 1 or 3 channels, h, w: the picture's own size once it is upright, H, W: that of training images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from common.errors import UserError
from common.files import first_line, open_regular
from data.damage import Unreadable
from data.decoding import fit, fitting_box, open_picture
from data.pixels import to_pixels, to_uint8

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class OwnPicture:
    """pixels: (C, h, w) uint8. size: (H, W), at which a network sees the part in box."""

    pixels: torch.Tensor
    size: tuple[int, int]

    @property
    def box(self) -> Box:
        """What of it is seen, to the next whole pixel."""
        height, width = self.pixels.shape[1:]
        left, top, right, bottom = map(round, fitting_box(width, height, self.size))
        return left, top, right, bottom

    def seen(self, whole: torch.Tensor | None = None) -> torch.Tensor:
        """(1, C, H, W) in [-1, 1], as of a training image. whole: (1, C, h, w) in [-1, 1], what is
        to be seen in place of it."""
        pixels = self.pixels if whole is None else to_uint8(whole)[0]
        array = pixels.permute(1, 2, 0).numpy()
        image = Image.fromarray(array[..., 0] if len(pixels) == 1 else array)
        return to_pixels(fit(image, self.size, len(pixels)))[None]

    def pasted(self, x: torch.Tensor, below: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """x (C, H, W) back in its place: (C, h, w) in [-1, 1]. Around it is the picture.

        below (1, C, h, w): what lies under it where its share, (1, 1, h, w) in [0, 1], is not 1.
        """
        left, top, right, bottom = self.box
        place = (..., slice(top, bottom), slice(left, right))
        whole, shape = below.clone(), (bottom - top, right - left)
        if shape != tuple(x.shape[1:]):
            x = F.interpolate(x[None], shape, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        whole[place] = torch.lerp(whole[place], x, share[place])
        return whole[0]


def read_own(path: str | Path, size: tuple[int, int], channels: int) -> OwnPicture:
    """A picture of any size and mode that training images may have. Raises UserError, also where it
    cannot be read."""
    return OwnPicture(_decoded(path, channels), size)


def read_mask(path: str | Path, picture: OwnPicture, of: str | Path) -> torch.Tensor:
    """(1, 1, h, w) bool, true where the file is white; of: the file that it is for.

    One of another size but the same shape is resized, and a note says so. Raises UserError where
    its shape is another, or where nothing is white that is in the picture's box.
    """
    mask = _decoded(path, 1)
    (height, width), (h, w) = picture.pixels.shape[1:], mask.shape[1:]
    if abs(w * height - h * width) >= max(h, w, height, width):  # more than rounding makes
        raise UserError(f"the mask {path} is {w} x {h}, but {of} is {width} x {height}, which is "
                        "of another shape; make the mask as wide and high as that")  # fmt: skip
    if (h, w) != (height, width):
        print(f"note: the mask {path}, {w} x {h}, is resized to {width} x {height}, as {of} is")
        resized = Image.fromarray(mask[0].numpy()).resize((width, height))
        mask = torch.from_numpy(np.array(resized))[None]
    white = mask[None] > 127
    left, top, right, bottom = picture.box
    if not white[..., top:bottom, left:right].any():
        raise UserError(f"the mask {path} has no white where {of} is seen; white is what is made "
                        "anew, black is kept")  # fmt: skip
    return white


def _decoded(path: str | Path, channels: int) -> torch.Tensor:
    """(C, h, w) uint8 at its own size. Raises UserError where it cannot be read."""
    try:
        with open_regular(path) as file, open_picture(file) as image:
            return fit(image, None, channels)
    except (OSError, Unreadable) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} cannot be read: {why}") from None
