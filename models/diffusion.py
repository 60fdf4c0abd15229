"""The loss of Ho et al. 2020, a function of a callable model(xt, t) -> eps_hat; its weights."""

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


def min_snr_weights(scheduler, gamma):
    """What each t's loss counts, (T,) float32 of mean 1: in proportion to min(SNR, gamma) / SNR.

    SNR = alpha_bar / (1 - alpha_bar). Detail that nobody sees, at small t, then takes less of the
    network's effort. Hang et al. 2023 (arXiv:2303.09556), section 3.4, for epsilon prediction.
    gamma = 0: all t alike, as in Ho et al. 2020.
    """
    if gamma == 0:
        return torch.ones(scheduler.num_steps)
    snr = scheduler.alpha_bar / (1 - scheduler.alpha_bar)
    weights = snr.clamp(max=gamma) / snr
    return (weights / weights.mean()).float()
