"""Laws of the image sources: the same pixels from every layout, closed forms for fit, bad files."""

import io
import itertools
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REAL_DATA, tree, write_images
from PIL import Image

from data import download, images
from data.images import BadFiles, FileDataset, ImageFiles, fit, load_batches, open_images

needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="TEST_DATA_ROOT is not set")
EXIF_ORIENTATION = 274


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reopened(image, kind="PNG", **options):
    """The image as a file gives it: not yet decoded, with the mode that the format has."""
    return Image.open(io.BytesIO(encoded(image, kind, **options)))


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as file:
        for p in sorted(folder.rglob("*")):
            file.write(p, p.relative_to(folder))
    return path


def ramp(width, height):
    """Red counts pixels from the left, green from the top: up to 256 in each direction."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


def everything(dataset):
    assert [dataset[i][0] for i in range(len(dataset))] == list(range(len(dataset)))
    return {name: dataset[i][1] for i, name in enumerate(dataset.names)}


def assert_same_images(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- To [-1, 1] and back ------------------------------------------------------------------------


def test_pixels_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    x = images.to_pixels(values)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(images.to_uint8(x), values)
    torch.testing.assert_close(images.to_display(x), values / 255)
    torch.testing.assert_close(x, -x.flip(0))  # symmetric about 0


def test_values_outside_are_clamped():
    x = torch.tensor([-9.0, -1.01, 1.01, 9.0])
    assert images.to_uint8(x).tolist() == [0, 0, 255, 255]
    assert images.to_display(x).tolist() == [0, 0, 1, 1]


# ---- CelebA -------------------------------------------------------------------------------------

BOUNDARIES = {
    "train": [1, 2, 162_770],
    "valid": [162_771, 182_637],
    "test": [182_638, 202_599],
}


def celeba_files(suffix):
    """{name: bytes} of one picture for each number in BOUNDARIES; the number sets the colour."""
    return {
        f"{number:06d}{suffix}": encoded(
            Image.new("RGB", (16, 20), (number % 251, number % 241, 90)),
            {".jpg": "JPEG", ".webp": "WEBP", ".png": "PNG"}[suffix],
        )
        for numbers in BOUNDARIES.values()
        for number in numbers
    }


def write_celeba(root, layout, suffix=".jpg"):
    """layout: the folder of the files; a zip in it holds the rest of the path."""
    before, is_zip, inside = layout.partition(".zip")
    path = root / (before + is_zip)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_zip:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in celeba_files(suffix).items():
                file.writestr(f"{inside}/{name}".lstrip("/"), content)
    else:
        path.mkdir(exist_ok=True)
        for name, content in celeba_files(suffix).items():
            (path / name).write_bytes(content)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
@pytest.mark.parametrize(
    "layout",
    [
        "celeba/img_align_celeba",  # torchvision's
        "celeba/img_align_celeba.zip/img_align_celeba",  # the official zip
        "celeba/img_align_celeba.zip",
        "celeba/img_align_celeba/img_align_celeba",  # Kaggle's
        "img_align_celeba",
        "img_align_celeba/img_align_celeba",
        "img_align_celeba.zip/img_align_celeba",
        "celeba",
    ],
)
def test_celeba_layouts_and_official_split(tmp_path, downloads, layout, suffix):
    write_celeba(tmp_path, layout, suffix)
    (tmp_path / "celeba").mkdir(exist_ok=True)
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("202599\n")
    before = tree(tmp_path)
    splits = open_images("celeba", tmp_path, (20, 16))
    assert tree(tmp_path) == before and not downloads  # the zip is not unpacked
    assert {k: [int(Path(n).stem) for n in d.names] for k, d in splits.items()} == BOUNDARIES
    files = celeba_files(suffix)
    for dataset in splits.values():
        assert dataset.channels == 3
        for name, image in everything(dataset).items():
            expected = np.asarray(Image.open(io.BytesIO(files[Path(name).name])).convert("RGB"))
            assert torch.equal(image, torch.tensor(expected).permute(2, 0, 1))


def test_an_empty_celeba_folder_does_not_hide_the_zip(tmp_path, downloads):
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    write_celeba(tmp_path, "celeba/img_align_celeba.zip/img_align_celeba")
    assert len(open_images("celeba", tmp_path, (16, 16))["train"]) == len(BOUNDARIES["train"])
    assert not downloads


@pytest.mark.parametrize("images_there", [1, 40])
def test_a_part_of_celeba_is_told_and_has_validation_images(tmp_path, capsys, images_there):
    """As a download leaves it that stopped while the zip was unpacked."""
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(1, images_there + 1):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(folder / f"{i:06d}.jpg")
    splits = open_images("celeba", tmp_path, (16, 16))
    assert f"holds {images_there} of CelebA's 202599 images" in capsys.readouterr().out
    train, valid = (set(splits[k].names) for k in ("train", "valid"))
    assert valid and len(train | valid) == images_there and "test" not in splits
    assert images_there == 1 or not train & valid


def test_downloaded_celeba_is_read(tmp_path, monkeypatch):
    tried = []

    def fetch(name, root):
        tried.append(name)
        write_celeba(root, "celeba/img_align_celeba")

    monkeypatch.setattr(download, "try_torchvision", fetch)
    assert len(open_images("celeba", tmp_path, (16, 16))["train"]) == len(BOUNDARIES["train"])
    assert tried == ["CelebA"]


@pytest.mark.parametrize("exists", [True, False])
def test_missing_celeba_is_one_message(tmp_path, downloads, exists):
    root = tmp_path / "data"
    if exists:
        (root / "celeba" / "img_align_celeba").mkdir(parents=True)
        (root / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(ValueError) as error:
        open_images("celeba", root, (16, 16))
    message = str(error.value)
    assert "img_align_celeba.zip" in message and f"{root}/celeba/" in message
    assert "--data synthetic" in message and "\n" not in message
    assert downloads == [("CelebA", root)]


def test_a_half_downloaded_zip_is_named(tmp_path, downloads):
    write_celeba(tmp_path, "celeba/img_align_celeba.zip/img_align_celeba")
    path = tmp_path / "celeba" / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="img_align_celeba.zip is not a readable zip"):
        open_images("celeba", tmp_path, (16, 16))


# ---- Any folder or zip --------------------------------------------------------------------------


def test_folder_and_zip_are_the_same(tmp_path):
    folder = write_images(tmp_path / "a", 30)
    write_images(folder / "sub" / "deep", 10, mode="L", seed=1)
    from_folder = open_images(str(folder), None, (24, 32))
    from_zip = open_images(str(zipped(folder, tmp_path / "a.zip")), None, (24, 32))
    assert from_folder.keys() == from_zip.keys() == {"train", "valid"}
    for split in from_folder:
        assert from_folder[split].names == from_zip[split].names
        assert from_folder[split].channels == from_zip[split].channels == 3
        assert_same_images(everything(from_folder[split]), everything(from_zip[split]))


@pytest.mark.parametrize("as_zip", [False, True])
def test_found_recursively_without_hidden_files(tmp_path, as_zip):
    folder, picture = tmp_path / ".hidden above" / "pictures", Image.new("L", (8, 8))
    wanted = ["a.jpg", "b.JPEG", "c/d.png", "c/e/f.PNG", "g.webp", "h.bmp", "i j.é.png"]
    ignored = [".a.png", "._a.jpg", "__MACOSX/a.png", "c/__MACOSX/b.png", ".git/a.png", "c/.e.png"]
    for name in wanted + ignored:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix[1:].upper()
        path.write_bytes(encoded(picture, "JPEG" if suffix == "JPG" else suffix))
    (folder / "notes.txt").write_text("no picture")
    (folder / "folder.png").mkdir()
    files = ImageFiles(zipped(folder, tmp_path / "a.zip") if as_zip else folder)
    assert list(files.stamps) == sorted(wanted)
    assert all(files.open(name).size == (8, 8) for name in wanted)


@pytest.mark.parametrize("modes", [["L"], ["1"], ["LA"], ["I;16"], ["L", "1", "LA", "I;16"]])
def test_grey_stays_grey_unless_one_has_colour(tmp_path, modes):
    for i, mode in enumerate(modes):
        picture = Image.fromarray(np.full((8, 8), 200 << 8 * (mode == "I;16"), np.uint16))
        picture = picture if mode == "I;16" else Image.new("L", (8, 8), 200).convert(mode)
        picture.save(tmp_path / f"{i}.png")
    splits = open_images(str(tmp_path), None, (8, 8))
    assert all(d.channels == 1 and d[0][1].shape == (1, 8, 8) for d in splits.values())
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "z.png")
    splits = open_images(str(tmp_path), None, (8, 8))
    for dataset in splits.values():
        assert dataset.channels == 3
        for name, image in everything(dataset).items():
            assert image.shape == (3, 8, 8)
            assert torch.equal(image[0], image[1]) == (name != "z.png")


@pytest.mark.parametrize("content", [None, "empty", "text"])
def test_nothing_to_read_is_refused(tmp_path, content):
    folder = tmp_path / "pictures"
    if content:
        folder.mkdir()
    if content == "text":
        (folder / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="no such folder or zip" if not content else "no readable"):
        open_images(str(folder), None, (8, 8))


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.zip").write_text("no zip")
    with pytest.raises(ValueError, match="a.zip is not a readable zip"):
        open_images(str(tmp_path / "a.zip"), None, (8, 8))


@pytest.mark.parametrize("field, value", [(8, 1), (10, 97)])  # encrypted; an unknown compression
def test_a_zip_that_cannot_be_unpacked_is_refused(tmp_path, field, value):
    path = zipped(write_images(tmp_path / "a", 3), tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())
    entry = raw.find(b"PK\1\2")
    while entry >= 0:  # in every entry of the central directory
        raw[entry + field] = value
        entry = raw.find(b"PK\1\2", entry + 1)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be read"):
        open_images(str(path), None, (8, 8))


@pytest.mark.parametrize("sizes, warned", [([(40, 30)] * 3, None), ([(40, 30)] * 2 + [(39, 30)], 1),
                                           ([(40, 29), (20, 30), (80, 60)], 2)])  # fmt: skip
def test_enlarging_is_warned_of(tmp_path, capsys, sizes, warned):
    for i, size in enumerate(sizes):
        Image.new("L", size).save(tmp_path / f"{i}.png")
    open_images(str(tmp_path), None, (30, 40))
    out = capsys.readouterr().out
    if warned is None:
        assert "warning" not in out
    else:
        assert f"{warned} of 3 images are smaller than 30x40" in out


# ---- The split ----------------------------------------------------------------------------------


def test_split_is_a_stable_partition():
    names = [f"folder/{i}.jpg" for i in range(20_000)]
    full, half = images.split_by_hash(names), images.split_by_hash(names[::2])
    assert sorted(full["train"] + full["valid"]) == sorted(names)
    for split in ("train", "valid"):  # adding files moves none, and order does not matter
        assert set(half[split]) == set(full[split]) & set(names[::2])
        assert set(images.split_by_hash(names[::-1])[split]) == set(full[split])
    assert 0.04 < len(full["valid"]) / len(names) < 0.06


def test_split_has_at_least_one_in_each():
    for n in range(1, 40):
        for prefix in "abcdefgh":
            names = [f"{prefix}{i}.png" for i in range(n)]
            split = images.split_by_hash(names)
            assert split["train"] and split["valid"]
            assert sorted({*split["train"], *split["valid"]}) == sorted(names)
            assert n == 1 or len(split["train"]) + len(split["valid"]) == n


def test_a_name_in_no_encoding_is_read_and_reported(tmp_path, capsys):
    """Latin-1 names from old archives: bytes that are no UTF-8."""
    write_images(tmp_path, 3)
    try:
        for old, new in (("00.png", b"caf\xe9.png"), ("01.png", b"\xe9t\xe9.png")):
            os.rename(tmp_path / old, os.path.join(os.fsencode(tmp_path), new))
    except (OSError, UnicodeDecodeError):
        pytest.skip("this file system takes text only")
    (tmp_path / "02.png").write_text("no picture")
    splits = open_images(str(tmp_path), None, (16, 16))
    assert sum(map(len, splits.values())) == 2
    for dataset in splits.values():
        assert dataset[0][1].shape == (3, 16, 16) and dataset.stamp()
    assert "cannot be read: 02.png (not an image, or damaged)\n" in capsys.readouterr().out


def test_linked_folders_are_read_once(tmp_path):
    """Also where a link leads back to what is above it."""
    write_images(tmp_path / "elsewhere", 3)
    folder = write_images(tmp_path / "folder", 1)
    try:
        (folder / "class").symlink_to(tmp_path / "elsewhere")
        (folder / "class again").symlink_to(tmp_path / "elsewhere")
        (folder / "above").symlink_to(folder)
        (folder / "x.png").symlink_to(tmp_path / "elsewhere" / "00.png")
    except OSError:
        pytest.skip("no links here")
    names = [n.replace(" again", "") for n in ImageFiles(folder).stamps]
    assert sorted(names) == ["00.png", "class/00.png", "class/01.png", "class/02.png", "x.png"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_files_of_other_kinds_are_counted(tmp_path, capsys, as_zip):
    folder = write_images(tmp_path / "a", 2)
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE", ".hidden"):
        (folder / name).write_text("")
    open_images(str(zipped(folder, tmp_path / "a.zip") if as_zip else folder), None, (16, 16))
    said = capsys.readouterr().out
    assert "not read, by their endings: 2 .heic, " in said
    assert "1 .txt" in said and "1 without ending" in said and "hidden" not in said


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


def test_a_single_image_is_enough(tmp_path):
    splits = open_images(str(write_images(tmp_path / "one", 1)), None, (16, 16))
    assert splits["train"].names == splits["valid"].names == ["00.png"]


def test_synthetic_faces_are_split_without_overlap():
    splits = open_images("synthetic", None, (16, 16))
    train, valid = (set(splits[k].names) for k in ("train", "valid"))
    assert len(train | valid) == images.NUM_SYNTHETIC and not train & valid
    assert len(valid) == images.NUM_SYNTHETIC / 20
    i, first = splits["valid"][3]
    assert i == 3 and first.shape == (3, 16, 16) and first.dtype == torch.uint8
    assert torch.equal(first, splits["valid"][3][1])
    assert splits["train"].stamp() != splits["valid"].stamp()


# ---- The stamp ----------------------------------------------------------------------------------


def stamps(path):
    return {k: d.stamp() for k, d in open_images(str(path), None, (16, 16)).items()}


def test_stamp_is_of_the_content_not_the_place(tmp_path):
    folder = write_images(tmp_path / "a", 6)
    before = stamps(folder)
    shutil.copytree(folder, tmp_path / "elsewhere" / "b")
    assert stamps(tmp_path / "elsewhere" / "b") == before
    backwards = tmp_path / "backwards"
    backwards.mkdir()
    for path in sorted(folder.iterdir(), reverse=True):  # written in another order
        shutil.copy(path, backwards)
    assert stamps(backwards) == before


def test_stamp_changes_with_a_file_of_another_size(tmp_path):
    folder = write_images(tmp_path / "a", 6)
    before = stamps(folder)
    for name in [p.name for p in folder.iterdir()]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\0")
        assert stamps(folder) != before
        (folder / name).write_bytes(content)
    assert stamps(folder) == before
    (folder / "05.png").rename(folder / "06.png")
    assert stamps(folder) != before


def test_stamp_changes_with_a_bmp_of_the_same_size(tmp_path):
    folder = write_images(tmp_path, 2)
    Image.new("L", (16, 16), 7).save(folder / "a.BMP")
    before, size = stamps(folder), (folder / "a.BMP").stat().st_size
    Image.new("L", (16, 16), 8).save(folder / "a.BMP")
    assert stamps(folder) != before and (folder / "a.BMP").stat().st_size == size


def test_stamp_of_a_zip_changes_with_a_crc(tmp_path):
    def write(path, last):
        with zipfile.ZipFile(path, "w") as file:
            for i in range(4):
                colour = last if i == 3 else 0
                file.writestr(f"{i}.bmp", encoded(Image.new("L", (16, 16), colour), "BMP"))
        return path

    a, b, c = (write(tmp_path / f"{i}.zip", last) for i, last in enumerate((7, 7, 8)))
    assert a.stat().st_size == b.stat().st_size == c.stat().st_size
    assert stamps(a) == stamps(b) != stamps(c)


# ---- fit ----------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_over_white(alpha, kind):
    image = Image.new("RGBA", (8, 8), (10, 100, 250, alpha))
    out = fit(reopened(image, kind, **({"lossless": True} if kind == "WEBP" else {})), (8, 8), 3)
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


def turned(picture, orientation, kind="PNG", **options):
    """A file of that orientation that stands for picture."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](np.asarray(picture)))
    return reopened(Image.fromarray(stored), kind, exif=exif, **options)


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


