"""A loss that compares pictures as a trained network sees them (Zhang et al. 2018,
arXiv:1801.03924).

B: batch, C: 1 or 3 channels, H, W: an image, c, h, w: what a layer makes of it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F


class PerceptualLoss(nn.Module):
    """x_hat, x: (B, C, H, W) in [-1, 1] -> the distance of each pair, (B,), 0 for equals.

    Zhang et al. 2018, eq. 1: each layer's features get length 1 at each position; their squared
    differences are summed over channels, averaged over positions and summed over layers. Unit
    weights w_l stand for the paper's, which were fitted to people's judgements: a layer's share is
    then twice its mean cosine distance. Images keep their own size. All is float32: in bf16 the
    gradient would point elsewhere, because that of an activation which is cut off at 0 or 6 jumps.

    slices: the network in pieces, each of which takes what the one before it gives; all of these
    are compared. mean, std: of RGB in [-1, 1], as the network was trained with them. The network
    is fixed: no weight of it learns, and it stays in eval mode.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, slices: Sequence[nn.Module], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.slices = nn.ModuleList(slices)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        return super().train(False)

    def features(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """x: (B, C, H, W) in [-1, 1] -> each slice's (B, c, h, w), of length 1 over c, float32."""
        h = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        for piece in self.slices:
            h = piece(h)
            yield F.normalize(h, dim=1)

    def forward(self, x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = list(self.features(x))
        pairs = zip(self.features(x_hat), wanted, strict=True)
        layers = [(got - want).square().sum(dim=1).mean(dim=(1, 2)) for got, want in pairs]
        return torch.stack(layers).sum(dim=0)
