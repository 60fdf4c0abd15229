"""The forward process q(xt | x0) and one step of its reversal, as tables and three verbs.

Notation of Ho et al. 2020 (arXiv:2006.11239), but with t = 0 .. T-1, the paper's less 1:
alpha_bar[t] = prod_{s<=t} (1 - beta[s]), and "before" step 0 alpha_bar is 1.
"""

import math
from dataclasses import dataclass

import torch

from common.choices import PREDICTIONS
from common.errors import UserError


@dataclass(frozen=True)
class SchedulerConfig:
    """num_steps: T. schedule: of SCHEDULES. prediction: what the network puts out, "eps" or "v".
    clip_x0: clamp x0_hat to [-1, 1]."""

    num_steps: int
    schedule: str
    prediction: str
    clip_x0: bool


def linear(num_steps: int) -> torch.Tensor:
    """beta rises linearly from 1e-4 to 0.02. Ho et al. 2020, section 4."""
    return torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64)


def scaled_linear(num_steps: int) -> torch.Tensor:
    """sqrt(beta) rises linearly, beta from 0.0015 to 0.0195: the latents' schedule of Rombach et
    al. 2022 (their published configurations)."""
    return torch.linspace(0.0015**0.5, 0.0195**0.5, num_steps, dtype=torch.float64).square()


def cosine(num_steps: int) -> torch.Tensor:
    """alpha_bar falls like a squared cosine; beta is at most 0.999. Nichol & Dhariwal 2021
    (arXiv:2102.09672), eq. 17, with their offset s = 0.008."""
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


SCHEDULES = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


class DDPMScheduler:
    """Tables of beta and alpha_bar (float64, CPU); what is picked from them is cast and moved.

    Raises UserError unless num_steps >= 1, and for an unknown schedule or prediction.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        if config.num_steps < 1:
            raise UserError(f"a schedule needs at least 1 step, but has {config.num_steps}")
        for name, known in (("schedule", SCHEDULES), ("prediction", PREDICTIONS)):
            if (value := getattr(config, name)) not in known:
                raise UserError(f"the {name} is one of {', '.join(known)}, not {value}")
        self.config = config
        self.num_steps = config.num_steps
        self.beta = SCHEDULES[config.schedule](config.num_steps)
        self.alpha_bar = torch.cumprod(1 - self.beta, dim=0)
        self._tables = {
            "signal": self.alpha_bar.sqrt(),
            "noise": (1 - self.alpha_bar).sqrt(),
            "inverse_signal": self.alpha_bar.rsqrt(),
            "noise_to_signal": (1 / self.alpha_bar - 1).sqrt(),
        }
        self._moved: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def timesteps(self, num_sampling_steps: int, start: int | None = None) -> list[tuple[int, int]]:
        """Pairs (t, t_prev) from T-1 down to the last, whose t_prev is -1; or from start - 1, where
        what is sampled from has less noise.

        "Trailing" spacing: even, and T-1, where xt is nearly pure noise, is always among them.
        Raises UserError outside 1 .. T. Source: Lin et al. 2023 (arXiv:2305.08891), table 2.
        """
        if not 1 <= num_sampling_steps <= self.num_steps:
            raise UserError(
                f"the number of sampling steps must be 1 to {self.num_steps} (the schedule's "
                f"steps), but is {num_sampling_steps}"
            )
        start = self.num_steps if start is None else start
        stride = start / num_sampling_steps
        kept = [round(start - i * stride) - 1 for i in range(num_sampling_steps)]
        return list(zip(kept, kept[1:] + [-1], strict=True))

    def add_noise(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """xt ~ q(xt | x0) for eps ~ N(0, I); x0, eps: (B, ...), t: (B,). Ho et al. 2020, eq. 4."""
        return self._pick("signal", t, x0) * x0 + self._pick("noise", t, x0) * eps

    def predict_x0(self, xt: torch.Tensor, eps_hat: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x0_hat, the inverse of add_noise; clamped to [-1, 1] if the config says so. Eq. 15."""
        x0_hat = self._pick("inverse_signal", t, xt) * xt
        x0_hat = x0_hat - self._pick("noise_to_signal", t, xt) * eps_hat
        return x0_hat.clamp(-1, 1) if self.config.clip_x0 else x0_hat

    def eps_from_v(self, xt: torch.Tensor, v_hat: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """eps_hat where the network predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0
        (Salimans & Ho 2022, arXiv:2202.00512, appendix D): what xt shows of the noise already, and
        what v_hat adds. Shapes as in add_noise."""
        return self._pick("noise", t, xt) * xt + self._pick("signal", t, xt) * v_hat

    def step(
        self, xt: torch.Tensor, eps_hat: torch.Tensor, t: int, t_prev: int,
        noise: torch.Tensor | None, sigma_scale: float = 1.0, posterior_sigma: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """x at t_prev from xt: the mean of q(x at t_prev | xt, x0), with x0_hat for x0, plus
        sigma * noise. xt, eps_hat, noise: (B, ...).

        The mean is that of Ho et al. 2020, eq. 7; where x0_hat is not clipped, it equals line 4 of
        their algorithm 2. sigma = sigma_scale * sqrt(beta_t), or, for samplers that skip steps,
        sigma_scale times that posterior's standard deviation (DDIM with eta = 1, Song et al. 2021,
        eq. 16): the square root of a long step's beta would leave grain.
        At t_prev = -1 the result is x0_hat: no noise is added to a finished picture, and noise may
        be None.
        """
        # The end of the chain: the picture itself.
        x0_hat = self.predict_x0(xt, eps_hat, torch.full((len(xt),), t, device=xt.device))
        if t_prev < 0:
            return x0_hat
        assert noise is not None

        # The posterior's mean weighs x0_hat against xt.
        alpha_bar, alpha_bar_prev = self.alpha_bar_at(t), self.alpha_bar_at(t_prev)
        beta = 1 - alpha_bar / alpha_bar_prev  # of the whole step; beta[t] where t_prev = t - 1
        of_x0 = math.sqrt(alpha_bar_prev) * beta
        of_xt = math.sqrt(1 - beta) * (1 - alpha_bar_prev)
        mean = (of_x0 * x0_hat + of_xt * xt) / (1 - alpha_bar)

        # How much noise is added: of the step itself, or of that posterior.
        variance = self.posterior_variance(t, t_prev) if posterior_sigma else beta
        return mean + sigma_scale * math.sqrt(variance) * noise

    def alpha_bar_at(self, t: int) -> float:
        """alpha_bar at the int t as a float; 1 before the first step, at t = -1."""
        return self.alpha_bar[t].item() if t >= 0 else 1.0

    def posterior_variance(self, t: int, t_prev: int) -> float:
        """Variance of q(x at t_prev | xt, x0). Eq. 7."""
        alpha_bar, alpha_bar_prev = self.alpha_bar_at(t), self.alpha_bar_at(t_prev)
        beta = 1 - alpha_bar / alpha_bar_prev
        return beta * (1 - alpha_bar_prev) / (1 - alpha_bar)

    def _pick(self, name: str, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The table's value at each t: (B,), type and device of like: (B, ...), to broadcast."""
        key = name, like.dtype, like.device
        if key not in self._moved:  # once per device: t never has to come back to the CPU
            self._moved[key] = self._tables[name].to(like.dtype).to(like.device)
        return self._moved[key][t].view(-1, *[1] * (like.ndim - 1))
