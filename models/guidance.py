"""Conditions c, as models/unet.py has them, and guidance by them: wrappers that make a callable
(xt, t), with which losses and samplers work, of a network (xt, t, c)."""

from collections.abc import Callable, Sequence

import torch

from models.diffusion import Denoiser
from models.draws import Draws, Purpose

Conditional = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (xt, t, c)

DROPPED = 0.1  # of the images of a training: how many are learnt without their condition


def conditioned(model: Callable[..., torch.Tensor], c: torch.Tensor | None) -> Denoiser:
    """The network asked for c, of as many samples as there will be; None: not asked."""
    return model if c is None else lambda xt, t: model(xt, t, c)


def guided(
    model: Conditional,
    c: torch.Tensor,
    nothing: torch.Tensor,
    weight: float,
    interval: Sequence[int] | None = None,
) -> Denoiser:
    """eps_u + weight (eps_c - eps_u), in one batch of two (Ho & Salimans 2022, arXiv:2207.12598,
    eq. 6, whose w is weight - 1); eps_c has the condition c, and eps_u has `nothing`.

    c, nothing: of as many samples as there will be. weight 1 is the condition alone, and 0 is as if
    nothing was asked; both cost no more. interval: the first and last t that are guided; others
    have the condition alone (Kynkaanniemi et al. 2024, arXiv:2404.07724). A network that puts out v
    is guided alike, because eps is linear in v and the two weights add up to 1.
    """
    low, high = interval or (0, 10**6)

    def denoise(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        inside = (low <= t) & (t <= high)
        if weight == 1 or (interval is not None and not inside.any()):
            return model(xt, t, c)
        if weight == 0 and interval is None:
            return model(xt, t, nothing)
        both = model(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([nothing, c]))
        eps_u, eps_c = both.to(xt.dtype).chunk(2)  # within autocast it may be half as precise
        mixed = eps_u + weight * (eps_c - eps_u)
        return torch.where(inside[:, None, None, None], mixed, eps_c)

    return denoise


def dropped(c: torch.Tensor, nothing: torch.Tensor, draws: Draws) -> torch.Tensor:
    """c of a batch, where some ask for nothing, by chance: so that a network learns to do without.

    nothing: as for one sample. A share DROPPED of the samples asks for nothing. Of the others' A
    attributes each is dropped at a rate that the sample draws, so all numbers of attributes from 0
    to A are asked for equally often.
    """
    u = draws.uniform(Purpose.CONDITION, (2 + c[0].numel(),))
    gone = u[:, 0] < DROPPED
    if c.ndim == 2:
        gone = gone[:, None] | (u[:, 2:] < u[:, 1:2])
    return torch.where(gone, nothing, c)
