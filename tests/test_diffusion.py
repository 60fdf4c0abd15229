"""Loss and sampler against exact oracles: a Gaussian's own denoiser must give that Gaussian."""

import math

import pytest
import torch
from helpers import randomize, scheduler, small_unet

from models.diffusion import denoising_loss, picture_noise, sample

MEAN, STD = 0.7, 0.5


def exact_denoiser(s):
    """E[eps | xt] for x0 ~ N(MEAN, STD^2): linear in xt."""

    def model(xt, t):
        bar = s.alpha_bar[t].view(-1, 1, 1, 1)
        variance = bar * STD**2 + 1 - bar
        return (1 - bar).sqrt() * (xt - bar.sqrt() * MEAN) / variance

    return model


def recursion(s, num_steps, sigma_scale):
    """Mean and variance of sample() with the exact denoiser, in closed form, step by step."""
    mean, variance = 0.0, 1.0
    for t, t_prev in s.timesteps(num_steps):
        bar = s.alpha_bar[t].item()
        prev = s.alpha_bar[t_prev].item() if t_prev >= 0 else 1.0
        beta = 1 - bar / prev
        # x0_hat = E[x0 | xt] = MEAN + gain * (xt - sqrt(bar) * MEAN)
        gain = math.sqrt(bar) * STD**2 / (bar * STD**2 + 1 - bar)
        of_x0 = math.sqrt(prev) * beta / (1 - bar)
        of_xt = math.sqrt(1 - beta) * (1 - prev) / (1 - bar)
        slope = of_x0 * gain + of_xt
        mean = of_x0 * (MEAN - gain * math.sqrt(bar) * MEAN) + slope * mean
        noise = beta if num_steps == s.num_steps else beta * (1 - prev) / (1 - bar)
        variance = slope**2 * variance + (sigma_scale**2 * noise if t_prev >= 0 else 0)
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("num_steps", "sigma_scale"), [(1000, 1.0), (1000, 0.95), (50, 1.0), (7, 0.8)]
)
def test_sampler_follows_the_closed_form(num_steps, sigma_scale):
    s, n = scheduler(), 40_000
    generator = torch.Generator().manual_seed(0)
    x = sample(
        exact_denoiser(s),
        s,
        lambda: torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64),
        num_steps,
        sigma_scale,
    )
    mean, std = recursion(s, num_steps, sigma_scale)
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert x.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))


def test_full_sampling_comes_to_the_gaussian():
    mean, std = recursion(scheduler(), 1000, 1.0)
    assert mean == pytest.approx(MEAN, abs=0.01) and std == pytest.approx(STD, rel=0.02)
    assert recursion(scheduler(), 1000, 0.95)[1] < std  # low sigma: less variety


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


def test_picture_depends_on_its_seed_alone():
    s, model = scheduler(), randomize(small_unet(2))
    together = sample(model, s, picture_noise([3, 4, 5], (2, 8, 12), "cpu"), 5)
    alone = sample(model, s, picture_noise([5], (2, 8, 12), "cpu"), 5)
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_on_step_is_called_once_a_step():
    calls = []
    draw = picture_noise([0], (1, 4, 4), "cpu")
    sample(lambda x, t: x, scheduler(), draw, 13, on_step=lambda: calls.append(1))
    assert len(calls) == 13
