"""CelebA: the same pixels and the official splits from every layout."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REAL_DATA, tree
from pictures import encoded, everything
from PIL import Image

from data import download
from data.images import open_images

needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="TEST_DATA_ROOT is not set")


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


@needs_real_data
def test_real_celeba(downloads):
    """All of CelebA, or one of the parts of it that the project was developed with."""
    splits = open_images("celeba", REAL_DATA, (64, 64))
    counts = [len(splits[k]) for k in ("train", "valid", "test")]
    parts = [24_152, 2_945, 2_903], [32_611, 2_945, 2_903]
    assert counts in ([162_770, 19_867, 19_962], *parts) and not downloads
    partition = Path(REAL_DATA) / "celeba" / "list_eval_partition.txt"
    if partition.is_file():  # the published list agrees
        official = dict(line.split() for line in partition.read_text().splitlines())
        for label, dataset in enumerate(splits.values()):
            assert {official[Path(n).stem + ".jpg"] for n in dataset.names} == {str(label)}
    for dataset in splits.values():
        for i in (0, len(dataset) // 2, len(dataset) - 1):
            image = dataset[i][1]
            assert image.shape == (3, 64, 64) and image.float().std() > 10
            with dataset.files.open(dataset.names[i]) as picture:
                raw = np.asarray(picture.convert("RGB"))
            assert raw.shape in ((218, 178, 3), (78, 64, 3))
            if raw.shape[1] == 64:  # only cropped: as wide as needed
                assert torch.equal(image, torch.tensor(raw[7:71].copy()).permute(2, 0, 1))
