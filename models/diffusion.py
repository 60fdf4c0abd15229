"""The loss of Ho et al. 2020, a pure function of a callable model(xt, t) -> eps_hat."""

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
