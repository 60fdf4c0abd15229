"""Which pictures a folder or zip holds, and opening them."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from helpers import write_images
from pictures import encoded, noise_zip, zipped
from PIL import Image

from data.image_files import ImageFiles


def opened(files, name):
    with files.open(name) as image:
        return image.copy()


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
