"""Closed forms for fit: geometry, modes, transparency, EXIF."""

import numpy as np
import pytest
import torch
from pictures import EXIF_ORIENTATION, ramp, reopened
from PIL import Image

from data.decoding import fit

ORIENTATIONS = {  # what a file with this EXIF orientation holds of a picture (H, W, C)
    1: lambda d: d,
    2: lambda d: d[:, ::-1],
    3: lambda d: d[::-1, ::-1],
    4: lambda d: d[::-1],
    5: lambda d: d.swapaxes(0, 1),
    6: lambda d: d.swapaxes(0, 1)[::-1],
    7: lambda d: d[::-1, ::-1].swapaxes(0, 1),
    8: lambda d: d.swapaxes(0, 1)[:, ::-1],
}


def turned(picture, orientation, form="PNG", **options):
    """A file of that orientation that stands for picture."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](np.asarray(picture)))
    return reopened(Image.fromarray(stored), form, exif=exif, **options)


@pytest.mark.parametrize(
    "source, size",
    [
        ((200, 100), (20, 30)),  # (width, height) to (height, width)
        ((100, 200), (20, 30)),
        ((250, 250), (16, 48)),
        ((250, 250), (48, 16)),
        ((250, 60), (50, 50)),
        ((60, 250), (32, 40)),
        ((64, 64), (64, 32)),
        ((30, 24), (48, 96)),  # enlarged
        ((30, 24), (96, 48)),
    ],
)
def test_fit_covers_and_crops_the_centre(source, size):
    """On a ramp, a resized pixel is the position in the source that it stands for."""
    out = fit(ramp(*source), size, 3).double()
    assert out.shape == (3, *size)
    scale = min(source[0] / size[1], source[1] / size[0])
    x, y = (
        (length - scale * n) / 2 + (torch.arange(n).double() + 0.5) * scale - 0.5
        for length, n in ((source[0], size[1]), (source[1], size[0]))
    )
    inner = (slice(4, -4), slice(4, -4))  # at the very edge the filter has only one side
    assert (out[0] - x).abs()[inner].max() <= 1
    assert (out[1] - y[:, None]).abs()[inner].max() <= 1
    assert (out[2] == 0).all()


@pytest.mark.parametrize("source", [(60, 40), (61, 40), (60, 43), (66, 44), (66, 200), (250, 44)])
def test_a_slightly_larger_image_is_only_cropped(source):
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*source[::-1], 3), dtype=np.uint8)
    )
    left, top = (source[0] - 60) // 2, (source[1] - 40) // 2
    expected = np.asarray(image)[top : top + 40, left : left + 60]
    assert torch.equal(fit(image, (40, 60), 3), torch.tensor(expected).permute(2, 0, 1))


def test_a_larger_image_is_not_cropped():
    """At 12 % more than needed the whole width is still in the picture."""
    out = fit(ramp(112, 112), (100, 100), 3)[0, 50]
    assert out[0] <= 1 and out[-1] >= 110


@pytest.mark.parametrize("width", [28, 64, 176, 187])
def test_an_even_image_of_any_size_stays_even(width):
    for w in [*range(1, 401), 800, 1024, 1600, 3024, 4032]:
        for source in ((w, w // 16 + 1), (w // 16 + 1, w)):
            size = (8, width) if source[0] == w else (width, 8)
            out = fit(Image.new("L", source, 77), size, 1)
            assert out.shape == (1, *size) and (out == 77).all()


@pytest.mark.parametrize("source", [(1, 1), (1, 5000), (5000, 1), (2, 3000)])
def test_extreme_shapes(source):
    out = fit(reopened(Image.new("RGB", source, (1, 2, 3))), (16, 32), 3)
    assert torch.equal(
        out, torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand_as(out)
    )


@pytest.mark.parametrize("alpha", [0, 1, 64, 128, 254, 255])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_over_white(alpha, form):
    image = Image.new("RGBA", (8, 8), (10, 100, 250, alpha))
    out = fit(reopened(image, form, **({"lossless": True} if form == "WEBP" else {})), (8, 8), 3)
    expected = torch.tensor([10.0, 100.0, 250.0]) * alpha / 255 + (255 - alpha)
    assert (out.amin((1, 2)) - expected).abs().max() <= 1
    assert (out.amax((1, 2)) - expected).abs().max() <= 1


@pytest.mark.parametrize("alpha", [0, 100, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_transparency_over_white(alpha, channels):
    out = fit(reopened(Image.new("LA", (8, 8), (40, alpha))), (8, 8), channels)
    assert out.shape == (channels, 8, 8)
    assert (out.float() - (40 * alpha / 255 + 255 - alpha)).abs().max() <= 1


@pytest.mark.parametrize("as_bytes", [False, True])  # one clear entry, or an alpha for each
def test_palette_transparency_over_white(as_bytes):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([250, 0, 0, 0, 120, 0, 0, 0, 240])
    image.paste(1, (0, 0, 8, 4))
    transparency = bytes([0, 255, 255]) if as_bytes else 0
    out = fit(reopened(image, transparency=transparency), (8, 8), 3)
    assert out[:, :4].float().mean((1, 2)).tolist() == [0, 120, 0]
    assert (out[:, 4:] == 255).all()


@pytest.mark.parametrize("mode, transparent", [("L", 9), ("RGB", (9, 9, 9))])
def test_a_transparent_colour_over_white(mode, transparent):
    image = Image.new(mode, (8, 8), transparent)
    image.paste(Image.new(mode, (8, 4), 60 if mode == "L" else (60, 60, 60)), (0, 0))
    out = fit(reopened(image, transparency=transparent), (8, 8), 1 if mode == "L" else 3)
    assert (out[:, :4] == 60).all() and (out[:, 4:] == 255).all()


def test_palette_without_transparency_keeps_its_colours():
    image = ramp(64, 64).quantize(16)
    expected = torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(fit(reopened(image), (64, 64), 3), expected)


def test_cmyk():
    c, m, y, k = ink = (30, 120, 200, 60)
    out = fit(reopened(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95), (16, 16), 3)
    expected = torch.tensor([(255 - i) * (255 - k) / 255 for i in (c, m, y)])
    assert (out.float() - expected[:, None, None]).abs().max() <= 4


def test_one_bit():
    bits = np.random.default_rng(0).integers(0, 2, (16, 16)).astype(bool)
    assert torch.equal(
        fit(reopened(Image.fromarray(bits)), (16, 16), 1)[0],
        torch.tensor(bits).to(torch.uint8) * 255,
    )


@pytest.mark.parametrize("top", [65535, 256, 20_000])
def test_sixteen_bits_are_scaled_not_clipped(top):
    values = np.linspace(0, top, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = reopened(Image.fromarray(values))
    assert image.mode.startswith("I")
    out = fit(image, (64, 64), 1)[0].flatten()
    assert (out.diff(dim=0).int() >= 0).all() and out[0] == 0
    assert (out.double() - torch.tensor(values.astype(float)).flatten() / 257).abs().max() <= 0.5
    assert out[-1] == round(top / 257)
    assert torch.equal(fit(reopened(Image.fromarray(values)), (64, 64), 3)[2].flatten(), out)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(orientation):
    picture = ramp(50, 40)
    for size in ((40, 50), (30, 20), (16, 32)):
        same = fit(turned(picture, orientation), size, 3).int()
        assert (same - fit(picture, size, 3).int()).abs().max() <= 1
    assert torch.equal(fit(turned(picture, orientation), (40, 50), 3), fit(picture, (40, 50), 3))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_jpeg_keeps_its_detail(orientation):
    """Decoding at a fraction must leave enough pixels also when width and height are swapped."""
    stripes = np.tile(np.arange(130) // 8 % 2 * 255, (2000, 1)).astype(np.uint8)
    out = fit(turned(Image.fromarray(stripes), orientation, "JPEG"), (8, 64), 1).float()
    expected = fit(Image.fromarray(stripes), (8, 64), 1).float()
    assert (out - expected).abs().mean() < 10


def test_decoding_a_large_jpeg_at_a_fraction_changes_little():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = picture.resize((1200, 900), Image.Resampling.BICUBIC)
    whole = reopened(picture, "JPEG", quality=95).copy()  # decoded
    out = fit(reopened(picture, "JPEG", quality=95), (48, 64), 3)
    difference = (out.float() - fit(whole, (48, 64), 3).float()).abs()
    assert difference.mean() < 2 and difference.max() < 12


def test_damaged_exif_does_not_lose_the_picture():
    """The pixels are whole; only what the camera wrote beside them is not."""
    picture = ramp(40, 40)
    damaged = reopened(picture, exif=b"Exif\0\0no such thing as a TIFF header")
    assert torch.equal(fit(damaged, (40, 40), 3), fit(picture, (40, 40), 3))
