"""Sets of images: how they are picked and described, and what is said of how they compare."""

import pytest
import torch
from helpers import cpu, randomize, small_autoencoder
from PIL import Image

from common.errors import UserError
from data.latents import LatentStats
from data.pixels import to_pixels, to_uint8
from generation import image_sets
from generation.image_sets import (
    Space,
    autoencoder_spaces,
    compare_colours,
    compare_features,
    compare_nearest,
    describe,
    read_pictures,
    tensor_images,
)
from generation.seeing import TrainingSet
from training.checkpoint import fingerprint
from training.codec import LatentCodec
from training.figures import single_image


def test_colours_are_those_of_the_images():
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[:, 0] = torch.tensor([10, 20, 30, 40]).view(4, 1, 1)
    images[:, 2, 0] = 200  # half of each image
    space = Space("pixels", lambda x: x.flatten(1))
    described = describe([images[:2], images[2:]], [space], "", 4, lambda x: x)
    result = compare_colours({"these": described})["these"]
    assert result["mean"] == [25, 0, 100]
    assert result["spread"] == [pytest.approx(12.9, abs=0.05), 0, 0]
    assert result["contrast"] == [0, 0, pytest.approx(115.5, abs=0.05)]
    one = describe([images[:1]], [space], "", 1)
    assert compare_colours({"one": one})["one"]["spread"] == [0, 0, 0]
    torch.testing.assert_close(described.features["pixels"], to_pixels(images).flatten(1))
    assert torch.equal(to_uint8(described.x0), images)


def test_too_few_images_get_a_sentence():
    features = torch.randn(30, 8)
    result = compare_features({"samples": features, "floor": features}, features[:15])
    text = "8 features need 16 images of each kind; there are 30 samples, 30 floor, 15 test images"
    assert result == {"too few": text}
    result = compare_features({"samples": features}, features)
    assert result["samples"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert result["samples"]["precision"] == 1


def test_samples_of_half_the_kinds_have_precision_but_half_the_recall():
    here, there = torch.randn(2, 200, 2)
    real = torch.cat([here[:100], there[:100] + 100])
    result = compare_features({"samples": here + 0.01}, real)["samples"]
    assert result["precision"] > 0.8 and 0.4 < result["recall"] <= 0.5


def test_nothing_to_describe_is_an_error():
    with pytest.raises(ValueError, match="none of the test images can be read"):
        describe([], [Space("pixels", lambda x: x.flatten(1))], "test images", 0)


def test_only_the_first_images_are_looked_up(monkeypatch):
    """compare_nearest is of the first MOST_NEAREST; copies are at distance 0."""
    monkeypatch.setattr(image_sets, "MOST_NEAREST", 6)
    images = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8)
    described = describe(images.split(4), [], "samples", 10, lambda x: x)
    assert torch.equal(to_uint8(described.x0), images[:6]) and len(described) == 10
    training = TrainingSet(lambda r: to_pixels(images[list(r)]), 10)
    result = compare_nearest({"samples": described}, training)["samples"]
    assert result == {"least": 0, "5 %": 0, "median": 0, "images": 6}


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_they_were_written(tmp_path, channels):
    images = torch.randint(0, 256, (3, channels, 5, 4), dtype=torch.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, x in zip(paths, to_pixels(images), strict=True):
        single_image(x).save(path)
    assert Image.open(paths[0]).size == (4, 5)
    (batch,) = read_pictures(paths)
    assert torch.equal(batch, images)


def test_images_are_picked_alike_at_every_call():
    images = torch.arange(250, dtype=torch.uint8).view(250, 1, 1, 1)
    real = tensor_images("numbers", images)
    assert real.size == 250 and [len(b) for b in real.batches(150)] == [100, 50]
    first = torch.cat(list(real.batches(150)))
    assert torch.equal(first, torch.cat(list(real.batches(150))))
    assert len(first.unique()) == 150 and not torch.equal(first, images[:150])


def test_spaces_of_an_autoencoder_are_its_latents_and_features():
    autoencoder = randomize(small_autoencoder())
    stats = LatentStats((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    latents, deepest = autoencoder_spaces(LatentCodec(autoencoder, stats, cpu()))
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        z = stats.whiten(autoencoder.encode(x).mean)  # 16x12
        want = torch.nn.functional.adaptive_avg_pool2d(z, (8, 8)).flatten(1)
        torch.testing.assert_close(latents.features(x), want)
        h = autoencoder.encoder.features(x)
        torch.testing.assert_close(deepest.features(x), h.mean(dim=(2, 3)))
    assert fingerprint(autoencoder)[:8] in latents.name


def test_a_picture_that_cannot_be_used_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name, content in (("b.png", b"no picture"), ("c.png", None)):
        path = tmp_path / name
        Image.new("RGB", (5, 5)).save(path) if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*remove it: it is made again"):
            list(read_pictures([tmp_path / "a.png", path]))
