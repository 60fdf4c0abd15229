"""From noise to pictures: three samplers, pure functions of a callable model(xt, t) -> eps_hat.

All take x: (B, C, H, W), what is known at the first t; timesteps: pairs (t, t_prev), t_prev = -1
being the end, where alpha_bar is 1 (DDPMScheduler.timesteps); noise: a function that gives the
next standard normal (B, C, H, W) at each call. on_step(t, xt, eps_hat) is called after each call
of the network. What they return, (B, C, H, W), belongs to the last t_prev. Nothing of a step is
kept but what the next one needs.

alpha_bar is Song et al.'s alpha; its square root and that of 1 - alpha_bar are Lu et al.'s alpha
and sigma. t_prev is the t that comes next in sampling; *_last is what the step before had.
"""

import math

import torch


@torch.no_grad()
def ddpm(model, scheduler, x, timesteps, noise, sigma_scale=1.0, on_step=None):
    """Ancestral sampling (Ho et al. 2020, algorithm 2): sigma_t = sigma_scale * sqrt(beta_t).

    Where steps are skipped sigma is sigma_scale times the posterior's standard deviation
    (DDPMScheduler.step), which makes it DDIM with eta = 1. The last step adds no noise.
    """
    skips = any(t - t_prev > 1 for t, t_prev in timesteps)
    xt = x
    for t, t_prev in timesteps:
        eps_hat = _predict(model, xt, t, on_step)
        z = noise() if t_prev >= 0 else None
        xt = scheduler.step(xt, eps_hat, t, t_prev, z, sigma_scale, posterior_sigma=skips)
    return xt


@torch.no_grad()
def ddim(model, scheduler, x, timesteps, noise, eta=0.0, sigma_scale=1.0, on_step=None):
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with sigma of eq. 16; eta in [0, 1].

    eta = 0 follows the probability-flow ODE (their section 4.3) and draws no noise; eta = 1 is
    ancestral. sigma_scale is a factor on the noise that is added. Where the scheduler clips x0_hat,
    eps is that of the clipped one, so that both still make up xt.
    """
    xt = x
    for t, t_prev in timesteps:
        eps_hat = _predict(model, xt, t, on_step)
        x0_hat = scheduler.predict_x0(xt, eps_hat, _full(t, xt))
        bar, bar_prev = scheduler.alpha_bar_at(t), scheduler.alpha_bar_at(t_prev)
        eps = (xt - math.sqrt(bar) * x0_hat) / math.sqrt(1 - bar)
        sigma = eta * math.sqrt(scheduler.posterior_variance(t, t_prev))
        direction = math.sqrt(max(0.0, 1 - bar_prev - sigma**2))
        xt = math.sqrt(bar_prev) * x0_hat + direction * eps
        if sigma > 0:
            xt = xt + sigma_scale * sigma * noise()
    return xt


@torch.no_grad()
def dpm_solver_pp(model, scheduler, x, timesteps, noise=None, on_step=None):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): no noise is drawn.

    Second order in the steps of lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)); the first
    step, and that to the end, where lambda is infinite, are of first order.
    """
    xt, x0_last, h_last = x, None, None
    for t, t_prev in timesteps:
        eps_hat = _predict(model, xt, t, on_step)
        x0_hat = scheduler.predict_x0(xt, eps_hat, _full(t, xt))
        if t_prev < 0:
            return x0_hat
        bar, bar_prev = scheduler.alpha_bar_at(t), scheduler.alpha_bar_at(t_prev)
        h = 0.5 * (math.log(bar_prev / (1 - bar_prev)) - math.log(bar / (1 - bar)))
        x0 = x0_hat
        if x0_last is not None:  # extrapolated to the middle of the step
            x0 = x0_hat + h / (2 * h_last) * (x0_hat - x0_last)
        xt = math.sqrt((1 - bar_prev) / (1 - bar)) * xt - math.sqrt(bar_prev) * math.expm1(-h) * x0
        x0_last, h_last = x0_hat, h
    return xt


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm_solver_pp}


def sample(model, scheduler, draw, sampler, num_sampling_steps, on_step=None, **settings):
    """New samples (B, C, H, W) by a sampler of SAMPLERS, from pure noise: draw() gives the first
    and all further noise. settings: sigma_scale, eta.

    Raises UserError when num_sampling_steps is not in 1 .. T.
    """
    timesteps = scheduler.timesteps(num_sampling_steps)
    x = draw()
    return SAMPLERS[sampler](model, scheduler, x, timesteps, draw, on_step=on_step, **settings)


def picture_noise(seeds, shape, device):
    """A function that draws the next (len(seeds), *shape) of standard normal noise at each call.

    Every picture has a CPU generator of its own, so what it gets depends on its seed alone: not
    on the batch it is made in, nor on the device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw():
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    return draw


def interpolated_noise(seed_a, seed_b, weights, shape, device):
    """Like picture_noise, but picture i draws slerp(a, b, weights[i]) of two seeds' noises.

    weights in [0, 1]: 0 gives seed a's picture and 1 seed b's, whatever the sampler.
    """
    both = picture_noise([seed_a, seed_b], shape, "cpu")

    def draw():
        a, b = both()
        return torch.stack([slerp(a, b, w) for w in weights]).to(device)

    return draw


def slerp(a, b, weight):
    """From a (weight 0) to b (weight 1) on the arc between them: noise stays as long as noise is.

    Shoemake 1985, "Animating rotation with quaternion curves". a, b: any one shape, not opposite.
    """
    cos = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cos.clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, weight)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def _predict(model, xt, t, on_step):
    eps_hat = model(xt, _full(t, xt)).to(xt.dtype)
    if on_step is not None:
        on_step(t, xt, eps_hat)
    return eps_hat


def _full(t, like):
    return torch.full((len(like),), t, device=like.device)
