"""The loss of Ho et al. 2020, a function of a callable model(xt, t) -> eps_hat; how often each t is
drawn for it, and how much it counts."""

from collections.abc import Callable

import torch

from common.errors import UserError
from models.draws import Draws, Purpose
from models.scheduler import DDPMScheduler

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (xt, t) -> eps_hat

LOG_MEAN, LOG_STD, SHARE = -0.2, 1.2, 0.7  # of the density "lognormal", see timestep_density


def epsilon(model: Denoiser, scheduler: DDPMScheduler) -> Denoiser:
    """The callable (xt, t) -> eps_hat that losses and samplers work with, of a network
    that puts out eps or v, as the scheduler's config says.

    Predicting v (Salimans & Ho 2022) is epsilon prediction on a better footing: the noise that xt
    shows anyway need not pass through the network, whose error at large t then stays small.
    """

    def eps_hat(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = model(xt, t).to(xt.dtype)  # within autocast it may be half as precise
        return out if scheduler.config.prediction == "eps" else scheduler.eps_from_v(xt, out, t)

    return eps_hat


def denoising_loss(
    model: Denoiser, scheduler: DDPMScheduler, x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """Squared error of eps_hat per sample, (B,), where eps ~ N(0, I) is added; x0, eps: (B, C, H,
    W), t: (B,). Ho et al. 2020, algorithm 1 and eq. 14."""
    eps_hat = model(scheduler.add_noise(x0, eps, t), t)
    return (eps_hat - eps).square().mean(dim=(1, 2, 3))


class Objective:
    """What a denoiser's training minimises: denoising losses at drawn t, weighted.

    density: see timestep_density; gamma: see min_snr_weights. importance: (T,) float32, 1 / (T p)
    of each t's probability p; with it as a weight, losses have the mean that uniform draws give,
    whatever the density (importance sampling).
    """

    def __init__(
        self, scheduler: DDPMScheduler, density: str, gamma: float, device: torch.device | str
    ) -> None:
        probability = timestep_density(scheduler, density)
        importance = 1 / (scheduler.num_steps * probability)
        self.scheduler = scheduler
        # Summed on the CPU: sums on two devices differ, and with them t of the same draw.
        self.cumulative = probability.float().cumsum(0).to(device)
        self.importance = importance.float().to(device)
        self.weights = (importance * min_snr_weights(scheduler, gamma)).float().to(device)

    def __call__(
        self, model: Denoiser, x0: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The scalar to minimise; the losses (B,) that it is made of; their t (B,). draws: of the
        B places of x0 in the batch."""
        t = timesteps_of(self.cumulative, draws.uniform(Purpose.TIMESTEP))
        eps = draws.normal(Purpose.NOISE, x0.shape[1:])
        losses = denoising_loss(model, self.scheduler, x0, t, eps)
        return (self.weights[t] * losses).mean(), losses, t


def min_snr_weights(scheduler: DDPMScheduler, gamma: float) -> torch.Tensor:
    """How much each t's loss counts, (T,) float32 of mean 1.

    In proportion to min(SNR, gamma) / SNR, where SNR = alpha_bar / (1 - alpha_bar). Detail that
    nobody sees, at small t, then takes less of the network's effort. Hang et al. 2023
    (arXiv:2303.09556), section 3.4, for epsilon prediction. gamma = 0: all t alike, as in Ho et al.
    2020.
    """
    if gamma == 0:
        return torch.ones(scheduler.num_steps)
    snr = scheduler.alpha_bar / (1 - scheduler.alpha_bar)
    weights = snr.clamp(max=gamma) / snr
    return (weights / weights.mean()).float()


def timestep_density(scheduler: DDPMScheduler, name: str) -> torch.Tensor:
    """Probability of drawing each t in training, (T,) float64 of sum 1.

    "uniform": Ho et al. 2020. "lognormal": in SHARE of the draws the logarithm of noise to signal,
    log(sqrt((1 - alpha_bar) / alpha_bar)), is normal with LOG_MEAN and LOG_STD (after Karras et al.
    2022, arXiv:2206.00364, section 5, whose sigma that ratio is; the numbers were found by
    experiment), because there is most to learn there; the others are uniform, so that no t is rare.
    Raises UserError for another name.
    """
    uniform = torch.full((scheduler.num_steps,), 1 / scheduler.num_steps, dtype=torch.float64)
    if name not in ("uniform", "lognormal"):
        raise UserError(f"t is drawn from the density uniform or lognormal, not {name}")
    if name == "uniform" or scheduler.num_steps == 1:
        return uniform
    log_ratio = 0.5 * ((1 - scheduler.alpha_bar) / scheduler.alpha_bar).log()
    edges = torch.cat([log_ratio[:1], (log_ratio[1:] + log_ratio[:-1]) / 2, log_ratio[-1:]])
    mass = torch.special.ndtr((edges - LOG_MEAN) / LOG_STD).diff()
    return SHARE * mass / mass.sum() + (1 - SHARE) * uniform


def timesteps_of(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """t: (n,) of the running sums (T,) of probabilities; uniform: (n,) is uniform in (0, 1)."""
    t = torch.searchsorted(cumulative, uniform.to(cumulative.dtype), right=True)
    return t.clamp(max=len(cumulative) - 1)  # the sum may be rounded to below 1
