"""The classifier of digits: what it learns, keeps, and refuses."""

import pytest
import torch
from helpers import REAL_DATA

from data.images import SyntheticFaces
from data.labels import Labels
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
    model = classifier._train(classifier.CONFIG, *images, classifier.EPOCHS)
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


def test_attributes_are_learnt_and_kept(tmp_path, monkeypatch):
    """Of pictures that are red or not, and brighter above or not; one of which nothing is known is
    not even read."""
    torch.manual_seed(0)
    values = torch.randint(0, 2, (400, 2))
    pictures = torch.randint(0, 100, (400, 3, 32, 32))
    pictures[:, 0] += 100 * values[:, 0, None, None]
    pictures[:, :, :16] += 50 * values[:, 1, None, None, None]
    images = SyntheticFaces(range(300), (32, 32))
    images._drawn = dict(enumerate(pictures.to(torch.uint8)))
    signs = (2 * values - 1).to(torch.int8)
    signs[0], images._drawn[0] = 0, torch.zeros(1)  # which no batch could hold
    signs[100:200, 1] = 0
    labels = Labels("attributes", ("Red", "Sunny"), {"train": signs[:300]})
    model = classifier.attribute_classifier(labels, images, 0, tmp_path)
    with torch.no_grad():
        logits = model(to_pixels(pictures[300:].to(torch.uint8)))
    assert ((logits > 0) == (signs[300:] > 0)).double().mean() > 0.9
    monkeypatch.setattr(classifier, "_train", None)  # read, not trained again
    again = classifier.attribute_classifier(labels, images, 0, tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)

    # The same pictures in grey have a classifier of their own.
    monkeypatch.undo()
    grey = SyntheticFaces(range(300), (32, 32), channels=1)
    grey._drawn = {i: x[:1] for i, x in images._drawn.items()}
    monkeypatch.setattr(classifier, "FACE_EPOCHS", 1)
    assert classifier.attribute_classifier(labels, grey, 0, tmp_path).config.image_channels == 1
