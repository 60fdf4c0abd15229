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
from collections.abc import Callable, Sequence

import torch

from models.diffusion import Denoiser
from models.scheduler import DDPMScheduler

Timesteps = Sequence[tuple[int, int]]  # (t, t_prev), ..
Draw = Callable[[], torch.Tensor]  # the next noise, (B, C, H, W) at each call
OnStep = Callable[[int, torch.Tensor, torch.Tensor], object]  # of (t, xt, eps_hat)
Sampler = Callable[..., torch.Tensor]


@torch.no_grad()
def ddpm(
    model: Denoiser, scheduler: DDPMScheduler, x: torch.Tensor, timesteps: Timesteps, noise: Draw,
    sigma_scale: float = 1.0, on_step: OnStep | None = None,
) -> torch.Tensor:  # fmt: skip
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
def ddim(
    model: Denoiser, scheduler: DDPMScheduler, x: torch.Tensor, timesteps: Timesteps, noise: Draw,
    eta: float = 0.0, sigma_scale: float = 1.0, on_step: OnStep | None = None,
) -> torch.Tensor:  # fmt: skip
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with sigma of eq. 16; eta in [0, 1].

    eta = 0 follows the probability-flow ODE (their section 4.3) and draws no noise; eta = 1 is
    ancestral. sigma_scale is a factor on the noise that is added. Where the scheduler clips x0_hat,
    eps is that of the clipped one, so that both still make up xt.
    """
    xt = x
    for t, t_prev in timesteps:
        eps_hat = _predict(model, xt, t, on_step)
        x0_hat = scheduler.predict_x0(xt, eps_hat, _full(t, xt))

        # What of xt is noise, once x0_hat is known; part of it is replaced by new noise.
        alpha_bar, alpha_bar_prev = scheduler.alpha_bar_at(t), scheduler.alpha_bar_at(t_prev)
        eps = (xt - math.sqrt(alpha_bar) * x0_hat) / math.sqrt(1 - alpha_bar)
        sigma = eta * math.sqrt(scheduler.posterior_variance(t, t_prev))
        direction = math.sqrt(max(0.0, 1 - alpha_bar_prev - sigma**2))
        xt = math.sqrt(alpha_bar_prev) * x0_hat + direction * eps
        if sigma > 0:
            xt = xt + sigma_scale * sigma * noise()
    return xt


@torch.no_grad()
def dpm_solver_pp(
    model: Denoiser, scheduler: DDPMScheduler, x: torch.Tensor, timesteps: Timesteps,
    noise: Draw | None = None, on_step: OnStep | None = None,
) -> torch.Tensor:  # fmt: skip
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): no noise is drawn.

    Second order in the steps of lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)); the first
    step, and that to the end, where lambda is infinite, are of first order.
    """
    xt = x
    x0_last: torch.Tensor | None = None  # x0_hat of the step before, and its length
    h_last = 0.0
    for t, t_prev in timesteps:
        eps_hat = _predict(model, xt, t, on_step)
        x0_hat = scheduler.predict_x0(xt, eps_hat, _full(t, xt))
        if t_prev < 0:
            return x0_hat

        # h: the step in lambda. The line through this x0_hat and the last is the second order.
        alpha_bar, alpha_bar_prev = scheduler.alpha_bar_at(t), scheduler.alpha_bar_at(t_prev)
        h = 0.5 * (
            math.log(alpha_bar_prev / (1 - alpha_bar_prev)) - math.log(alpha_bar / (1 - alpha_bar))
        )
        x0 = x0_hat
        if x0_last is not None:  # extrapolated to the middle of the step
            x0 = x0_hat + h / (2 * h_last) * (x0_hat - x0_last)

        # Between t and t_prev the equation is linear in xt, and its integral over x0 is exact.
        shrink = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar))
        xt = shrink * xt - math.sqrt(alpha_bar_prev) * math.expm1(-h) * x0
        x0_last, h_last = x0_hat, h
    return xt


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm_solver_pp}


def sample(
    model: Denoiser, scheduler: DDPMScheduler, draw: Draw, sampler: str, num_sampling_steps: int,
    on_step: OnStep | None = None, **settings: float,
) -> torch.Tensor:  # fmt: skip
    """New samples (B, C, H, W) by a sampler of SAMPLERS, from pure noise: draw() gives the first
    and all further noise. settings: sigma_scale, eta.

    Raises UserError when num_sampling_steps is not in 1 .. T.
    """
    timesteps = scheduler.timesteps(num_sampling_steps)
    x = draw()
    return SAMPLERS[sampler](model, scheduler, x, timesteps, draw, on_step=on_step, **settings)


def picture_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str) -> Draw:
    """A function that draws the next (len(seeds), *shape) of standard normal noise at each call.

    Every picture has a CPU generator of its own, so what it gets depends on its seed alone: not
    on the batch it is made in, nor on the device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    return draw


def slerp(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """From a (weight 0) to b (weight 1) on the arc between them: noise stays as long as noise is.

    Shoemake 1985, "Animating rotation with quaternion curves". a, b: any one shape, not opposite.
    """
    cos = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cos.clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, weight)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def _predict(model: Denoiser, xt: torch.Tensor, t: int, on_step: OnStep | None) -> torch.Tensor:
    """eps_hat (B, C, H, W) at the int t, shown to on_step."""
    eps_hat = model(xt, _full(t, xt)).to(xt.dtype)
    if on_step is not None:
        on_step(t, xt, eps_hat)
    return eps_hat


def _full(t: int, like: torch.Tensor) -> torch.Tensor:
    """t for each sample: (B,) int64."""
    return torch.full((len(like),), t, device=like.device)
