"""Samplers against exact oracles: a Gaussian's own denoiser, whose recursion is known in closed
form, the probability-flow ODE that it solves exactly, and diffusers on the same noise."""

import gc
import math

import pytest
import torch
from helpers import MEAN, STD, exact_denoiser, exact_v, randomize, scheduler, small_unet

from models.diffusion import epsilon
from models.samplers import (
    ddim,
    ddpm,
    dpm_solver_pp,
    picture_noise,
    sample,
    slerp,
)

CASES = [
    ("ddpm", {"sigma_scale": 1.0}),
    ("ddpm", {"sigma_scale": 0.95}),
    ("ddim", {"eta": 0.0}),
    ("ddim", {"eta": 0.6, "sigma_scale": 0.9}),
    ("ddim", {"eta": 1.0}),
    ("dpm++", {}),
]


def alpha_bar_at(s, t):
    return s.alpha_bar[t].item() if t >= 0 else 1.0


def marginal_variance(alpha_bar):
    """Of xt, for x0 ~ N(MEAN, STD^2)."""
    return alpha_bar * STD**2 + 1 - alpha_bar


def recursion(s, sampler, timesteps, eta=0.0, sigma_scale=1.0):
    """(mean, variance) at the end, from N(0, 1), in closed form, step by step.

    In y = xt - sqrt(alpha_bar) MEAN every step is linear: y <- slope y + past y_last + noise z.
    """
    first = timesteps[0][0]
    offset = -math.sqrt(alpha_bar_at(s, first)) * MEAN  # the mean of y
    variance, slope_all, slope_last, last = 1.0, 1.0, None, None
    skips = len(timesteps) < s.num_steps
    for t, t_prev in timesteps:
        alpha_bar, alpha_bar_prev = alpha_bar_at(s, t), alpha_bar_at(s, t_prev)
        # x0_hat is MEAN + gain y.
        gain = math.sqrt(alpha_bar) * STD**2 / marginal_variance(alpha_bar)
        posterior = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        noise, past = 0.0, 0.0
        if sampler == "ddpm":
            beta = 1 - alpha_bar / alpha_bar_prev
            slope = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar) * gain
            slope += math.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar)
            noise = sigma_scale**2 * (posterior if skips else beta) * (t_prev >= 0)
        elif sampler == "ddim":
            direction = math.sqrt(1 - alpha_bar_prev - eta**2 * posterior)
            slope = math.sqrt(alpha_bar_prev) * gain
            slope += direction * math.sqrt(1 - alpha_bar) / marginal_variance(alpha_bar)
            noise = sigma_scale**2 * eta**2 * posterior
        elif t_prev < 0:
            slope = gain
        else:  # e^-h = sqrt(alpha_bar (1 - alpha_bar_prev) / (alpha_bar_prev (1 - alpha_bar)))
            shrink = math.sqrt(
                alpha_bar * (1 - alpha_bar_prev) / (alpha_bar_prev * (1 - alpha_bar))
            )
            h, weight = -math.log(shrink), math.sqrt(alpha_bar_prev) * (1 - shrink)
            extra = h / (2 * last[0]) if last else 0.0
            slope = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) + weight * (1 + extra) * gain
            past = -weight * extra * last[1] if last else 0.0
            last = h, gain
        new = slope * slope_all + (past * slope_last if past else 0.0)
        slope_last, slope_all = slope_all, new
        variance = slope**2 * variance + noise if sampler != "dpm++" else slope_all**2
    return math.sqrt(alpha_bar_prev) * MEAN + slope_all * offset, variance


def orthonormal_draws(steps):
    """A draw() whose results have exactly mean 0 and variance 1, uncorrelated among each other:
    sample moments then follow the recursion exactly, not only on average."""
    n = steps + 3
    generator = torch.Generator().manual_seed(steps)
    columns = torch.randn(n, steps + 2, generator=generator, dtype=torch.float64)
    columns[:, 0] = 1
    q, _ = torch.linalg.qr(columns)
    draws = iter((math.sqrt(n) * q[:, 1:]).T)
    return lambda: next(draws).view(n, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 333, 1000])
