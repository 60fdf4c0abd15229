"""The loss against exact oracles: what the denoiser of a Gaussian must lose."""

import pytest
import torch
from helpers import MEAN, STD, exact_denoiser, scheduler, small_unet

from models.diffusion import denoising_loss, min_snr_weights


def test_loss_is_the_squared_error_per_sample():
    s, x0 = scheduler(), torch.randn(6, 2, 4, 4)
    eps, t = torch.randn_like(x0), torch.tensor([0, 1, 10, 100, 500, 999])
    losses, same_t = denoising_loss(lambda xt, t: torch.zeros_like(xt), s, x0, t, eps)
    torch.testing.assert_close(losses, eps.square().mean(dim=(1, 2, 3)))
    assert torch.equal(same_t, t)
    perfect, _ = denoising_loss(lambda xt, t: eps, s, x0, t, eps)
    assert torch.equal(perfect, torch.zeros(6))


def test_loss_of_the_exact_denoiser_is_the_conditional_variance():
    """E (eps - E[eps | xt])^2 = bar STD^2 / (bar STD^2 + 1 - bar), and no model does better."""
    s, n = scheduler(), 200_000
    x0 = MEAN + STD * torch.randn(n, 1, 1, 1, dtype=torch.float64)
    for step in (10, 200, 700):
        t = torch.full((n,), step)
        losses, _ = denoising_loss(exact_denoiser(s), s, x0, t)
        bar = s.alpha_bar[step].item()
        want = bar * STD**2 / (bar * STD**2 + 1 - bar)
        assert losses.mean().item() == pytest.approx(want, rel=0.02)


def test_loss_draws_every_t():
    s = scheduler(num_steps=10)
    _, t = denoising_loss(lambda xt, t: xt, s, torch.zeros(2000, 1, 1, 1))
    assert sorted(t.unique().tolist()) == list(range(10))
    assert t.bincount().min() > 120


def test_untrained_network_has_loss_one():
    losses, _ = denoising_loss(small_unet(), scheduler(), torch.randn(64, 1, 8, 8))
    assert losses.mean().item() == pytest.approx(1, abs=0.05)


def test_min_snr_weights_are_those_of_the_paper():
    s = scheduler()
    weights = min_snr_weights(s, 5.0)
    assert weights.mean().item() == pytest.approx(1)
    snr = s.alpha_bar / (1 - s.alpha_bar)
    noisy = snr <= 5
    ratio = weights / torch.where(noisy, 1.0, 5.0 / snr).float()
    torch.testing.assert_close(ratio, ratio[-1].expand(1000))
    assert 100 < int((~noisy).sum()) < 900  # both kinds are there
    assert torch.equal(min_snr_weights(s, 0), torch.ones(1000))
