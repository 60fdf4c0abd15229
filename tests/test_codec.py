"""Encoding and decoding, by an autoencoder and by the codecs on top of it."""

import pytest
import torch
from helpers import cpu, randomize, small_autoencoder

from data.latents import LatentStats
from training.codec import SLICE, LatentCodec, PixelCodec, encode, in_slices, reconstruct

STATS = LatentStats((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.fixture
def codec():
    return LatentCodec(randomize(small_autoencoder()), STATS, cpu())


def test_slices_change_nothing():
    x = torch.randn(37, 3)
    assert torch.equal(in_slices(torch.exp, x), x.exp())


def test_pixels_are_their_own_code():
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(PixelCodec().encode(x), x) and torch.equal(PixelCodec().decode(x), x)


def test_the_posterior_is_the_autoencoders_and_has_no_gradient(codec):
    x = torch.randn(2, 3, 8, 8)
    posterior = encode(codec.autoencoder, cpu(), x)
    with torch.no_grad():
        want = codec.autoencoder.encode(x)
    torch.testing.assert_close(posterior.moments(), want.moments())
    assert not posterior.mean.requires_grad


def test_reconstruction_uses_the_posterior_mean(codec):
    model, x = codec.autoencoder, torch.randn(20, 3, 8, 8)
    posterior, once = reconstruct(model, cpu(), x)
    _, again = reconstruct(model, cpu(), x)
    assert torch.equal(once, again)
    torch.testing.assert_close(once, model.decode(model.encode(x).mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.logvar, model.encode(x).logvar, rtol=1e-4, atol=1e-5)


def test_latents_are_whitened_means_and_decoding_unwhitens_them(codec):
    model, x = codec.autoencoder, torch.randn(2, 3, 8, 8)
    x0 = codec.encode(x)
    with torch.no_grad():
        torch.testing.assert_close(x0, STATS.whiten(model.encode(x).mean))
    torch.testing.assert_close(codec.decode(x0), reconstruct(model, cpu(), x)[1])
    assert not codec.decode(x0).requires_grad


def test_features_are_the_encoders_deepest_averaged_over_the_positions(codec):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        h = codec.autoencoder.encoder.features(x)
    torch.testing.assert_close(codec.features(x), h.mean(dim=(2, 3)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_that_leaves_an_autoencoder_is_float32(precision):
    codec = LatentCodec(randomize(small_autoencoder()), STATS, cpu(precision))
    x = torch.randn(2, 3, 8, 8)
    posterior, x_hat = reconstruct(codec.autoencoder, codec.runtime, x)
    x0 = codec.encode(x)
    made = posterior.mean, posterior.logvar, x_hat, x0, codec.decode(x0), codec.features(x)
    assert {t.dtype for t in made} == {torch.float32}


def test_decoding_is_done_in_slices(codec, monkeypatch):
    sizes, decode = [], codec.autoencoder.decode
    monkeypatch.setattr(codec.autoencoder, "decode", lambda z: sizes.append(len(z)) or decode(z))
    images = codec.decode(torch.randn(40, 3, 2, 2))
    assert images.shape == (40, 3, 8, 8) and max(sizes) <= SLICE == 16 and sum(sizes) == 40