@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_samplers_follow_the_closed_form(sampler, settings, steps):
    s, draw = scheduler(), orthonormal_draws(steps)
    x = sample(exact_denoiser(s), s, draw, sampler, steps, **settings)
    mean, variance = recursion(s, sampler, s.timesteps(steps), **settings)
    assert x.dtype == torch.float64
    assert x.mean().item() == pytest.approx(mean, abs=1e-9)
    assert x.var(unbiased=False).item() == pytest.approx(variance, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_a_network_that_predicts_v_gives_the_same_samples(sampler, settings, schedule):
    s, wanted = scheduler(schedule=schedule, prediction="v"), scheduler(schedule=schedule)
    networks = {s: epsilon(exact_v(s), s), wanted: exact_denoiser(wanted)}
    a, b = (
        sample(network, s, orthonormal_draws(7), sampler, 7, **settings)
        for s, network in networks.items()
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sampler", "settings"), [
    ("ddpm", {}), ("ddim", {}), ("ddim", {"eta": 0.6}), ("ddim", {"eta": 1.0}), ("dpm++", {}),
])  # fmt: skip
def test_samplers_come_to_the_gaussian_as_steps_grow(sampler, settings):
    s, errors = scheduler(), []
    for steps in (10, 100, 1000):
        x = sample(exact_denoiser(s), s, orthonormal_draws(steps), sampler, steps, **settings)
        errors.append(abs(x.std(unbiased=False).item() - STD) + abs(x.mean().item() - MEAN))
    # What stays is not the sampler's: at T-1 data still are sqrt(alpha_bar) = 0.6 % of xt, which
    # pure noise is not.
    assert errors[0] > errors[1] and errors[2] < 0.012, errors


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [20, 1000])
def test_low_sigma_has_less_variety(sampler, steps):
    s, eta = scheduler(), {"eta": 1.0} if sampler == "ddim" else {}
    stds = []
    for scale in (1, 0.95, 0.9):
        draw, settings = orthonormal_draws(steps), {**eta, "sigma_scale": scale}
        stds.append(sample(exact_denoiser(s), s, draw, sampler, steps, **settings).std().item())
    assert stds[0] > stds[1] + 0.01 > stds[2] + 0.02


def between(start, end, steps):
    """Pairs from start down to end in steps of one length: both noise levels are finite."""
    assert (start - end) % steps == 0
    stride = (start - end) // steps
    return [(t, t - stride) for t in range(start, end, -stride)]


@pytest.mark.parametrize(("sampler", "counts", "order"), [
    (ddim, (10, 20, 50, 100), 1), (dpm_solver_pp, (125, 250), 2)])  # fmt: skip
def test_order_against_the_exact_probability_flow(sampler, counts, order):
    """y = xt - sqrt(alpha_bar) MEAN keeps its ratio to the marginal's standard deviation."""
    s, start, end = scheduler(), 899, 399
    alpha_bar, alpha_bar_end = alpha_bar_at(s, start), alpha_bar_at(s, end)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1)
    ratio = math.sqrt(marginal_variance(alpha_bar_end) / marginal_variance(alpha_bar))
    exact = math.sqrt(alpha_bar_end) * MEAN + ratio * (x - math.sqrt(alpha_bar) * MEAN)
    errors = []
    for n in counts:
        got = sampler(exact_denoiser(s), s, x, between(start, end, n), None)
        errors.append((got - exact).abs().max().item())
    assert errors[-1] > 1e-12  # far above rounding
    for i in range(len(counts) - 1):
        slope = math.log(errors[i] / errors[i + 1]) / math.log(counts[i + 1] / counts[i])
        assert slope == pytest.approx(order, abs=0.15), (errors, slope)


def test_ddim_with_eta_one_is_ddpm_with_skipped_steps():
    """Also where x0_hat is clipped, and with any sigma scale."""
    s = scheduler(clip_x0=True)
    for scale in (1.0, 0.9):
        x = [
            sample(wavy, s, picture_noise([1, 2], (3, 4, 4), "cpu"), name, 20, **settings)
            for name, settings in (
                ("ddpm", {"sigma_scale": scale}),
                ("ddim", {"eta": 1.0, "sigma_scale": scale}),
            )
        ]
        torch.testing.assert_close(*x, rtol=1e-4, atol=1e-4)


# ---- Parity -------------------------------------------------------------------------------------


def wavy(xt, t):
    """A denoiser that is not linear, of the right size at every t."""
    return 0.9 * xt + 0.2 * torch.sin(3 * xt + 0.01 * t.view(-1, 1, 1, 1))


def trajectory(sampler, s, steps, **settings):
    """[(t, xt, eps_hat, noise drawn after it)], and what comes out, in float64."""
    rows, drawn = [], []
    generator = torch.Generator().manual_seed(3)

    def draw():
        drawn.append(torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64))
        return drawn[-1]

    def on_step(t, xt, eps_hat):
        rows.append((t, xt, eps_hat, len(drawn)))

    x = sample(wavy, s, draw, sampler, steps, on_step, **settings)
    noises = [drawn[i] if i < len(drawn) else None for *_, i in rows]
    return [(t, xt, eps, z) for (t, xt, eps, _), z in zip(rows, noises, strict=True)], x


BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [10, 50, 250, 1000])
def test_ddpm_is_diffusers_ddpm(steps, clip, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    variance = "fixed_large" if steps == 1000 else "fixed_small"
    theirs = diffusers.DDPMScheduler(
        **BETAS, variance_type=variance, clip_sample=clip, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    rows, x = trajectory("ddpm", scheduler(clip_x0=clip), steps)
    after = [xt for _, xt, _, _ in rows[1:]] + [x]
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    for (t, xt, eps_hat, z), want in list(zip(rows, after, strict=True))[:-1]:
        monkeypatch.setattr(module, lambda *a, z=z, **k: z)
        got = theirs.step(eps_hat, t, xt).prev_sample
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if t >= 500 else 4e-4)


@pytest.mark.parametrize(("eta", "clip"), [(0.0, False), (0.0, True), (0.5, False), (1.0, True)])
@pytest.mark.parametrize("steps", [10, 50, 250])
def test_ddim_is_diffusers_ddim(steps, eta, clip):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        **BETAS, clip_sample=clip, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.set_timesteps(steps)
    rows, x = trajectory("ddim", scheduler(clip_x0=clip), steps, eta=eta)
    after = [xt for _, xt, _, _ in rows[1:]] + [x]
    for (t, xt, eps_hat, z), want in zip(rows, after, strict=True):
        got = theirs.step(
            eps_hat, t, xt, eta=eta, use_clipped_model_output=True, variance_noise=z
        ).prev_sample if eta else theirs.step(
            eps_hat, t, xt, use_clipped_model_output=True
        ).prev_sample  # fmt: skip
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if t >= 500 else 4e-4)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [10, 20, 50, 250])
def test_dpm_solver_is_diffusers_dpm_solver(steps, clip):
    """It remembers its last prediction, so both run side by side, on the same predictions.

    Theirs clips only by thresholding; clip puts ours' [-1, 1] in.
    """
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        timestep_spacing="trailing", final_sigmas_type="zero",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    if clip:
        convert = theirs.convert_model_output
        theirs.convert_model_output = lambda *a, **k: convert(*a, **k).clamp(-1, 1)
    rows, x = trajectory("dpm++", scheduler(clip_x0=clip), steps)
    assert [t for t, *_ in rows] == theirs.timesteps.tolist()
    after = [xt for _, xt, _, _ in rows[1:]] + [x]
    for (t, xt, eps_hat, _), want in zip(rows, after, strict=True):
        got = theirs.step(eps_hat, t, xt).prev_sample
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 if t >= 100 else 1e-3)


# ---- Noise, and what is kept --------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_picture_depends_on_its_seed_alone(sampler, settings):
    s, model = scheduler(), randomize(small_unet(2))
    together, alone = (
        sample(model, s, picture_noise(seeds, (2, 8, 12), "cpu"), sampler, 5, **settings)
        for seeds in ([3, 4, 5], [5])
    )
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize(("sampler", "settings"), CASES)
def test_memory_is_flat_over_steps(sampler, settings):
    """The tensors alive at a step are as many as at any other: no xt, x0_hat or noise is kept."""
    steps, alive = [], []

    def on_step(t, xt, eps_hat):
        steps.append(t)
        alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))

    s = scheduler()
    draw = picture_noise([0], (1, 4, 4), "cpu")
    sample(lambda xt, t: 0.9 * xt, s, draw, sampler, 12, on_step, **settings)
    assert steps == [t for t, _ in s.timesteps(12)]
    assert max(alive[3:]) - min(alive[3:]) <= 1, alive


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
def test_samplers_without_noise_draw_none(sampler):
    s = scheduler()
    x = torch.randn(2, 1, 4, 4)
    assert sampler(wavy, s, x, s.timesteps(5), None).shape == x.shape  # noise() would fail


def test_the_last_step_of_ddpm_draws_no_noise():
    s, calls = scheduler(), []
    x = torch.randn(1, 1, 4, 4)
    ddpm(wavy, s, x, s.timesteps(5), lambda: calls.append(1) or torch.zeros_like(x))
    assert len(calls) == 4


def test_slerp_keeps_length_and_turns_evenly():
    a, b = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    b = b * a.norm() / b.norm()
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    points = [slerp(a, b, w / 4) for w in range(5)]
    steps = [(p - q).norm() for p, q in zip(points, points[1:], strict=False)]
    assert all(p.norm() == pytest.approx(a.norm().item()) for p in points)
    assert all(step == pytest.approx(steps[0].item()) for step in steps)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
