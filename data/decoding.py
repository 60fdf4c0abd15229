"""One picture of any mode and size as a uint8 tensor of the size that is asked for."""

import io
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

from data.damage import Unreadable, named_damage

PREPARED = 1  # to be raised when fit() comes to make other pixels of the same file
CROP_ONLY = 1.1  # an image at most this much larger than needed is cropped, not resized
WHITES = {"I": 65535.0, "F": 1.0}  # the value of white, by a mode's first letter
TOLERANCE = 0.01  # of values beyond black or white, as resampling makes them
LONGEST_EXIF = 2**16  # bytes; a JPEG holds no longer one

# Bytes at the most that decoding one picture may take, and what it takes per pixel of a mode, with
# all copies that are made at full size (measured); of others, and where something is transparent.
MOST_MEMORY = 860e6
PER_PIXEL = {"1": 4, "L": 4, "P": 6, "RGB": 8.5, "CMYK": 8.5, "I;16": 8}
PER_PIXEL_OTHERS = 18
CANVAS = {"WEBP": 12, "AVIF": 12}  # what these decoders hold beside it
MOST_PIXELS, MOST_SCANS = 2**30, 1000  # of a JPEG, whatever it takes: for the time


class _PngStream(PngImagePlugin.PngStream):
    """What a PNG holds beside its pixels does not decide whether it can be read."""

    PIXELS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        try:
            return super().call(cid, pos, length)
        except (EOFError, AttributeError):  # by which Pillow tells itself what comes next
            raise
        except Exception:
            if cid in self.PIXELS or self.fp is None:
                raise
            self.fp.seek(pos)
            return ImageFile._safe_read(self.fp, length)

    def crc(self, cid: bytes, data: bytes) -> None:
        (super().crc if cid in self.PIXELS else self.crc_skip)(cid, data)


# Pillow has no switches for these. Sizes are checked below, before anything is decoded.
PngImagePlugin.PngStream = _PngStream  # type: ignore[misc]
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata: thousands, for one file
Image.init()
WANTED = "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"  # others can start programs
FORMATS: tuple[str, ...] = tuple(name for name in WANTED if name in Image.OPEN)


def open_picture(file: str | Path | BinaryIO) -> Image.Image:
    """A PIL image whose pixels are not yet decoded. Raises Unreadable."""
    with named_damage():
        return Image.open(file, formats=FORMATS)


def prepare(image: Image.Image, size: tuple[int, int]) -> None:
    """To be called before an image is decoded for fit(): a JPEG is then read at a fraction that is
    enough for size (H, W). Raises Unreadable where decoding would take more than MOST_MEMORY."""
    with named_damage():
        # Coefficients of all scans, or tiles, may need more than the pixels.
        width, height = image.size
        needed = 0.0 if _row_by_row(image) else width * height * 2 * len(image.getbands())
        image.draft(None, (2 * max(size), 2 * max(size)))  # any side, until it is upright
        pixels = image.width * image.height
        if image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            pixels = max(pixels, int(tags.get(322, 0)) * int(tags.get(323, 0)))

        # The picture, its copies, the decoder, and the file where that is in memory.
        each = PER_PIXEL.get(image.mode, PER_PIXEL_OTHERS)
        each = PER_PIXEL_OTHERS if is_transparent(image) else each
        needed += pixels * (each + CANVAS.get(image.format or "", 0))
        if isinstance(file := getattr(image, "fp", None), io.BytesIO):
            needed += 2 * file.getbuffer().nbytes
        if needed > MOST_MEMORY or width * height > MOST_PIXELS:
            raise Unreadable(f"{width} x {height} pixels are too many to decode")


def _row_by_row(image: Image.Image) -> bool:
    """Whether it can be decoded so; of a JPEG: whether its first scan, after whose header Pillow
    stops, has all bands. Raises Unreadable where it has so many that they would take minutes."""
    if image.format != "JPEG":
        return image.format != "MPO"
    bands, file = len(image.getbands()), image.fp  # type: ignore[attr-defined]
    file.seek(-(2 * bands + 8), io.SEEK_CUR)
    whole = b"\xff\xda" + (2 * bands + 6).to_bytes(2, "big") + bytes([bands])
    if file.read(2 * bands + 8).startswith(whole) and not image.info.get("progressive"):
        return True
    if file.read().count(b"\xff\xda") >= MOST_SCANS:
        raise Unreadable(f"more than {MOST_SCANS} scans")
    return False


def fit(
    image: Image.Image,
    size: tuple[int, int] | None,
    channels: int,
    whites: Mapping[str, float] = WHITES,
) -> torch.Tensor:
    """A PIL image of any mode and size -> uint8 tensor (channels, H, W), size = (H, W), or None:
    its own, once it is upright.

    channels: 1 or 3. whites: like WHITES, for values of 16 bits and floats. Turned as its EXIF
    says, resized to cover (unless at most CROP_ONLY too large), then centre-cropped; transparency
    over white; colours as sRGB. Raises Unreadable.
    """
    prepare(image, size or (image.height, image.width))
    with named_damage():
        profile = foreign_profile(image)
        image.load()
        if len(image.info.get("exif", b"")) <= LONGEST_EXIF:
            with suppress(Exception):  # damaged EXIF does not cost the picture
                ImageOps.exif_transpose(image, in_place=True)
        image = _eight_bits(image, whites, profile is not None)

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


def _eight_bits(image: Image.Image, whites: Mapping[str, float], keep_inks: bool) -> Image.Image:
    """The same picture in mode L or RGB, or, with keep_inks, CMYK."""
    if image.mode[:1] in WHITES:
        return _scaled(image, whites[image.mode[:1]])
    if is_transparent(image):
        grey = image.mode in ("L", "LA", "La")
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return flat.convert("L") if grey else flat
    if image.mode in ("L", "RGB") or keep_inks and image.mode == "CMYK":
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether it has an alpha channel or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _scaled(image: Image.Image, white: float) -> Image.Image:
    """Numbers, 0 to white, in mode L; a band of rows at a time, for the memory."""
    values = np.asarray(image)
    out = np.empty(values.shape, np.uint8)
    for i in range(0, len(values), 64):
        with np.errstate(all="ignore"):  # damaged floats are any numbers, or none
            part = values[i : i + 64].astype(np.float64) / white
            part = np.nan_to_num(part, posinf=1, neginf=0)
        low, high = part.min() * white, part.max() * white
        if low < -TOLERANCE * white or high > (1 + TOLERANCE) * white:
            raise Unreadable(f"values from {low:g} to {high:g}, but 0 to {white:g} is wanted")
        out[i : i + 64] = (part * 255).round().clip(0, 255)
    return Image.fromarray(out)


def foreign_profile(image: Image.Image) -> bytes | None:
    """The colour profile that a picture brings, where it can be read and is not sRGB itself."""
    profile = image.info.get("icc_profile")
    with suppress(Exception):  # a damaged profile does not cost the picture
        if "srgb" not in ImageCms.getProfileDescription(_profile(profile)).lower():
            return profile
    return None


def _profile(content: Any) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(content))
