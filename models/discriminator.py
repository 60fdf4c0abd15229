"""The patch discriminator and the GAN's two losses (Isola et al. 2017; Esser et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

BLOCK = 4  # pixels: what is finer than such blocks is detail


@dataclass(frozen=True)
class DiscriminatorConfig:
    """channels: width of the first of `layers` stride-2 convolutions; each next one has
    twice as many, up to 8 times the first."""

    image_channels: int
    channels: int
    layers: int


class PatchDiscriminator(nn.Module):
    """x: (B, C, H, W) in [-1, 1] -> a logit per patch, about (B, 1, H/2^layers, W/2^layers).

    Isola et al. 2017, section 3.2.2. Norms are over groups of channels of one image, so that a
    logit never depends on the other images of the batch.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        body: list[nn.Module] = [
            nn.Conv2d(config.image_channels, c, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for i in range(1, config.layers + 1):
            width = config.channels * 2 ** min(i, 3)
            stride = 2 if i < config.layers else 1
            body += [
                nn.Conv2d(c, width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
            ]
            c = width
        self.body = nn.Sequential(*body)
        self.head = nn.Conv2d(c, 1, 4, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)).float()


def with_low_frequencies(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x_hat with x's low frequencies in place of its own; (B, C, H, W), BLOCK divides H and W.

    Low frequencies are the means over blocks, enlarged bilinearly. Where x_hat differs from x by a
    constant per channel, nothing of the difference is left; of a slow wave, little. So a
    discriminator that is shown x and this can tell them apart by detail only, and its gradient at
    x_hat is free of shifts in colour and brightness. All pixels would want such a shift alike, so
    in the decoder's weights it would outweigh l2's gradient, though l2 alone gets colours right.
    """
    difference = F.avg_pool2d(x - x_hat, BLOCK)
    return x_hat + F.interpolate(difference, scale_factor=BLOCK, mode="bilinear")


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-D(x_hat), mean over the patches' logits (B, 1, h, w): a scalar."""
    return -fake_logits.mean()


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss, mean over the patches' logits (B, 1, h, w) (Lim & Ye 2017, arXiv:1705.02894): a
    scalar."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
