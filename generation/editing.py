"""Pictures changed without training anything more: functions of a callable model(xt, t) -> eps_hat,
as the samplers are, and of masks.

B: batch, C, H, W: x0, of which the one that is edited may have B = 1. mask: (1, 1, H, W) bool,
true where x0 is to be made anew. draw gives the next standard normal (B, C, H, W) at each call;
sampler, num_sampling_steps, on_step and settings are as sample() of models/samplers.py takes them.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from models.diffusion import Denoiser
from models.samplers import SAMPLERS, Draw, OnStep, sample
from models.scheduler import DDPMScheduler

FEATHER, FEATHERED = 4, 32  # a seam's most pixels; a picture's least side per pixel of its seam


@torch.no_grad()
def inpaint(
    model: Denoiser, scheduler: DDPMScheduler, x0: torch.Tensor, mask: torch.Tensor, draw: Draw,
    sampler: str, num_sampling_steps: int, resampling: int, on_step: OnStep | None = None,
    **settings: float,
) -> torch.Tensor:  # fmt: skip
    """x0 with what is masked made anew, to fit the rest: (B, C, H, W). What is not masked stays.

    RePaint (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1; jumps are of one step): after each
    step, what is known takes the place of what was made of it. Then noise is added again, and the
    step is done anew, `resampling` times in all, so that both come to fit.

    This is not exact. Each step sees what is known under new noise, so what is made follows too
    late, by an error in proportion to 1 / resampling. Where neighbours have a correlation of 0.8,
    the mean misses 44 % of the way to the conditional mean at 1, 6 % at 10 and 2 % at 40. Where
    steps are skipped, what is made also varies too little, and more so the more often they are done
    again: with 100 of 1000 steps, at 10, the variance by ddpm is 0.78 to 0.86 of the true one, and
    that by ddim with eta = 0 is 0.93 to 1.
    """
    if mask.all():
        return sample(model, scheduler, draw, sampler, num_sampling_steps, on_step, **settings)
    step, xt = SAMPLERS[sampler], draw()
    for t, t_prev in scheduler.timesteps(num_sampling_steps):
        alpha_bar, alpha_bar_prev = scheduler.alpha_bar_at(t), scheduler.alpha_bar_at(t_prev)
        for again in range(resampling if t_prev >= 0 else 1):
            if again:  # from t_prev back to t: the forward process
                kept = alpha_bar / alpha_bar_prev
                xt = math.sqrt(kept) * xt + math.sqrt(1 - kept) * draw()
            xt = step(model, scheduler, xt, [(t, t_prev)], draw, on_step=on_step, **settings)
            known = x0
            if t_prev >= 0:
                known = math.sqrt(alpha_bar_prev) * x0 + math.sqrt(1 - alpha_bar_prev) * draw()
            xt = torch.where(mask, xt, known)
    return xt


@torch.no_grad()
def vary(
    model: Denoiser, scheduler: DDPMScheduler, x0: torch.Tensor, draw: Draw, sampler: str,
    num_sampling_steps: int, strength: float, on_step: OnStep | None = None, **settings: float,
) -> torch.Tensor:  # fmt: skip
    """Pictures like x0, (B, C, H, W): SDEdit (Meng et al. 2022, arXiv:2108.01073, algorithm 1).

    Noise is added to x0 as at strength * T, in (0, 1], and removed again, in that share of the
    steps. At 1 this is sample(): nothing is left of x0. Towards 0, x0 itself remains.
    """
    timesteps = variation_timesteps(scheduler, num_sampling_steps, strength)
    xt = draw()
    if not timesteps:
        return x0.expand_as(xt)
    t = timesteps[0][0]
    if t < scheduler.num_steps - 1:
        xt = scheduler.add_noise(x0, xt, torch.full((len(xt),), t, device=xt.device))
    return SAMPLERS[sampler](model, scheduler, xt, timesteps, draw, on_step=on_step, **settings)


def variation_timesteps(
    scheduler: DDPMScheduler, num_sampling_steps: int, strength: float
) -> list[tuple[int, int]]:
    """Pairs (t, t_prev) as of DDPMScheduler.timesteps, which they are at strength 1; else from
    strength * T down, in that share of the steps. None where strength * T rounds to 0."""
    start = round(strength * scheduler.num_steps)
    count = min(start, math.ceil(strength * num_sampling_steps))
    return scheduler.timesteps(count, start) if start else []


@torch.no_grad()
def invert(
    model: Denoiser, scheduler: DDPMScheduler, x0: torch.Tensor, num_sampling_steps: int,
    on_step: OnStep | None = None,
) -> torch.Tensor:  # fmt: skip
    """The noise xt at T-1, (B, C, H, W), of which ddim with eta = 0 makes x0 again, where it clips
    nothing: its steps backwards (Song et al. 2021, arXiv:2010.02502, section 4.3; Dhariwal & Nichol
    2021, appendix F).

    Each step back takes eps_hat from where it starts, and each step forth from where it ends, so
    the way there and back misses x0 by an error of first order in the length of the steps.
    """
    xt, at = x0, 0  # the network knows no t = -1, where there is no noise
    for t, t_prev in reversed(scheduler.timesteps(num_sampling_steps)):
        every = torch.full((len(xt),), at, device=xt.device)
        eps_hat = model(xt, every).to(xt.dtype)
        if on_step is not None:
            on_step(at, xt, eps_hat)
        alpha_bar_prev, alpha_bar = scheduler.alpha_bar_at(t_prev), scheduler.alpha_bar_at(t)
        x0_hat = (xt - math.sqrt(1 - alpha_bar_prev) * eps_hat) / math.sqrt(alpha_bar_prev)
        xt, at = math.sqrt(alpha_bar) * x0_hat + math.sqrt(1 - alpha_bar) * eps_hat, t
    return xt


# ---- Pictures and masks -------------------------------------------------------------------------


def filled(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) with smooth colours where masked, of what lies around: whatever was there is
    gone. 0 where all is masked.

    From coarse to fine ("pull-push", Gortler et al. 1996, "The lumigraph", section 3.4).
    """
    known = (~mask).to(x.dtype)
    x = x * known
    if known.all() or not known.any():
        return x
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(x, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = filled(coarse, share == 0)
    return torch.where(mask, F.interpolate(coarse, x.shape[2:], mode="bilinear"), x)


def feathered(mask: torch.Tensor) -> torch.Tensor:
    """How much of a new picture is taken, (1, 1, H, W) in [0, 1]: all where it is masked, nothing
    elsewhere, and less and less along the seam around the mask, whose width grows with the picture
    to FEATHER pixels."""
    width = min(FEATHER, min(mask.shape[2:]) // FEATHERED)
    share, grown = mask.float(), []
    for _ in range(width + 1):
        grown.append(share)
        share = F.max_pool2d(share, 3, stride=1, padding=1)
    return torch.stack(grown).mean(dim=0)


def to_shape(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A mask of another (H, W): a place is masked where any of it is."""
    return F.adaptive_max_pool2d(mask.float(), (shape[0], shape[1])) > 0
