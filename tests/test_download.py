"""A failing download is told; what is there decides."""

import pytest

from data.images import open_images
from data.mnist import mnist_images


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("quota"), ImportError("g")])
def test_a_failing_download_is_told_not_raised(tmp_path, monkeypatch, capsys, error):
    tried = []

    def fail(*_, **__):
        tried.append(error)
        raise error

    monkeypatch.setattr("torchvision.datasets.MNIST", fail)
    monkeypatch.setattr("torchvision.datasets.CelebA", fail)
    with pytest.raises(ValueError, match="no MNIST"):
        mnist_images(tmp_path, "train")
    with pytest.raises(ValueError, match="no CelebA"):
        open_images("celeba", tmp_path, (16, 16))
    assert len(tried) == 2
    assert capsys.readouterr().out.count(f"the download failed: {error}") == 2
