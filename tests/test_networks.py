"""Shapes, sizes that are refused, and the discriminator's losses."""

import pytest
import torch
from helpers import randomize, small_autoencoder, small_unet

from models.autoencoder import AutoencoderConfig, AutoencoderKL, DiagonalGaussian
from models.blocks import norm_groups, timestep_embedding
from models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    with_low_frequencies,
)
from models.unet import UNet, UNetConfig


@pytest.mark.parametrize("size", [(28, 28), (16, 24), (52, 44), (4, 4)])
def test_unet_keeps_the_shape(size):
    x = torch.randn(2, 1, *size)
    assert randomize(small_unet())(x, torch.tensor([1, 2])).shape == x.shape


@pytest.mark.parametrize(
    ("size", "nearest"), [((30, 28), "32x28"), ((28, 27), "28x28"), ((2, 9), "4x8")]
)
def test_sizes_that_do_not_divide_are_refused(size, nearest):
    with pytest.raises(ValueError, match=f"multiples of 4.*nearest that works is {nearest}"):
        small_unet()(torch.randn(1, 1, *size), torch.tensor([0]))
    with pytest.raises(ValueError, match=f"nearest that works is {nearest}"):
        small_autoencoder(1).encode(torch.randn(1, 1, *size))


@pytest.mark.parametrize("config", [((30, 60), 1, 8), ((8, 12), 1, 8), ((), 1, 8), ((8,), 0, 8)])
def test_impossible_widths_are_refused(config):
    with pytest.raises(ValueError, match="widths"):
        UNet(UNetConfig(1, *config, 0.0))
    with pytest.raises(ValueError, match="widths"):
        AutoencoderKL(AutoencoderConfig(1, 3, *config))


def test_unet_has_no_attention():
    assert not any(
        "attn" in name or "attention" in name for name, _ in small_unet().named_modules()
    )


def test_t_changes_the_prediction():
    model, x = randomize(small_unet()), torch.randn(1, 1, 8, 8)
    assert (model(x, torch.tensor([3])) - model(x, torch.tensor([900]))).abs().max() > 1e-4


def test_embedding_is_cos_then_sin():
    emb = timestep_embedding(torch.tensor([0, 7]), 6)
    assert emb[0].tolist() == [1, 1, 1, 0, 0, 0]
    torch.testing.assert_close(emb[1].square().view(2, 3).sum(0), torch.ones(3))
    assert emb[1, 0].item() == pytest.approx(torch.tensor(7.0).cos().item())


def test_dropout_only_while_training():
    model = randomize(UNet(UNetConfig(1, (8, 8), 1, 8, 0.5)))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert torch.equal(model(x, t), model(x, t))
    model.train()
    assert not torch.equal(model(x, t), model(x, t))


def test_posterior_samples_have_its_moments():
    posterior = DiagonalGaussian(
        torch.full((1, 1, 200, 200), 1.5), torch.full((1, 1, 200, 200), -1.0)
    )
    z = posterior.sample()
    assert z.mean().item() == pytest.approx(1.5, abs=0.02)
    assert z.var().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.05)


def test_kl_is_that_of_torch():
    mean, logvar = torch.randn(2, 5, 3, 4, 4)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), want)
    assert DiagonalGaussian(torch.zeros(3), torch.zeros(3)).kl().abs().max() == 0


def test_encode_and_decode_are_the_strides_apart():
    model = randomize(small_autoencoder())
    posterior = model.encode(torch.randn(2, 3, 16, 32))
    assert posterior.mean.shape == posterior.logvar.shape == (2, 3, 4, 8)
    assert torch.equal(posterior.moments()[:, :3], posterior.mean)
    assert torch.equal(posterior.moments()[:, 3:], posterior.logvar)
    x = torch.randn(2, 3, 16, 32)
    x_hat, _ = model(x)
    assert x_hat.shape == (2, 3, 16, 32)
    assert not torch.equal(x_hat, model(x)[0])  # of a draw, while training


def test_discriminator_sees_patches():
    """One logit per patch, each image judged alone."""
    model = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 3)))
    x = torch.randn(2, 3, 64, 48)
    logits = model(x)
    assert logits.shape == (2, 1, 6, 4)
    torch.testing.assert_close(model(x[:1]), logits[:1])


def test_low_frequencies_are_exchanged_and_detail_is_kept():
    x = torch.randn(2, 3, 16, 24)
    shift = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(with_low_frequencies(x + shift, x), x)
    row, column = torch.arange(16)[:, None], torch.arange(24)
    grain = ((row + column) % 2 * 2 - 1).float()  # its mean over any block is 0
    torch.testing.assert_close(with_low_frequencies(x + grain, x), x + grain)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert generator_loss(fake).item() == pytest.approx(1.5)
    assert discriminator_loss(torch.tensor([5.0]), torch.tensor([-5.0])) == 0


@pytest.mark.parametrize(("width", "groups"), [(8, 1), (16, 1), (24, 3), (32, 2), (40, 5), (64, 4)])
def test_norm_groups_divide_every_width_and_are_wide_enough(width, groups):
    assert norm_groups(width) == groups
    assert width % groups == 0 and width // groups in (8, 16)
