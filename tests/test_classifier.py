"""The classifier of digits: what it learns, keeps, and refuses."""

import pytest
import torch
from helpers import REAL_DATA

from data.mnist import mnist_images, mnist_labels
from data.pixels import to_pixels
from generation import classifier


@pytest.mark.skipif(not REAL_DATA, reason="needs TEST_DATA_ROOT")
def test_labels_are_the_digits(tmp_path):
    """MNIST's own counts of its test set; and the classifier learns them within 100 steps."""
    labels = mnist_labels(REAL_DATA, "test")
    counts = torch.bincount(labels).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images = mnist_images(REAL_DATA, "train")[:3000], mnist_labels(REAL_DATA, "train")[:3000]
    torch.manual_seed(0)
    model = classifier._train(*images)
    test = mnist_images(REAL_DATA, "test")[:1000]
    assert classifier.accuracy(model, test, labels[:1000]) > 0.9
    assert classifier.features(model, to_pixels(test)).shape == (1000, 128)


def test_classifier_is_kept_and_refuses_what_it_cannot_learn(tmp_path, monkeypatch):
    digits = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    monkeypatch.setattr(classifier, "mnist_images", lambda root, split: digits)
    monkeypatch.setattr(classifier, "mnist_labels", lambda root, split: torch.arange(64) % 10)
    with pytest.raises(ValueError, match="is this MNIST"):
        classifier.mnist_classifier("nowhere", tmp_path / "c.safetensors")
    monkeypatch.setattr(classifier, "AT_LEAST", 0.0)
    state = torch.get_rng_state()
    first = classifier.mnist_classifier("nowhere", tmp_path / "c.safetensors")
    assert torch.equal(torch.get_rng_state(), state)  # the run's own numbers are untouched
    monkeypatch.setattr(classifier, "_train", None)  # read, not trained again
    again = classifier.mnist_classifier("nowhere", tmp_path / "c.safetensors")
    x = torch.rand(5, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(classifier.features(again, x), classifier.features(first, x))