# ---- Unreadable files ---------------------------------------------------------------------------


def bad_files(folder, seed=0):
    """One file for each way to be bad; {name: whether its header can be read}."""
    picture = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    png, jpg = encoded(picture), encoded(picture, "JPEG")
    webp, bmp = encoded(picture, "WEBP"), encoded(picture, "BMP")
    (folder / "text.jpg").write_text("no picture at all")
    (folder / "empty.png").write_bytes(b"")
    (folder / "short.png").write_bytes(png[: len(png) // 2])
    (folder / "short.jpg").write_bytes(jpg[: len(jpg) // 2])
    (folder / "short.webp").write_bytes(webp[: len(webp) // 2])
    (folder / "short.bmp").write_bytes(bmp[: len(bmp) // 2])
    return ["empty.png", "short.bmp", "short.jpg", "short.png", "short.webp", "text.jpg"]


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_skipped(tmp_path, capsys, as_zip, workers):
    folder = write_images(tmp_path / "a", 40)
    bad = bad_files(folder)
    path = zipped(folder, tmp_path / "a.zip") if as_zip else folder
    splits = open_images(str(path), None, (16, 16))
    seen = []
    for dataset in splits.values():
        n = len(dataset)
        batches = [list(range(i, min(i + 4, n))) for i in range(0, n, 4)]
        for _ in range(2):  # the second time reports nothing new
            seen = []
            for x, indices in load_batches(dataset, batches, workers):
                assert 0 < len(x) == len(indices) <= 4
                for row, i in zip(x, indices, strict=True):
                    assert torch.equal(row, dataset[i][1])
                seen += [dataset.names[i] for i in indices]
            assert set(seen) == set(dataset.names) - set(bad)
    out = capsys.readouterr().out
    for name in bad:
        assert out.count(name) == 1, name


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_damage_raises_anything_else(tmp_path):
    """Bytes changed anywhere, the EXIF block among them: an image, or why there is none."""
    picture, rng = ramp(40, 30), np.random.default_rng(0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION], exif[270], exif[282] = 6, "a description", 72.0
    names = []
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        raw = encoded(picture, kind)
        for i in range(150):
            damaged = np.frombuffer(raw, np.uint8).copy()
            where = rng.integers(0, rng.choice([40, len(raw)]), rng.choice([1, 4, 16]))
            damaged[where] = rng.integers(0, 256, len(where))
            names.append(f"{i}.{kind.lower()}")
            (tmp_path / names[-1]).write_bytes(damaged[: rng.choice([len(raw), where.max()])])
    for i in range(300):
        damaged = np.frombuffer(exif.tobytes(), np.uint8).copy()
        damaged[rng.integers(6, len(damaged), 3)] = rng.integers(0, 14, 3)
        names.append(f"exif{i}.png")
        picture.save(tmp_path / names[-1], exif=damaged.tobytes())
    dataset = FileDataset(ImageFiles(tmp_path), names, (16, 16), 3, BadFiles(len(names)))
    wrong = []
    for i, name in enumerate(names):
        try:
            image = dataset[i][1]
        except Exception as error:
            wrong.append((name, repr(error)))
        else:
            if isinstance(image, str):
                assert image and "\n" not in image
            else:
                assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    assert not wrong


def test_damaged_exif_does_not_lose_the_picture():
    """The pixels are whole; only what the camera wrote beside them is not."""
    picture = ramp(40, 40)
    damaged = reopened(picture, exif=b"Exif\0\0no such thing as a TIFF header")
    assert torch.equal(fit(damaged, (40, 40), 3), fit(picture, (40, 40), 3))


def test_an_index_past_the_end_is_no_bad_file(tmp_path):
    """Else a plain `for item in dataset` would never end."""
    dataset = FileDataset(
        ImageFiles(write_images(tmp_path, 2)), ["00.png", "01.png"], (8, 8), 3, None
    )
    with pytest.raises(IndexError):
        dataset[2]


def test_stops_when_none_is_left(tmp_path):
    tmp_path.joinpath("a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        open_images(str(tmp_path), None, (16, 16))
    bad_files(tmp_path)
    tmp_path.joinpath("a.jpg").unlink()
    dataset = FileDataset(
        ImageFiles(tmp_path), ["short.png", "short.jpg"], (16, 16), 3, BadFiles(2)
    )
    with pytest.raises(ValueError, match="2 of 2 images cannot be read"):
        list(load_batches(dataset, [[0], [1]], 0))


def test_batches_without_end_that_bring_nothing_stop(tmp_path):
    """Where the tally, of all splits, still allows it."""
    bad_files(tmp_path)
    names = ["short.png", "short.jpg"]
    dataset = FileDataset(ImageFiles(tmp_path), names, (16, 16), 3, BadFiles(9))
    assert list(load_batches(dataset, [[0], [1]], 0)) == []
    with pytest.raises(ValueError, match="none of the 2 images can be read"):
        next(load_batches(dataset, itertools.cycle([[0], [1]]), 0))
    write_images(tmp_path, 1)
    dataset = FileDataset(ImageFiles(tmp_path), [*names, "00.png"], (16, 16), 3, BadFiles(9))
    batches = load_batches(dataset, itertools.cycle([[0], [0], [1], [1], [0], [2]]), 0)
    assert [next(batches)[1] for _ in range(3)] == [[2]] * 3


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


# ---- Batches ------------------------------------------------------------------------------------


def noise_zip(path, n):
    """Pictures that do not compress, so that reading one takes several reads of the file."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for i in range(n):
            picture = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
            file.writestr(f"{i:03d}.png", encoded(picture))
    return path


def test_workers_read_a_zip_that_the_parent_has_open(tmp_path):
    dataset = open_images(str(noise_zip(tmp_path / "a.zip", 100)), None, (96, 96))["train"]
    dataset[0]  # opened here, before the workers are forked
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[i : i + 3] for i in range(0, len(order), 3)]
    results = []
    for workers in (0, 2):
        results.append(list(load_batches(dataset, batches, workers)))
        assert not dataset.tally.names
    for wanted, (x, i), (y, j) in zip(batches, *results, strict=True):
        assert i == j == wanted and torch.equal(x, y) and x.dtype == torch.uint8


def test_an_open_zip_can_be_sent_to_another_process(tmp_path):
    files = ImageFiles(noise_zip(tmp_path / "a.zip", 2))
    pixels = np.asarray(files.open("001.png"))
    other = pickle.loads(pickle.dumps(files))
    assert other.stamps == files.stamps
    np.testing.assert_array_equal(np.asarray(other.open("001.png")), pixels)


def test_a_forked_process_opens_the_zip_itself(tmp_path, monkeypatch):
    files, opened = ImageFiles(noise_zip(tmp_path / "a.zip", 2)), []
    zip_file = zipfile.ZipFile

    def counted(*args, **kwargs):
        opened.append(os.getpid())
        return zip_file(*args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", counted)
    for pid in (1, 1, 2, 2, 3):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        files.open("000.png").load()
    assert opened == [1, 2, 3]


def test_loading_takes_no_random_number_of_the_run(tmp_path):
    dataset = open_images(str(write_images(tmp_path / "a", 8)), None, (16, 16))["train"]
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(load_batches(dataset, [[0, 1], [2]], workers))
        assert torch.equal(torch.get_rng_state(), before)


# ---- Real data ----------------------------------------------------------------------------------


@needs_real_data
def test_real_celeba(downloads):
    """All of CelebA, or the part of it that README's pictures are made with."""
    splits = open_images("celeba", REAL_DATA, (64, 64))
    counts = [len(splits[k]) for k in ("train", "valid", "test")]
    assert counts in ([162_770, 19_867, 19_962], [24_152, 2_945, 2_903]) and not downloads
    partition = Path(REAL_DATA) / "celeba" / "list_eval_partition.txt"
    if partition.is_file():  # the published list agrees
        official = dict(line.split() for line in partition.read_text().splitlines())
        for label, dataset in enumerate(splits.values()):
            assert {official[Path(n).stem + ".jpg"] for n in dataset.names} == {str(label)}
    for dataset in splits.values():
        for i in (0, len(dataset) // 2, len(dataset) - 1):
            image = dataset[i][1]
            assert image.shape == (3, 64, 64) and image.float().std() > 10
            raw = np.asarray(dataset.files.open(dataset.names[i]).convert("RGB"))
            assert raw.shape in ((218, 178, 3), (78, 64, 3))
            if raw.shape[1] == 64:  # only cropped: as wide as needed
                assert torch.equal(image, torch.tensor(raw[7:71].copy()).permute(2, 0, 1))


def test_threads_decode_a_batch_in_its_order(tmp_path):
    """A DataLoader without workers asks for whole batches: the same images as one by one."""
    dataset = open_images(str(write_images(tmp_path / "pictures", 30)), "data", (16, 16))["train"]
    indices = [5, 0, 17, 3, 3, 11, 1]
    items = dataset.__getitems__(indices)
    assert [i for i, _ in items] == indices
    assert all(torch.equal(image, dataset[i][1]) for i, image in items)
    assert dataset.__getitems__([2])[0][0] == 2
