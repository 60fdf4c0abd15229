"""MNIST from every place its files may be in; damaged and missing ones."""

import gzip

import numpy as np
import pytest
import torch
from helpers import REAL_DATA, tree, write_mnist

from data import download
from data.mnist import mnist_images


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


@pytest.mark.skipif(not REAL_DATA, reason="TEST_DATA_ROOT is not set")
@pytest.mark.parametrize(
    "split, count, mean", [("train", 60_000, 0.1307), ("test", 10_000, 0.1325)]
)
def test_real_mnist(downloads, split, count, mean):
    digits = mnist_images(REAL_DATA, split)
    assert digits.shape == (count, 1, 28, 28) and digits.dtype == torch.uint8
    assert digits.double().mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert not downloads
