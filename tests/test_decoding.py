"""Closed forms for fit: geometry, modes, transparency, EXIF, colours; and what is never decoded."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers import ROOT
from pictures import EXIF_ORIENTATION, chunk, encoded, huge, ramp, reopened, with_chunk
from PIL import EpsImagePlugin, Image, ImageCms, features

from data import decoding
from data.damage import Unreadable
from data.decoding import FORMATS, fit, open_picture

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


# ---- What is opened -----------------------------------------------------------------------------


def test_pictures_are_opened_in_one_place():
    """The one that says which formats are wanted."""
    product = [p for p in ROOT.glob("*/*.py") if p.parent.name not in ("tests", "benchmarks")]
    product += list(ROOT.glob("*.py"))
    using = {
        p.name for p in product if re.search(r"Image\.open\(|ImageFile\.Parser", p.read_text())
    }
    assert using == {"decoding.py"}


def test_no_other_format_is_tried(monkeypatch):
    """Not even where it would take any bytes: one could start a program, as EPS starts one."""
    Image.init()
    tried = []
    for name in set(Image.OPEN) - set(FORMATS):
        note = lambda *_, name=name: tried.append(name)  # noqa: E731
        monkeypatch.setitem(Image.OPEN, name, (note, None))
    with pytest.raises(Unreadable, match="not an image"):
        open_picture(io.BytesIO(b"no picture at all"))
    assert not tried


def test_a_picture_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("started"))
    path = tmp_path / "cat.jpg"
    path.write_bytes(encoded(ramp(8, 8), "EPS"))
    with pytest.raises(Unreadable, match="not an image"):
        fit(open_picture(path), (8, 8), 3)


KINDS = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "PPM": {},
}


@pytest.mark.parametrize("form", [*KINDS, "AVIF"])
def test_every_wanted_format_is_read(form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    picture = Image.new("RGB", (16, 16), (20, 200, 90))
    out = fit(open_picture(io.BytesIO(encoded(picture, form))), (16, 16), 3).float()
    assert (out.mean((1, 2)) - torch.tensor([20.0, 200.0, 90.0])).abs().max() < 6


def test_of_a_film_the_first_picture(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert fit(open_picture(tmp_path / "a.gif"), (8, 8), 3).float().mean((1, 2)).tolist() == [
        255,
        0,
        0,
    ]


# ---- What is too large --------------------------------------------------------------------------


@pytest.mark.parametrize("form", [f for f in KINDS if f != "WEBP"])
def test_what_is_too_large_is_not_decoded(form, monkeypatch):
    """Found by what the header says, before any pixel has its memory."""
    file = io.BytesIO(huge(form))
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("memory is taken"))
    monkeypatch.setattr(Image.core, "fill", lambda *_: pytest.fail("memory is taken"))
    with pytest.raises(Unreadable, match="40000 x 40000 pixels are too many"):
        open_picture(file)


TURNED = Image.Exif()
TURNED[EXIF_ORIENTATION] = 6
SIDE = 1500
LARGE = {
    "1": ("PNG", Image.new("1", (SIDE, SIDE)), {}),
    "L": ("PNG", Image.new("L", (SIDE, SIDE)), {}),
    "P": ("PNG", Image.new("P", (SIDE, SIDE)), {}),
    "RGB": ("PNG", Image.new("RGB", (SIDE, SIDE)), {}),
    "RGBA": ("PNG", Image.new("RGBA", (SIDE, SIDE)), {}),
    "LA": ("PNG", Image.new("LA", (SIDE, SIDE)), {}),
    "I;16": ("PNG", Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)), {}),
    "L, a transparent one": ("PNG", Image.new("L", (SIDE, SIDE)), {"transparency": 3}),
    "RGB, a transparent one": ("PNG", Image.new("RGB", (SIDE, SIDE)), {"transparency": (1, 2, 3)}),
    "P, a transparent one": ("PNG", Image.new("P", (SIDE, SIDE)), {"transparency": 0}),
    "I": ("TIFF", Image.new("I", (SIDE, SIDE)), {}),
    "F": ("TIFF", Image.new("F", (SIDE, SIDE)), {"compression": "tiff_lzw"}),
    "CMYK": ("TIFF", Image.new("CMYK", (SIDE, SIDE)), {}),
    "RGB of WebP": ("WEBP", Image.new("RGB", (SIDE, SIDE)), {"method": 0}),
    "RGBA of WebP": ("WEBP", Image.new("RGBA", (SIDE, SIDE)), {"method": 0}),
    "RGB of JPEG": (
        "JPEG", Image.new("RGB", (SIDE, SIDE)), {"progressive": True, "subsampling": 0}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_decoding_takes_no_more_than_is_reckoned(name, tmp_path):
    """A part of the largest picture that is allowed takes the same part of a gigabyte and a half,
    beside what a decoder needs whatever the size."""
    form, picture, options = LARGE[name]
    path = tmp_path / "a"
    path.write_bytes(encoded(picture, form, exif=TURNED, **options))
    size = (16, 16) if form != "JPEG" else (SIDE, SIDE)
    taken = peak_memory(lambda: fit(open_picture(path), size, 3))
    assert taken - 6e6 < 1.5e9 * SIDE**2 / decoding.MOST_PIXELS


def peak_memory(do):
    """Bytes that do() takes at its peak, beyond what was there: measured in a fork."""
    status = "/proc/self/status"
    if not os.path.exists(status):
        pytest.skip("no such measure here")

    def read(key):
        with open(status) as file:
            return 1024 * int(re.search(rf"{key}:\s+(\d+)", file.read())[1])

    ours, theirs = os.pipe()
    if not os.fork():
        before = read("VmRSS")
        do()
        os.write(theirs, struct.pack("q", read("VmHWM") - before))
        os._exit(0)
    taken = struct.unpack("q", os.read(ours, 8))[0]
    os.close(ours), os.close(theirs), os.wait()
    return taken


# ---- What does not decide -----------------------------------------------------------------------


def test_much_text_in_all_does_not_decide_either():
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))
    png = with_chunk(encoded(ramp(8, 8)), text * 70)
    assert torch.equal(fit(open_picture(io.BytesIO(png)), (8, 8), 3), fit(ramp(8, 8), (8, 8), 3))


def test_pixels_do_decide():
    png = encoded(ramp(40, 30))
    for kind in (b"IHDR", b"IDAT"):
        at = png.index(kind) + 6
        with pytest.raises(Unreadable):
            fit(open_picture(io.BytesIO(png[:at] + b"\xff\xff" + png[at + 2 :])), (8, 8), 3)


# ---- Colours and numbers ------------------------------------------------------------------------


def profile(gamma):
    """A profile with sRGB's colours but this gamma in place of its curve, as bytes."""
    raw = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    table = raw[132 : 132 + 12 * struct.unpack(">I", raw[128:132])[0]]
    raw = raw.replace("sRGB".encode("utf-16-be"), "gRGB".encode("utf-16-be")).replace(
        b"sRGB", b"gRGB"
    )
    for i in range(0, len(table), 12):
        if table[i + 1 : i + 4] == b"TRC":
            at = struct.unpack(">I", table[i + 4 : i + 8])[0]
            raw = raw[:at] + curve + raw[at + len(curve) :]
    return raw


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_of_another_profile_come_out_as_srgb(form):
    options = {"PNG": {}, "JPEG": {"quality": 95}, "TIFF": {}, "WEBP": {"lossless": True}}[form]
    picture = Image.new("RGB", (16, 16), (128, 128, 128))
    out = fit(reopened(picture, form, icc_profile=profile(1.0), **options), (16, 16), 3).float()
    linear = 128 / 255
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert (out - expected).abs().max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("damage", ["srgb", "short", "noise", "none at all"])
def test_srgb_and_broken_profiles_change_nothing(mode, damage):
    raw = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    raw = {"srgb": raw, "short": raw[:200], "noise": bytes(range(256)) * 3, "none at all": b"x"}[
        damage
    ]
    picture = ramp(40, 40).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    form = "TIFF" if mode == "CMYK" else "PNG"
    out = fit(reopened(picture, form, icc_profile=raw), (40, 40), 3)
    assert torch.equal(out, fit(reopened(picture, form), (40, 40), 3))


def test_a_profile_of_other_colours_than_the_picture_s_changes_nothing():
    picture = ramp(40, 40).convert("L")
    out = fit(reopened(picture, icc_profile=profile(1.0)), (40, 40), 1)
    assert torch.equal(out, fit(picture, (40, 40), 1))


def test_numbers_that_are_none_are_black_and_others_are_told():
    values = np.full((8, 8), 0.5, np.float32)
    values[0], values[1] = np.nan, -0.001
    out = fit(reopened(Image.fromarray(values), "TIFF"), (8, 8), 1)[0]
    assert (out[:2] == 0).all() and (out[2:] == 128).all()
    values[3, 3] = -0.5
    with pytest.raises(Unreadable, match="values from -0.5 to 0.5, but 0 to 1 is wanted"):
        fit(reopened(Image.fromarray(values), "TIFF"), (8, 8), 1)
