"""Damaged files: what is said of them, and when they are too many."""

import zlib

import numpy as np
import pytest
import torch
from helpers import write_images
from pictures import EXIF_ORIENTATION, encoded, ramp
from PIL import Image, ImageCms, ImageFile, features

from data.damage import BadFiles
from data.image_files import ImageFiles
from data.images import FileDataset, open_images


def test_why_a_file_cannot_be_read_is_said(tmp_path):
    folder = write_images(tmp_path, 2, (64, 64))
    raw = (folder / "00.png").read_bytes()
    (folder / "00.png").write_bytes(raw[: len(raw) // 2])
    (folder / "01.png").write_text("no picture")
    dataset = FileDataset(ImageFiles(folder), ["00.png", "01.png"], (16, 16), 3, None)
    assert "truncated" in dataset[0][1]
    assert dataset[1] == (1, "not an image, or damaged")
    (folder / "01.png").unlink()
    assert dataset[1] == (1, "No such file or directory")


def pictures_of_all_kinds():
    """{name: bytes} of small pictures in every format, mode and compression that are usual."""
    colours, exif = ramp(40, 30), Image.Exif()
    exif[EXIF_ORIENTATION], exif[270], exif[282] = 6, "a description", 72.0
    numbers = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    floats = Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40))
    clear = colours.convert("RGBA")
    clear.putalpha(colours.getchannel("R"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds = {
        "exif.jpg": (colours, {"exif": exif}), "p.jpg": (colours, {"progressive": True}),
        "ink.jpg": (colours.convert("CMYK"), {"icc_profile": srgb.replace(b"RGB ", b"CMYK")}),
        "exif.png": (colours, {"exif": exif}), "clear.png": (clear, {}), "16.png": (numbers, {}),
        "p.png": (colours.quantize(16), {"transparency": 3}), "1.png": (colours.convert("1"), {}),
        "icc.png": (colours, {"icc_profile": srgb.replace(b"sRGB", b"gRGB")}),
        "a.webp": (colours, {"exif": exif}), "l.webp": (clear, {"lossless": True}),
        "a.bmp": (colours, {}), "p.bmp": (colours.quantize(16), {}), "a.gif": (colours, {}),
        "a.ppm": (colours, {}), "16.pgm": (numbers, {}), "f.tif": (floats, {}),
        "exif.tif": (colours, {"exif": exif}), "ink.tif": (colours.convert("CMYK"), {}),
        **{f"{c}.tif": (colours, {"compression": c}) for c in ("tiff_lzw", "jpeg", "packbits")},
    }  # fmt: skip
    if features.check("avif"):
        kinds["a.avif"] = colours, {"exif": exif}
    Image.init()
    return {
        name: encoded(picture, Image.EXTENSION[f".{name.split('.')[1]}"], **options)
        for name, (picture, options) in kinds.items()
    }


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name, raw", pictures_of_all_kinds().items())
def test_no_damage_raises_anything_else(tmp_path, name, raw):
    """Bytes changed anywhere, mostly in the first ones or the last: an image, or why there is
    none."""
    rng, names = np.random.default_rng(zlib.crc32(name.encode())), []
    for i in range(60):
        damaged = np.frombuffer(raw, np.uint8).copy()
        start, length = rng.choice([0, 0, len(raw) - 250]), rng.choice([40, 250, len(raw)])
        where = (start + rng.integers(0, length, rng.choice([1, 2, 16]))) % len(raw)
        damaged[where] = rng.choice([rng.integers(0, 256), 0, 1, 127, 255], len(where))
        names.append(f"{i}-{name}")
        (tmp_path / names[-1]).write_bytes(
            damaged[: rng.choice([len(raw), where.max()], p=[0.9, 0.1])]
        )
    dataset = FileDataset(ImageFiles(tmp_path), names, (16, 16), 3, BadFiles(len(names)))
    good = 0
    for i in range(len(names)):
        image = dataset[i][1]
        if isinstance(image, str):
            assert image and "\n" not in image
        else:
            assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
            good += 1
    assert 0 < good < 60, "the damage is too much, or too little, to show anything"


@pytest.mark.parametrize(
    "error",
    [
        AssertionError, AttributeError, KeyError("Orientation"), LookupError, MemoryError, OSError,
        OverflowError, RecursionError, StopIteration, SystemError, TypeError("a\nb"), UnicodeError,
        ZeroDivisionError,
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", [(Image, "open"), (ImageFile.ImageFile, "load")])
def test_whatever_a_decoder_raises_is_a_reason(tmp_path, monkeypatch, error, where):
    """Whoever decodes bytes that nobody foresaw raises what nobody foresaw."""
    files = ImageFiles(write_images(tmp_path, 2))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*where, fail)
    i, why = FileDataset(files, ["00.png", "01.png"], (16, 16), 3, BadFiles(2))[1]
    assert i == 1 and isinstance(why, str) and why and "\n" not in why


@pytest.mark.parametrize("total, allowed", [(12, 10), (30, 10), (1000, 10), (1099, 10), (2000, 20)])
def test_stops_above_ten_files_and_one_percent(total, allowed, capsys):
    names = [f"{i}.png" for i in range(total)]
    tally = BadFiles(total)
    tally.add(dict.fromkeys(names[:allowed], "damaged"))
    tally.add(dict.fromkeys(names[:allowed], "damaged"))  # the same files again are no new ones
    with pytest.raises(ValueError, match=f"{allowed + 1} of {total} images cannot be read"):
        tally.add({names[allowed]: "damaged"})
    assert len(capsys.readouterr().out.splitlines()) == allowed + 1


@pytest.mark.parametrize("bad, stops", [(10, False), (11, True)])
def test_stops_while_reading_headers(tmp_path, bad, stops):
    write_images(tmp_path, 30)
    for i in range(bad):
        (tmp_path / f"bad{i}.png").write_text("no picture")
    if stops:
        with pytest.raises(ValueError, match="cannot be read"):
            open_images(str(tmp_path), None, (16, 16))
    else:
        assert sum(len(d) for d in open_images(str(tmp_path), None, (16, 16)).values()) == 30
