"""Which sizes are refused; the networks that are built have the strides of models/sizes.py."""

import pytest
import torch
from helpers import small_autoencoder, small_unet

import mnist_diffusion
from common.choices import DENOISER_LEVELS
from latent_diffusion import CHANNEL_MULT
from models.sizes import (
    AUTOENCODER_STRIDE,
    DENOISER_STRIDE,
    IMAGE_MULTIPLE,
    check_divides,
    stride,
)
from train_encoder import autoencoder_network


def test_the_scripts_build_what_the_sizes_are_checked_for():
    assert autoencoder_network(3, 3, 16, 1).stride == AUTOENCODER_STRIDE
    assert stride(CHANNEL_MULT) == DENOISER_STRIDE
    assert len(CHANNEL_MULT) == len(mnist_diffusion.CHANNEL_MULT) == DENOISER_LEVELS
    x = torch.zeros(1, 3, IMAGE_MULTIPLE, 3 * IMAGE_MULTIPLE)
    mean = small_autoencoder().encode(x).mean
    assert small_unet(3)(mean, torch.tensor([0])).shape == mean.shape == (1, 3, 4, 12)


def test_each_level_but_one_halves():
    assert [stride(range(levels)) for levels in (1, 2, 3, 4)] == [1, 2, 4, 8]


@pytest.mark.parametrize("size", [(16, 16), (208, 176), (64, 16)])
def test_multiples_are_taken(size):
    check_divides(*size, IMAGE_MULTIPLE)


@pytest.mark.parametrize(
    ("size", "nearest"), [((30, 28), "32x28"), ((28, 27), "28x28"), ((2, 9), "4x8")]
)
def test_sizes_that_do_not_divide_are_refused(size, nearest):
    with pytest.raises(ValueError, match=f"multiples of 4.*nearest that works is {nearest}"):
        small_unet()(torch.randn(1, 1, *size), torch.tensor([0]))
    with pytest.raises(ValueError, match=f"nearest that works is {nearest}"):
        small_autoencoder(1).encode(torch.randn(1, 1, *size))
