"""The autoencoder: its posterior, and the shapes of both ways."""

import pytest
import torch
from helpers import randomize, small_autoencoder

from models.autoencoder import DiagonalGaussian


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
