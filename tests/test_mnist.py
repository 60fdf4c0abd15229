"""MNIST from every place its files may be in; damaged and missing ones."""

import gzip
import os

import numpy as np
import pytest
import torch
from helpers import REAL_DATA, tree, write_mnist

from common.errors import UserError
from data import download
from data.mnist import mnist_images, mnist_labels


def write_idx(path, digits, gz):
    content = np.array([2051, *digits.shape], ">u4").tobytes() + digits.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(path.name + ".gz") if gz else path
    path.write_bytes(gzip.compress(content) if gz else content)
    return path


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
def test_mnist_from_a_read_only_folder(tmp_path, downloads, place, gz):
    digits = np.random.default_rng(0).integers(0, 256, (2, 5, 28, 28), dtype=np.uint8)
    folder = tmp_path / place
    write_idx(folder / "train-images-idx3-ubyte", digits[0], gz)
    write_idx(folder / "t10k-images-idx3-ubyte", digits[1, :3], gz)
    before = tree(tmp_path)
    folder.chmod(0o555)
    try:
        train, test = mnist_images(tmp_path, "train"), mnist_images(tmp_path, "test")
    finally:
        folder.chmod(0o755)
    assert torch.equal(train, torch.tensor(digits[0])[:, None])
    assert torch.equal(test, torch.tensor(digits[1, :3])[:, None])
    assert tree(tmp_path) == before and not downloads


def test_missing_mnist_is_downloaded_once(tmp_path, downloads):
    with pytest.raises(ValueError, match="no MNIST in .*four original files.*MNIST/raw"):
        mnist_images(tmp_path / "nowhere", "train")
    assert downloads == [("MNIST", tmp_path / "nowhere")]


def test_downloaded_mnist_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(
        download, "try_torchvision", lambda _, root: write_mnist(root, 7, 3, gz=False)
    )
    assert mnist_images(tmp_path, "test").shape == (3, 1, 28, 28)
    assert mnist_images(tmp_path, "train").shape == (7, 1, 28, 28)


@pytest.mark.parametrize(
    "gz, damage",
    [
        (True, lambda raw: raw[: len(raw) // 2]),
        (True, lambda raw: b"<html>not found</html>"),
        (True, lambda raw: b""),
        (True, lambda raw: raw[:40] + bytes(40) + raw[80:]),
        (False, lambda raw: raw[:-1]),
        (False, lambda raw: raw[:9]),
        (False, lambda raw: b""),
    ],
)
def test_damaged_mnist_is_named(tmp_path, downloads, gz, damage):
    digits = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    path = write_idx(tmp_path / "raw" / "train-images-idx3-ubyte", digits, gz)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.name} is damaged .*delete it") as error:
        mnist_images(tmp_path, "train")
    assert "\n" not in str(error.value) and not downloads


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "train-images-idx3-ubyte"])
@pytest.mark.parametrize("gz", [True, False])
def test_mnist_under_the_names_that_are_usual(tmp_path, downloads, name, gz):
    """gunzip -N and Kaggle write a dot; Kaggle a folder of the other name, too."""
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / name, digits, gz)
    if "." in name:
        (tmp_path / "train-images-idx3-ubyte").mkdir()
    assert torch.equal(mnist_images(tmp_path, "train"), torch.tensor(digits)[:, None])
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    assert mnist_labels(tmp_path, "train").tolist() == [7, 9] and not downloads


def idx(*sizes, content=b"", kind=8):
    return bytes([0, 0, kind, len(sizes)]) + np.array(sizes, ">u4").tobytes() + content


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize(
    "raw",
    [
        idx(0, 28, 28), idx(2**32 - 1, 28, 28), idx(2, 28, 28, content=bytes(1567)),
        idx(2, 28, 28, content=bytes(1569)), idx(2, 32, 32, content=bytes(2048)),
        idx(5, content=bytes(5)), idx(), idx(1, 1, 28, 28, content=bytes(784)), b"\0\0\x08\x03\0",
        idx(1, 28, 28, content=bytes(784), kind=13), b"\1\2\3\4" * 999, b"", idx(2, 28, 28)[:11],
    ],
)  # fmt: skip
def test_what_is_no_file_of_digits_is_named(tmp_path, downloads, raw, gz):
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * gz)
    path.write_bytes(gzip.compress(raw) if gz else raw)
    with pytest.raises(ValueError, match=f"{path.name} is damaged .*delete it") as error:
        mnist_images(tmp_path, "train")
    assert "\n" not in str(error.value) and not downloads


def test_no_more_is_unpacked_than_the_header_says(tmp_path, monkeypatch):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(2, 28, 28, content=bytes(10**7))))
    read = []
    unpack = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, n=-1: read.append(unpack(self, n)) or read[-1]
    )
    with pytest.raises(ValueError, match="1568 values should follow"):
        mnist_images(tmp_path, "train")
    assert sum(map(len, read)) <= 16 + 2 * 28 * 28 + 1


@pytest.mark.parametrize("gz", [True, False])
def test_no_damage_raises_anything_else(tmp_path, downloads, gz):
    digits, rng = np.full((3, 28, 28), 7, np.uint8), np.random.default_rng(0)
    path = write_idx(tmp_path / "train-images-idx3-ubyte", digits, gz)
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    told = 0
    for _ in range(200):
        damaged = raw.copy()
        damaged[rng.integers(0, 40, rng.choice([1, 3]))] = rng.choice(
            [rng.integers(0, 256), 0, 255]
        )
        path.write_bytes(damaged[: rng.choice([len(raw), rng.integers(0, len(raw))], p=[0.8, 0.2])])
        try:
            assert mnist_images(tmp_path, "train").shape == (3, 1, 28, 28)
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
    assert 50 < told < 200


def test_what_may_not_be_read_is_neither_absent_nor_damaged(tmp_path, downloads, monkeypatch):
    path = write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((1, 28, 28), np.uint8), False)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(UserError, match="may not be read; ask its owner"):
                mnist_images(tmp_path, "train")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read .not a regular file."):
        mnist_images(tmp_path, "train")
    assert not downloads


@pytest.mark.skipif(not REAL_DATA, reason="TEST_DATA_ROOT is not set")
@pytest.mark.parametrize(
    "split, count, mean", [("train", 60_000, 0.1307), ("test", 10_000, 0.1325)]
)
def test_real_mnist(downloads, split, count, mean):
    digits = mnist_images(REAL_DATA, split)
    assert digits.shape == (count, 1, 28, 28) and digits.dtype == torch.uint8
    assert digits.double().mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert not downloads
