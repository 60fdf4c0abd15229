"""Where network and schedule meet: the loss of Ho et al. 2020 and ancestral sampling.

Both are pure functions of a callable model(xt, t) -> eps_hat.
"""

import torch


def denoising_loss(model, scheduler, x0, t=None, eps=None):
    """Squared error of eps_hat per sample, (B,), and the t drawn, (B,); x0: (B, C, H, W).

    Ho et al. 2020, algorithm 1 and eq. 14. t and eps are drawn where they are not given.
    """
    if t is None:
        t = torch.randint(scheduler.num_steps, (len(x0),), device=x0.device)
    if eps is None:
        eps = torch.randn_like(x0)
    eps_hat = model(scheduler.add_noise(x0, eps, t), t)
    return (eps_hat - eps).square().mean(dim=(1, 2, 3)), t


def picture_noise(seeds, shape, device):
    """A function that draws the next (len(seeds), *shape) of standard normal noise at each call.

    Every picture has a CPU generator of its own, so what it gets depends on its seed alone: not
    on the batch it is made in, nor on the device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw():
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    return draw


@torch.no_grad()
def sample(model, scheduler, draw, num_sampling_steps, sigma_scale=1.0, on_step=None):
    """New samples (B, C, H, W) from the noise that draw() gives, starting with pure noise.

    Ho et al. 2020, algorithm 2; over all T steps sigma is sigma_scale * sqrt(beta_t), over fewer
    sigma_scale times the posterior's (DDPMScheduler.step). on_step() is called after each step.
    Raises ValueError when num_sampling_steps is not in 1 .. T.
    """
    skips = num_sampling_steps < scheduler.num_steps
    xt = draw()
    for t, t_prev in scheduler.timesteps(num_sampling_steps):
        eps_hat = model(xt, torch.full((len(xt),), t, device=xt.device)).to(xt.dtype)
        noise = draw() if t_prev >= 0 else None
        xt = scheduler.step(xt, eps_hat, t, t_prev, noise, sigma_scale, posterior_sigma=skips)
        if on_step is not None:
            on_step()
    return xt
