"""An exponential moving average of a model's weights (after Polyak & Juditsky 1992)."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class EMA(Generic[Network]):
    """A second model, `.model`, whose weights follow the first one's, averaged over the past.

    The average is of about 1 / (1 - decay) steps, and of fewer at the start: after n updates the
    decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, so that the
    random first weights are soon forgotten.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Network, updates: int) -> None:
        """Take in the model's weights; updates: how many went before this one."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        ours: list[torch.Tensor] = list(self.model.parameters())
        theirs: list[torch.Tensor] = list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
