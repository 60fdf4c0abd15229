"""One picture of any mode and size as a uint8 tensor of the size that is asked for."""

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from data.damage import Unreadable, named_damage

PREPARED = 1  # to be raised when fit() comes to make other pixels of the same file
CROP_ONLY = 1.1  # an image at most this much larger than needed is cropped, not resized
WHITES = {"I": 65535.0, "F": 1.0}  # the value of white, by a mode's first letter
TOLERANCE = 0.01  # of values beyond black or white, as resampling makes them
MOST_PIXELS = 2**26  # of a picture: decoding it takes up to about 1 GB

# Sizes are checked here, before anything is decoded, and texts beside the pixels are no danger.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28
warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata: thousands, for one file
Image.init()
WANTED = "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"  # others can start programs
FORMATS: tuple[str, ...] = tuple(name for name in WANTED if name in Image.OPEN)


def open_picture(file: str | Path | BinaryIO) -> Image.Image:
    """A PIL image whose pixels are not yet decoded. Raises Unreadable."""
    with named_damage():
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Unreadable(f"{image.width} x {image.height} pixels are too many to decode")
        return image


def prepare(image: Image.Image, size: tuple[int, int]) -> None:
    """To be called before an image is decoded for fit(): a JPEG is then read at a fraction that is
    enough for size (H, W). Raises Unreadable."""
    with named_damage():
        image.draft(None, (2 * max(size), 2 * max(size)))  # any side, until it is upright


def fit(image: Image.Image, size: tuple[int, int] | None, channels: int) -> torch.Tensor:
    """A PIL image of any mode and size -> uint8 tensor (channels, H, W), size = (H, W), or None:
    its own, once it is upright.

    channels: 1 or 3. Turned as its EXIF says, resized to cover (unless at most CROP_ONLY too
    large), then centre-cropped; transparency over white; colours as sRGB. Raises Unreadable.
    """
    prepare(image, size or (image.height, image.width))
    with named_damage():
        profile = foreign_profile(image)
        image.load()
        with suppress(Exception):  # damaged EXIF does not cost the picture
            ImageOps.exif_transpose(image, in_place=True)
        image = _eight_bits(image, profile is not None)

    # Cropping alone keeps every pixel as it is.
    height, width = size or (image.height, image.width)
    box = fitting_box(image.width, image.height, (height, width))
    if (box[2] - box[0], box[3] - box[1]) == (width, height):
        image = image.crop(box)  # type: ignore[arg-type]
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS, box)

    # A picture in other colours than its profile's stays as it is.
    if profile:
        with suppress(Exception):
            source, srgb = _profile(profile), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            image = converted or image

    # A copy, because a tensor must not share read-only memory.
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(height, width, channels).copy()).permute(2, 0, 1)


def fitting_box(
    image_width: int, image_height: int, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what fit() takes of an upright image: of size (H, W) itself
    where it only crops, else the largest of that shape."""
    height, width = size
    scale = min(image_width / width, image_height / height)  # source pixels per pixel
    if 1 <= scale <= CROP_ONLY:
        column, row = (image_width - width) // 2, (image_height - height) // 2
        return column, row, column + width, row + height
    left = max(0, image_width - width * scale) / 2  # rounding must not make it negative
    top = max(0, image_height - height * scale) / 2
    return left, top, image_width - left, image_height - top


def _eight_bits(image: Image.Image, keep_inks: bool) -> Image.Image:
    """The same picture in mode L or RGB, or, with keep_inks, CMYK."""
    if image.mode[:1] in WHITES:
        return _scaled(image, WHITES[image.mode[:1]])
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La")
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return flat.convert("L") if grey else flat
    if image.mode in ("L", "RGB") or keep_inks and image.mode == "CMYK":
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Image.Image, white: float) -> Image.Image:
    """Numbers, 0 to white, in mode L."""
    with np.errstate(all="ignore"):  # damaged floats are any numbers, or none
        share = np.nan_to_num(np.asarray(image, np.float32) / np.float32(white), posinf=1, neginf=0)
    low, high = share.min(), share.max()
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise Unreadable(
            f"values from {low * white:g} to {high * white:g}, but 0 to {white:g} is wanted"
        )
    return Image.fromarray(np.rint(share * 255).clip(0, 255).astype(np.uint8))


def foreign_profile(image: Image.Image) -> bytes | None:
    """The colour profile that a picture brings, where it can be read and is not sRGB itself."""
    profile = image.info.get("icc_profile")
    with suppress(Exception):  # a damaged profile does not cost the picture
        if "srgb" not in ImageCms.getProfileDescription(_profile(profile)).lower():
            return profile
    return None


def _profile(content: Any) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(content))
