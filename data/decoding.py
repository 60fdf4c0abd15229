"""One picture of any mode and size as a uint8 tensor of the size that is asked for."""

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

from data.damage import Unreadable, named_damage

PREPARED = 1  # to be raised when fit() comes to make other pixels of the same file
CROP_ONLY = 1.1  # an image at most this much larger than needed is cropped, not resized
FORMATS = "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"  # others can start programs
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

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        assert self.fp is not None
        start = self.fp.tell()
        try:
            return super().call(cid, pos, length)
        except (EOFError, AttributeError):  # by which Pillow tells itself what comes next
            raise
        except Exception:
            if not _is_beside(cid):
                raise
            self.fp.seek(start)
            return ImageFile._safe_read(self.fp, length)

    def crc(self, cid: bytes, data: bytes) -> None:
        (self.crc_skip if _is_beside(cid) else super().crc)(cid, data)


def _is_beside(cid: bytes) -> bool:
    """Whether a chunk has nothing to do with the pixels; tRNS has."""
    return cid[:1].islower() and cid != b"tRNS"


# Pillow has no switches for these. Sizes are checked below, before anything is decoded.
PngImagePlugin.PngStream = _PngStream  # type: ignore[misc]
Image.MAX_IMAGE_PIXELS = None


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_picture(file: str | Path | BinaryIO) -> Image.Image:
    """A PIL image whose pixels are not yet decoded. Raises Unreadable."""
    with named_damage():
        return Image.open(file, formats=_formats())


def prepare(image: Image.Image, size: tuple[int, int]) -> None:
    """To be called before an image is decoded for fit(): a JPEG is then read at a fraction that is
    enough for size (H, W). Raises Unreadable where decoding would take more than MOST_MEMORY."""
    with named_damage():
        # Both sides may be the long one once it is upright.
        width, height = image.size
        buffered = image.format in ("JPEG", "MPO") and not _in_one_scan(image)
        image.draft(None, (2 * max(size), 2 * max(size)))
        pixels = image.width * image.height
        if image.format == "TIFF":  # whose tiles may be larger than it
            tags = image.tag_v2  # type: ignore[attr-defined]
            pixels = max(pixels, int(tags.get(322, 0)) * int(tags.get(323, 0)))

        # Of the decoder, of the picture and its copies, and of the file where that is in memory.
        each = PER_PIXEL_OTHERS if is_transparent(image) else PER_PIXEL.get(image.mode)
        needed = pixels * ((each or PER_PIXEL_OTHERS) + CANVAS.get(image.format or "", 0))
        if isinstance(file := getattr(image, "fp", None), io.BytesIO):
            needed += 2 * file.getbuffer().nbytes
        if buffered:
            needed += width * height * 2 * len(image.getbands())  # all coefficients
        if needed > MOST_MEMORY or width * height > MOST_PIXELS:
            raise Unreadable(f"{width} x {height} pixels are too many to decode")


def _in_one_scan(image: Image.Image) -> bool:
    """Whether a JPEG can be decoded row by row: its first scan, after whose header Pillow stops,
    has all bands. Raises Unreadable where it has so many scans that they would take minutes."""
    if image.format != "JPEG":
        return False
    bands, file = len(image.getbands()), image.fp  # type: ignore[attr-defined]
    file.seek(-(2 * bands + 8), io.SEEK_CUR)
    header = file.read(2 * bands + 8)
    whole = b"\xff\xda" + (2 * bands + 6).to_bytes(2, "big") + bytes([bands])
    if header.startswith(whole) and not image.info.get("progressive"):
        return True
    here = file.tell()
    if (file.seek(0, io.SEEK_END) - here) * image.width * image.height > 2**42:
        file.seek(here)
        if file.read().count(b"\xff\xda") > MOST_SCANS:
            raise Unreadable(f"more than {MOST_SCANS} scans")
    return False


def fit(
    image: Image.Image,
    size: tuple[int, int],
    channels: int,
    whites: Mapping[str, float] = WHITES,
) -> torch.Tensor:
    """A PIL image of any mode and size -> uint8 tensor (channels, H, W), size = (H, W).

    channels: 1 or 3. whites: like WHITES, for values of 16 bits and floats. Turned as its EXIF
    says, resized to cover (unless at most CROP_ONLY too large), then centre-cropped; transparency
    over white; colours as sRGB. Raises Unreadable.
    """
    height, width = size
    prepare(image, size)
    with named_damage():
        profile = foreign_profile(image)
        _load_upright(image)
        image = _eight_bits(image, whites, profile is not None)

    # Cropping alone keeps every pixel as it is; resizing takes the largest box of the wanted shape.
    scale = min(image.width / width, image.height / height)  # source pixels per pixel
    if 1 <= scale <= CROP_ONLY:
        column, row = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((column, row, column + width, row + height))
    else:
        left = max(0, image.width - width * scale) / 2  # rounding must not make it negative
        top = max(0, image.height - height * scale) / 2
        box = (left, top, image.width - left, image.height - top)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box)

    # A copy, because a tensor must not share read-only memory.
    image = _to_srgb(image, profile) if profile else image
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(height, width, channels).copy()).permute(2, 0, 1)


def _load_upright(image: Image.Image) -> None:
    """Decode it, turned as its EXIF says; where that is damaged, as it is stored."""
    image.load()  # what fails from here on is not the pixels
    if len(image.info.get("exif", b"")) > LONGEST_EXIF:
        return
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        return


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


def is_clear(image: Image.Image) -> bool:
    """Whether nothing of it can be seen."""
    return is_transparent(image) and not image.convert("RGBA").getchannel("A").getextrema()[1]


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


def highest(image: Image.Image) -> float:
    """The highest finite value of an image of numbers."""
    values = np.asarray(image)
    return float(values.max(initial=0, where=np.isfinite(values)))


def foreign_profile(image: Image.Image) -> bytes | None:
    """The colour profile that a picture brings, where it is readable and not sRGB itself."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile and _is_foreign(profile) else None


@functools.lru_cache(64)
def _is_foreign(profile: bytes) -> bool:
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except Exception:  # a damaged profile does not cost the picture
        return False
    return "srgb" not in name.lower()


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """From a profile's colours to sRGB's, in mode RGB; as it is where they do not go together."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except Exception:  # a picture in other colours than its profile's, for example
        return image
    return converted or image
