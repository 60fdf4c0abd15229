"""The loss against exact oracles: what the denoiser of a Gaussian must lose."""

import pytest
import torch
from helpers import MEAN, STD, exact_denoiser, scheduler, small_unet

from models.diffusion import (
    LOG_MEAN,
    LOG_STD,
    Objective,
    denoising_loss,
    min_snr_weights,
    timestep_density,
    timesteps_of,
)
from models.draws import Draws
from training import denoiser


def test_loss_is_the_squared_error_per_sample():
    s, x0 = scheduler(), torch.randn(6, 2, 4, 4)
    eps, t = torch.randn_like(x0), torch.tensor([0, 1, 10, 100, 500, 999])
    losses = denoising_loss(lambda xt, t: torch.zeros_like(xt), s, x0, t, eps)
    torch.testing.assert_close(losses, eps.square().mean(dim=(1, 2, 3)))
    perfect = denoising_loss(lambda xt, t: eps, s, x0, t, eps)
    assert torch.equal(perfect, torch.zeros(6))


def test_loss_of_the_exact_denoiser_is_the_conditional_variance():
    """E (eps - E[eps | xt])^2 = alpha_bar STD^2 / (alpha_bar STD^2 + 1 - alpha_bar), and no model
    does better."""
    s, n = scheduler(), 200_000
    x0 = MEAN + STD * torch.randn(n, 1, 1, 1, dtype=torch.float64)
    for step in (10, 200, 700):
        t = torch.full((n,), step)
        losses = denoising_loss(exact_denoiser(s), s, x0, t, torch.randn_like(x0))
        alpha_bar = s.alpha_bar[step].item()
        want = alpha_bar * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        assert losses.mean().item() == pytest.approx(want, rel=0.02)


def test_untrained_network_has_loss_one():
    t, (x0, eps) = torch.randint(1000, (64,)), torch.randn(2, 64, 1, 8, 8)
    losses = denoising_loss(small_unet(), scheduler(), x0, t, eps)
    assert losses.mean().item() == pytest.approx(1, abs=0.05)


def test_min_snr_weights_are_those_of_the_paper():
    s = scheduler()
    weights = min_snr_weights(s, 5.0)
    assert weights.mean().item() == pytest.approx(1)
    snr = s.alpha_bar / (1 - s.alpha_bar)
    noisy = snr <= 5
    ratio = weights / torch.where(noisy, 1.0, 5.0 / snr).float()
    torch.testing.assert_close(ratio, ratio[-1].expand(1000))
    assert 100 < int((~noisy).sum()) < 900  # both are there
    assert torch.equal(min_snr_weights(s, 0), torch.ones(1000))


def test_uniform_density_has_all_t_alike():
    density = timestep_density(scheduler(), "uniform")
    assert torch.equal(density, torch.full((1000,), 0.001, dtype=torch.float64))


def test_lognormal_density_is_that_of_the_noise_to_signal_ratio():
    """Three tenths are uniform; of the rest, so much as a normal distribution has below a ratio."""
    s = scheduler()
    density = timestep_density(s, "lognormal")
    assert density.sum().item() == pytest.approx(1)
    assert density.min() >= 0.0003
    rest = (density - 0.0003) / 0.7
    log_ratio = 0.5 * ((1 - s.alpha_bar) / s.alpha_bar).log()
    mean = (rest * log_ratio).sum()
    std = (rest * (log_ratio - mean).square()).sum().sqrt()
    # The schedule's own range cuts a little off the normal distribution's ends.
    assert mean.item() == pytest.approx(LOG_MEAN, abs=0.03)
    assert std.item() == pytest.approx(LOG_STD, abs=0.06)
    below = rest[log_ratio < LOG_MEAN].sum().item()
    assert below == pytest.approx(0.5, abs=0.01)


def test_unknown_density_is_refused():
    with pytest.raises(ValueError, match="uniform or lognormal, not normal"):
        timestep_density(scheduler(), "normal")


@pytest.mark.parametrize("name", ["uniform", "lognormal"])
def test_timesteps_are_drawn_by_their_density(name):
    density = timestep_density(scheduler(num_steps=10), name)
    t = timesteps_of(density.cumsum(0), torch.rand(100_000))
    share = t.bincount(minlength=10) / len(t)
    torch.testing.assert_close(share, density.float(), atol=0.006, rtol=0)
    one = torch.zeros(10).index_fill(0, torch.tensor([3]), 1.0)
    assert timesteps_of(one.cumsum(0), torch.rand(100)).unique().tolist() == [3]
    ends = torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)
    assert timesteps_of(density.cumsum(0), ends).tolist() == [0, 9]


@pytest.mark.parametrize("gamma", [0, 5.0])
@pytest.mark.parametrize("name", ["uniform", "lognormal"])
def test_objective_has_the_same_mean_for_every_density(name, gamma):
    """Against the exact one: the mean over all t of what they count times the expected loss."""
    s, n = scheduler(), 200_000
    x0 = MEAN + STD * torch.randn(n, 1, 1, 1, dtype=torch.float64)
    objective = Objective(s, name, gamma, "cpu")
    loss, losses, t = objective(exact_denoiser(s), x0, Draws(0, 0, range(n)))
    expected = s.alpha_bar * STD**2 / (s.alpha_bar * STD**2 + 1 - s.alpha_bar)
    wanted = (min_snr_weights(s, gamma) * expected).mean().item()
    assert loss.item() == pytest.approx(wanted, rel=0.02)
    share = t.bincount(minlength=1000)[:100].sum().item() / n
    assert share == pytest.approx(timestep_density(s, name)[:100].sum().item(), rel=0.02)
    mean = denoiser.metrics(losses, t, objective.importance)["loss"].item()
    assert mean == pytest.approx(expected.mean().item(), rel=0.02)


@pytest.mark.parametrize("name", ["uniform", "lognormal"])
def test_bands_have_the_mean_of_their_t_whatever_the_density(name):
    """The loss here is t itself, so that a band's mean is its middle."""
    s = scheduler()
    t = timesteps_of(timestep_density(s, name).cumsum(0), torch.rand(200_000))
    sums = denoiser.metrics(t.float(), t, Objective(s, name, 5.0, "cpu").importance)
    middles = 100 * torch.arange(10) + 49.5
    torch.testing.assert_close(sums["band_sum"] / sums["band_count"], middles, atol=1.0, rtol=0)


def test_a_schedule_of_one_step_draws_it():
    one = scheduler(num_steps=1)
    assert timestep_density(one, "lognormal").tolist() == [1]
