"""The loss of Ho et al. 2020, a function of a callable model(xt, t) -> eps_hat; which t it is
drawn at, and what each counts."""

import torch

LOG_MEAN, LOG_STD, SHARE = -0.2, 1.2, 0.7  # of the density "lognormal", see timestep_density


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


def timestep_density(scheduler, name):
    """Probability of drawing each t in training, (T,) float64 of sum 1.

    "uniform": Ho et al. 2020. "lognormal": SHARE of the draws fall where there is most to learn,
    with the logarithm of noise to signal, sqrt((1 - alpha_bar) / alpha_bar), from a normal
    distribution (after Karras et al. 2022, arXiv:2206.00364, section 5; mean and width found by
    experiment); the others are uniform, so that no t is rare. A loss that is divided by T times its
    t's probability has the mean that uniform draws give. Raises ValueError for another name.
    """
    uniform = torch.full((scheduler.num_steps,), 1 / scheduler.num_steps, dtype=torch.float64)
    if name == "uniform":
        return uniform
    if name != "lognormal":
        raise ValueError(f"t is drawn from the density uniform or lognormal, not {name}")
    bar = scheduler.alpha_bar
    log_ratio = 0.5 * ((1 - bar) / bar).log()
    edges = torch.cat([log_ratio[:1], (log_ratio[1:] + log_ratio[:-1]) / 2, log_ratio[-1:]])
    mass = torch.special.ndtr((edges - LOG_MEAN) / LOG_STD).diff()
    return SHARE * mass / mass.sum() + (1 - SHARE) * uniform


def draw_timesteps(density, n):
    """t: (n,) of probabilities density: (T,), on its device."""
    rising = density.cumsum(0)
    t = torch.searchsorted(rising, torch.rand(n, dtype=density.dtype, device=density.device))
    return t.clamp(max=len(density) - 1)  # the sum may be rounded to below 1
