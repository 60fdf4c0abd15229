"""Data sets of any folder or zip, their splits and stamps."""

import hashlib
import os
import shutil
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import write_images
from pictures import assert_same_images, chunk, encoded, everything, with_chunk, zipped
from PIL import Image, ImageCms

from data.image_files import ImageFiles
from data.images import NUM_SYNTHETIC, FileDataset, open_images, split_by_hash


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
    with pytest.raises(ValueError, match="no readable" if content else "no such folder, zip or"):
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
        assert "smaller than" not in out
    else:
        assert f"{warned} of 3 images are smaller than 30x40" in out


def test_split_is_a_stable_partition():
    names = [f"folder/{i}.jpg" for i in range(20_000)]
    full, half = split_by_hash(names), split_by_hash(names[::2])
    assert sorted(full["train"] + full["valid"]) == sorted(names)
    for split in ("train", "valid"):  # adding files moves none, and order does not matter
        assert set(half[split]) == set(full[split]) & set(names[::2])
        assert set(split_by_hash(names[::-1])[split]) == set(full[split])
    assert 0.04 < len(full["valid"]) / len(names) < 0.06


@pytest.mark.parametrize("place", ["", "top/", "a/b/c/", "./"])
def test_what_is_held_out_does_not_depend_on_where_the_set_lies(place):
    """Folders that all share are the place; folders that tell pictures apart are not."""
    own = [f"{kind}/{i}.jpg" for kind in ("cats", "dogs") for i in range(3000)]
    plain = set(split_by_hash(own)["valid"])
    moved = split_by_hash([place + name for name in own])["valid"]
    assert {name.removeprefix(place) for name in moved} == plain
    cats, dogs = ({n[5:] for n in plain if n.startswith(k)} for k in ("cats", "dogs"))
    assert len(cats & dogs) < 0.2 * len(cats)


def test_a_folder_and_its_zip_hold_out_the_same(tmp_path):
    """Zipped with its own name at the top, as file managers do, or without."""
    folder = write_images(tmp_path / "up" / "pictures", 90, size=(8, 8))
    inner, outer = zipped(folder, tmp_path / "a.zip"), zipped(folder.parent, tmp_path / "b.zip")
    held_out = []
    for path in (folder, folder.parent, inner, outer):
        splits = open_images(str(path), None, (8, 8))
        held_out.append({name.rpartition("/")[2] for name in splits["valid"].names})
    assert len(held_out[0]) > 1 and all(names == held_out[0] for names in held_out)


@pytest.mark.parametrize("data", ["synthetic", "folder"])
def test_grey_is_asked_for(tmp_path, data):
    path = data if data == "synthetic" else str(write_images(tmp_path / "a", 4))
    coloured = open_images(path, None, (16, 16))["train"]
    grey = open_images(path, None, (16, 16), grey=True)["train"]
    red, green, blue = coloured[1][1].double()
    assert grey.channels == 1 and grey[1][1].shape == (1, 16, 16)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (grey[1][1][0].double() - expected).abs().max() <= 1.5


def test_the_stamp_says_that_colours_are_not_srgb(tmp_path):
    """Their pixels are others than those that were made before profiles were read."""
    write_images(tmp_path, 3)
    before, raw = stamps(tmp_path), (tmp_path / "01.png").read_bytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    seen = []
    for profile in (srgb, srgb.replace("sRGB".encode("utf-16-be"), "gRGB".encode("utf-16-be"))):
        content = b"a\0\0" + zlib.compress(profile)
        (tmp_path / "01.png").write_bytes(with_chunk(raw, chunk(b"iCCP", content)))
        seen.append([d.foreign for d in open_images(str(tmp_path), None, (16, 16)).values()])
    assert seen == [[False, False], [True, True]] and stamps(tmp_path) != before


def test_old_stamps_hold():
    """Those of files that are read as they always were: else no run could be gone on with."""
    files = SimpleNamespace(stamps={"a.jpg": 1, "b.jpg": 2})
    dataset = FileDataset(files, ["a.jpg", "b.jpg"], (8, 8), 3, None)
    expected = hashlib.sha256(repr([1, [("a.jpg", 1), ("b.jpg", 2)]]).encode()).hexdigest()
    assert dataset.stamp() == expected


def test_split_has_at_least_one_in_each():
    for n in range(1, 40):
        for prefix in "abcdefgh":
            names = [f"{prefix}{i}.png" for i in range(n)]
            split = split_by_hash(names)
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


@pytest.mark.parametrize("as_zip", [False, True])
def test_files_of_other_kinds_are_counted(tmp_path, capsys, as_zip):
    folder = write_images(tmp_path / "a", 2)
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE", ".hidden"):
        (folder / name).write_text("")
    open_images(str(zipped(folder, tmp_path / "a.zip") if as_zip else folder), None, (16, 16))
    said = capsys.readouterr().out
    assert "not read, by their endings: 2 .heic, " in said
    assert "1 .txt" in said and "1 without ending" in said and "hidden" not in said


def test_a_single_image_is_enough(tmp_path):
    splits = open_images(str(write_images(tmp_path / "one", 1)), None, (16, 16))
    assert splits["train"].names == splits["valid"].names == ["00.png"]


def test_synthetic_faces_are_split_without_overlap():
    splits = open_images("synthetic", None, (16, 16))
    train, valid = (set(splits[k].names) for k in ("train", "valid"))
    assert len(train | valid) == NUM_SYNTHETIC and not train & valid
    assert len(valid) == NUM_SYNTHETIC / 20
    i, first = splits["valid"][3]
    assert i == 3 and first.shape == (3, 16, 16) and first.dtype == torch.uint8
    assert torch.equal(first, splits["valid"][3][1])
    assert splits["train"].stamp() != splits["valid"].stamp()


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


def test_an_index_past_the_end_is_no_bad_file(tmp_path):
    """Else a plain `for item in dataset` would never end."""
    dataset = FileDataset(
        ImageFiles(write_images(tmp_path, 2)), ["00.png", "01.png"], (8, 8), 3, None
    )
    with pytest.raises(IndexError):
        dataset[2]


def test_threads_decode_a_batch_in_its_order(tmp_path):
    """A DataLoader without workers asks for whole batches: the same images as one by one."""
    dataset = open_images(str(write_images(tmp_path / "pictures", 30)), "data", (16, 16))["train"]
    indices = [5, 0, 17, 3, 3, 11, 1]
    items = dataset.__getitems__(indices)
    assert [i for i, _ in items] == indices
    assert all(torch.equal(image, dataset[i][1]) for i, image in items)
    assert dataset.__getitems__([2])[0][0] == 2


def test_pictures_without_contrast_are_warned_of(tmp_path, capsys):
    """12 bits in 16 are all but black, and what is wholly transparent is white."""
    for i in range(20):
        ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
        Image.fromarray(ramp * 16).save(tmp_path / f"{i}.png")
    open_images(str(tmp_path), None, (16, 16))
    said = capsys.readouterr().out
    assert "warning: 16 of 16 images looked at are all but uniform, with values from 0 to 1" in said
    for path in tmp_path.iterdir():
        Image.new("RGBA", (16, 16), (i, 0, 0, 0)).save(path)
    open_images(str(tmp_path), None, (16, 16))
    assert "with values from 255 to 255 of 255" in capsys.readouterr().out
