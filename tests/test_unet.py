"""The UNet: shapes, time, dropout."""

import pytest
import torch
from helpers import randomize, small_unet

from models.unet import UNet, UNetConfig


@pytest.mark.parametrize("size", [(28, 28), (16, 24), (52, 44), (4, 4)])
def test_unet_keeps_the_shape(size):
    x = torch.randn(2, 1, *size)
    assert randomize(small_unet())(x, torch.tensor([1, 2])).shape == x.shape


def test_unet_has_no_attention():
    assert not any(
        "attn" in name or "attention" in name for name, _ in small_unet().named_modules()
    )


def test_t_changes_the_prediction():
    model, x = randomize(small_unet()), torch.randn(1, 1, 8, 8)
    assert (model(x, torch.tensor([3])) - model(x, torch.tensor([900]))).abs().max() > 1e-4


def test_dropout_only_while_training():
    model = randomize(UNet(UNetConfig(1, (8, 8), 1, 8, 0.5)))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert torch.equal(model(x, t), model(x, t))
    model.train()
    assert not torch.equal(model(x, t), model(x, t))
