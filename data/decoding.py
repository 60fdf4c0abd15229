"""One picture of any mode and size as a uint8 tensor of the size that is asked for."""

import numpy as np
import torch
from PIL import Image, ImageOps

PREPARED = 1  # to be raised when fit() comes to make other pixels of the same file
CROP_ONLY = 1.1  # an image at most this much larger than needed is cropped, not resized


def fit(image: Image.Image, size: tuple[int, int], channels: int) -> torch.Tensor:
    """A PIL image of any mode and size -> uint8 tensor (channels, H, W), size = (H, W).

    channels: 1 or 3. Turned as its EXIF says, resized to cover (unless at most CROP_ONLY too
    large), then centre-cropped; transparency over white; 16 bits scaled to 8. Raises one of DAMAGED
    (data/damage.py) where the file is damaged.
    """
    # Huge JPEGs are decoded at a fraction; both sides may be the long one once it is upright.
    height, width = size
    image.draft(None, (2 * max(size), 2 * max(size)))
    image = _eight_bits(_upright(image))

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
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(height, width, channels).copy()).permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; where that is damaged, as it is stored."""
    image.load()  # what fails from here on is not the pixels
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same picture in mode L or RGB."""
    if image.mode.startswith("I"):  # 16 bits; Pillow's plain "I" may hold 8
        values = np.asarray(image, dtype=np.float64)
        values = values if image.mode == "I" and values.max() < 256 else values / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return flat.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
