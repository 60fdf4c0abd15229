"""Laws of the schedule: closed forms, round trips, and what is refused."""

import math

import pytest
import torch
from helpers import scheduler

from models.scheduler import SCHEDULES, DDPMScheduler, SchedulerConfig


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="schedule is one of linear, scaled_linear, cosine, not l"):
        DDPMScheduler(SchedulerConfig(10, "l", "v", clip_x0=False))
    with pytest.raises(ValueError, match="prediction is one of v, eps, not x0"):
        DDPMScheduler(SchedulerConfig(10, "linear", "x0", clip_x0=False))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
def test_every_schedule_adds_noise_at_every_step(schedule, num_steps):
    s = scheduler(num_steps, schedule=schedule)
    assert len(s.beta) == num_steps and s.beta.dtype == torch.float64
    assert ((s.beta > 0) & (s.beta < 1)).all() and (s.beta.diff() >= 0).all()


def test_cosine_is_its_closed_form():
    """alpha_bar[t] = f(t + 1) / f(0); at the end, where beta is capped, it stays above 0."""
    s = scheduler(schedule="cosine")
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1000)]
    for t in (0, 1, 500, 998):
        assert s.alpha_bar[t].item() == pytest.approx(f[t + 1] / f[0] if t < 999 else 0, rel=1e-9)
    assert s.beta[999] == 0.999 and s.alpha_bar[999] > 0


def test_scaled_linear_is_linear_in_the_root():
    roots = scheduler(schedule="scaled_linear").beta.sqrt()
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(999), rtol=1e-9, atol=0)
    assert (roots[0] ** 2).item() == pytest.approx(0.0015)
    assert (roots[-1] ** 2).item() == pytest.approx(0.0195)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        DDPMScheduler(SchedulerConfig(0, "linear", "eps", clip_x0=False))


def test_alpha_bar_is_the_product():
    s = scheduler()
    assert s.alpha_bar[0] == 1 - s.beta[0] and s.beta[0] == 1e-4 and s.beta[-1] == 0.02
    product = 1.0
    for t in range(1000):
        product *= 1 - s.beta[t].item()
        assert s.alpha_bar[t].item() == pytest.approx(product, rel=1e-12)


def test_predict_x0_inverts_add_noise():
    s = scheduler()
    x0, eps = torch.randn(2, 50, 3, 4, 4, dtype=torch.float64)
    t = torch.linspace(0, 999, 50).long()
    torch.testing.assert_close(s.predict_x0(s.add_noise(x0, eps, t), eps, t), x0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_eps_of_the_true_v_is_the_noise(schedule):
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, Salimans & Ho 2022, appendix D."""
    s = scheduler(schedule=schedule, prediction="v")
    x0, eps = torch.randn(2, 50, 3, 4, 4, dtype=torch.float64)
    t = torch.linspace(0, 999, 50).long()
    alpha_bar = s.alpha_bar[t].view(-1, 1, 1, 1)
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
    torch.testing.assert_close(s.eps_from_v(s.add_noise(x0, eps, t), v, t), eps)


def test_add_noise_has_the_right_moments():
    """q(xt | x0) = N(sqrt(alpha_bar) x0, (1 - alpha_bar) I), Ho et al. 2020, eq. 4."""
    s, t = scheduler(), 300
    xt = s.add_noise(torch.full((1, 100_000), 2.0), torch.randn(1, 100_000), torch.tensor([t]))
    assert xt.mean().item() == pytest.approx(2 * s.alpha_bar[t].sqrt().item(), abs=0.02)
    assert xt.var().item() == pytest.approx(1 - s.alpha_bar[t].item(), rel=0.02)


def test_clipping_is_the_configs_choice():
    far = torch.full((1, 1, 2, 2), 50.0)
    zero, t = torch.zeros_like(far), torch.tensor([10])
    assert scheduler(clip_x0=True).predict_x0(far, zero, t).max() == 1
    assert scheduler(clip_x0=False).predict_x0(far, zero, t).max() > 50


@pytest.mark.parametrize("n", [1, 3, 7, 50, 333, 600, 999, 1000])
def test_timesteps_start_at_the_last_and_end_clean(n):
    pairs = scheduler().timesteps(n)
    kept = [t for t, _ in pairs]
    assert len(pairs) == n and kept[0] == 999 and pairs[-1][1] == -1
    assert kept == sorted(set(kept), reverse=True) and min(kept) >= 0
    assert [p for _, p in pairs[:-1]] == kept[1:]


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(n):
    with pytest.raises(ValueError, match="1 to 1000"):
        scheduler().timesteps(n)


def test_last_step_adds_no_noise():
    s = scheduler()
    xt, eps_hat = torch.randn(2, 1, 1, 4, 4)
    once = s.step(xt, eps_hat, 0, -1, torch.randn_like(xt))
    assert torch.equal(once, s.step(xt, eps_hat, 0, -1, None))
    assert torch.equal(once, s.predict_x0(xt, eps_hat, torch.tensor([0])))


def test_sigma_of_a_full_step_is_sqrt_beta():
    """sigma_t = sigma_scale * sqrt(beta_t): Ho et al. 2020, algorithm 2; 0.95 is the low sigma."""
    s = scheduler()
    zero, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for t in (1, 10, 500, 999):
        sigma = s.step(zero, zero, t, t - 1, noise, sigma_scale=0.95).item()
        assert sigma == pytest.approx(0.95 * s.beta[t].sqrt().item(), rel=1e-6)


def test_sigma_of_a_skipping_step_is_the_posteriors():
    s, t, t_prev = scheduler(), 499, 479
    zero, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    alpha_bar, alpha_bar_prev = s.alpha_bar[t].item(), s.alpha_bar[t_prev].item()
    want = 0.9 * math.sqrt(
        (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    )
    got = s.step(zero, zero, t, t_prev, noise, sigma_scale=0.9, posterior_sigma=True).item()
    assert got == pytest.approx(want, rel=1e-6)


def test_coefficients_follow_the_images_type():
    s, t = scheduler(), torch.tensor([5])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.ones(1, 1, 2, 2, dtype=dtype)
        assert s.add_noise(x, x, t).dtype == s.predict_x0(x, x, t).dtype == dtype
