"""Which pictures a folder or zip holds, and opening them."""

import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import write_images
from pictures import encoded, noise_zip, zipped
from PIL import Image

from data import image_files
from data.damage import Unreadable
from data.image_files import ImageFiles


def opened(files, name):
    with files.open(name) as image:
        return image.copy()


@pytest.mark.parametrize("as_zip", [False, True])
def test_found_recursively_without_hidden_files(tmp_path, as_zip):
    folder, picture = tmp_path / ".hidden above" / "pictures", Image.new("L", (8, 8))
    wanted = ["a.jpg", "b.JPEG", "c/d.png", "c/e/f.PNG", "g.webp", "h.bmp", "i j.é.png", "k.jpe"]
    wanted += ["l.jfif", "m.GIF", "n.tif", "o.tiff", "p.ppm", "q.pgm", "no ending", "c/none"]
    ignored = [".a.png", "._a.jpg", "__MACOSX/a.png", "c/__MACOSX/b.png", ".git/a.png", "c/.e.png"]
    ignored += ["@eaDir/a.jpg/b.jpg", "c/@eaDir/c.jpg", ".thumbnails/large/a.png", "#recycle/a.png"]
    ignored += ["$RECYCLE.BIN/S-1-5/a.png", "$Recycle.Bin/b.png", ".hidden", "@Recycle/a.png"]
    forms = {"jpe": "JPEG", "jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF", "pgm": "PPM", "": "PNG"}
    for name in wanted + ignored:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix[1:].lower()
        path.write_bytes(encoded(picture, forms.get(suffix, suffix.upper())))
    (folder / "notes.txt").write_text("no picture")
    (folder / "LICENSE").write_text("no picture")
    (folder / "folder.png").mkdir()
    files = ImageFiles(zipped(folder, tmp_path / "a.zip") if as_zip else folder)
    assert list(files.stamps) == sorted(wanted)
    assert all(opened(files, name).size == (8, 8) for name in wanted)


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


def test_an_open_zip_can_be_sent_to_another_process(tmp_path):
    files = ImageFiles(noise_zip(tmp_path / "a.zip", 2))
    pixels = np.asarray(opened(files, "001.png"))
    other = pickle.loads(pickle.dumps(files))
    assert other.stamps == files.stamps
    np.testing.assert_array_equal(np.asarray(opened(other, "001.png")), pixels)


def test_a_forked_process_opens_the_zip_itself(tmp_path, monkeypatch):
    files, opened = ImageFiles(noise_zip(tmp_path / "a.zip", 2)), []
    zip_file = zipfile.ZipFile

    def counted(*args, **kwargs):
        opened.append(os.getpid())
        return zip_file(*args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", counted)
    for pid in (1, 1, 2, 2, 3):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        with files.open("000.png") as image:
            image.load()
    assert opened == [1, 2, 3]


def why_not(files, name):
    with pytest.raises(Unreadable) as error, files.open(name):
        pass
    return str(error.value)


def test_what_is_no_regular_file_is_named_not_waited_for(tmp_path):
    """In the folder, behind a link, and where it takes a picture's place."""
    folder = write_images(tmp_path / "a", 3)
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe")
    (folder / "device.bmp").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    files = ImageFiles(folder)
    odd = ["device.bmp", "gone.png", "itself.png", "pipe.jpg"]
    assert list(files.stamps) == ["00.png", "01.png", "02.png", *odd]
    assert why_not(files, "pipe.jpg") == why_not(files, "device.bmp") == "not a regular file"
    assert "No such file" in why_not(files, "gone.png")
    (folder / "00.png").unlink()
    os.mkfifo(folder / "00.png")
    assert why_not(files, "00.png") == "not a regular file"
    (tmp_path / "b.zip").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="b.zip cannot be read .not a regular file.; try again"):
        ImageFiles(tmp_path / "b.zip")


@pytest.mark.parametrize("closed", ["", "b", "b/c"])
def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch, closed):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b" / "c", 2)
    (tmp_path / ".Trash").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path) in (tmp_path / closed, tmp_path / ".Trash"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if not closed:
        with pytest.raises(ValueError, match="may not be read; ask its owner"):
            ImageFiles(tmp_path)
    else:
        files = ImageFiles(tmp_path)
        assert list(files.stamps) == ["a/00.png", "a/01.png"]
        assert files.refused == {closed: "Permission denied"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_an_ordinary_user_is_told(tmp_path):
    write_images(tmp_path / "a", 2)
    (write_images(tmp_path / "b", 2) / "00.png").chmod(0)
    (tmp_path / "c").mkdir(mode=0)
    files = ImageFiles(tmp_path)
    assert files.refused == {"c": "Permission denied"}
    assert why_not(files, "b/00.png") == "Permission denied"


def test_a_zip_of_deep_folders_and_odd_names_is_read(tmp_path):
    names = ["a/" * 3000 + "b.png", "../up.png", "/root.png", "C:\\x\\y.png", "./c.png", "d//e.png"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in names:
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            file.writestr(entry, encoded(Image.new("L", (8, 8))))
    files = ImageFiles(tmp_path / "a.zip")
    assert sorted(files.stamps) == sorted(name.replace("\\", "/") for name in names)
    assert all(opened(files, name).size == (8, 8) for name in files.stamps)


def test_what_is_too_large_is_not_read(tmp_path, monkeypatch):
    """A file full of holes, and entries of a zip: one that says so, and one that does not."""
    folder = write_images(tmp_path / "a", 1)
    (folder / "a.bmp").write_bytes(encoded(Image.new("L", (8, 8)), "BMP"))
    os.truncate(folder / "a.bmp", 20 * 10**9)
    files = ImageFiles(folder)
    assert why_not(files, "a.bmp") == "20.0 GB are too many for a picture"
    monkeypatch.setattr(image_files, "MOST_BYTES", 2**20)
    read, unpack = [], zipfile.ZipExtFile.read
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda self, n=None: read.append(unpack(self, n)) or read[-1]
    )
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(4 * 2**20))
    assert why_not(ImageFiles(path), "a.png") == "0.0 GB are too many for a picture" and not read
    raw = path.read_bytes().replace(struct.pack("<I", 4 * 2**20), struct.pack("<I", 2**19))
    path.write_bytes(raw)  # it says that it is smaller
    assert why_not(ImageFiles(path), "a.png")
    assert sum(map(len, read)) <= 2**19


def test_damaged_zips_are_one_message(tmp_path):
    """Bytes changed anywhere in its directory: names, or that it cannot be read."""
    path, rng = noise_zip(tmp_path / "a.zip", 2), np.random.default_rng(0)
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    directory = path.read_bytes().index(b"PK\1\2")
    told = 0
    for _ in range(300):
        damaged = raw.copy()
        where = rng.integers(directory, len(raw), rng.choice([1, 3]))
        damaged[where] = rng.choice([rng.integers(0, 256), 0, 255], len(where))
        path.write_bytes(damaged)
        try:
            files = ImageFiles(path)
        except ValueError as error:
            assert "is not a readable zip" in str(error) and "\n" not in str(error)
            told += 1
            continue
        for name in files.stamps:
            with suppress(Unreadable), files.open(name) as image:
                assert image.size == (96, 96)
    assert 20 < told < 280
