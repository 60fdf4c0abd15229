"""The KL autoencoder (Rombach et al. 2022, section 3.1): from images to a Gaussian over latents z
that are smaller, and back.

Same structure and state-dict keys as diffusers' AutoencoderKL.
B: batch, C: image channels, H, W: image size, c: latent channels, h = H / stride, w = W / stride.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks import Attention, Downsample, ResidualBlock, Stage, Upsample, check_widths
from models.sizes import check_divides, stride

NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderConfig:
    """channels: width per level; every level but the last halves the size.

    blocks: residual blocks per level in the encoder (one more in the decoder). groups: of every
    GroupNorm. attention: in the middle of encoder and decoder, with one head.
    """

    image_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    blocks: int
    groups: int
    attention: bool = False


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, exp(logvar)) with independent entries; mean, logvar: (B, c, h, w)."""

    mean: torch.Tensor
    logvar: torch.Tensor

    def sample(self, noise: torch.Tensor | None = None) -> torch.Tensor:
        """One draw, (B, c, h, w), by the reparameterisation of Kingma & Welling 2014, eq. 10.
        noise: standard normal, drawn where it is not given."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> torch.Tensor:
        """KL divergence from N(0, 1) in nats, per latent value: (B, c, h, w)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)

    def moments(self) -> torch.Tensor:
        """Mean and logvar along the channels: (B, 2c, h, w)."""
        return torch.cat([self.mean, self.logvar], dim=1)


def resnets(config: AutoencoderConfig, c_in: int, c_out: int, count: int) -> list[nn.Module]:
    """So many residual blocks, of which the first goes from c_in to c_out channels."""
    widths = [c_in] + [c_out] * (count - 1)
    return [ResidualBlock(c, c_out, config.groups, NORM_EPS) for c in widths]


def middle(config: AutoencoderConfig) -> Stage:
    """Two residual blocks, at most with attention between them."""
    c = config.channels[-1]
    attentions = [Attention(c, 1, config.groups, NORM_EPS)] if config.attention else []
    return Stage(resnets(config, c, c, 2), attentions=attentions)


class Encoder(nn.Module):
    """(B, C, H, W) -> (B, 2c, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, last = config.channels[0], len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.image_channels, c, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(config.channels):
            blocks = resnets(config, c, width, config.blocks)
            downsamplers = [Downsample(width, pad_end=True)] if i < last else []
            self.down_blocks.append(Stage(blocks, downsamplers))
            c = width
        self.mid_block = middle(config)
        self.conv_norm_out = nn.GroupNorm(config.groups, c, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(c, 2 * config.latent_channels, 3, padding=1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The deepest ones: (B, c_last, h, w)."""
        # fmt: off
        h = self.conv_in(x)                                         # (B, c0, H, W)
        for stage in self.down_blocks:
            h = stage(h)                                            # (B, ci, H/2^(i+1), ..)
        return self.mid_block(h)                                    # (B, c_last, h, w)
        # fmt: on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(F.silu(self.conv_norm_out(self.features(x))))


class Decoder(nn.Module):
    """(B, c, h, w) -> (B, C, H, W); not bounded, displaying clamps."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, last = config.channels[-1], len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, c, 3, padding=1)
        self.mid_block = middle(config)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(config.channels)):
            blocks = resnets(config, c, width, config.blocks + 1)
            upsamplers = [Upsample(width)] if i < last else []
            self.up_blocks.append(Stage(blocks, upsamplers=upsamplers))
            c = width
        self.conv_norm_out = nn.GroupNorm(config.groups, c, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(c, config.image_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        # fmt: off
        h = self.mid_block(self.conv_in(z))                         # (B, c_last, h, w)
        for stage in self.up_blocks:
            h = stage(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))         # (B, C, H, W)
        # fmt: on


class AutoencoderKL(nn.Module):
    """encode(x) -> posterior over z, decode(z) -> x. stride = 2^(levels - 1)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        check_widths(config.channels, config.groups, config.blocks)
        self.config = config
        self.stride = stride(config.channels)
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    def latent_shape(self, size: Sequence[int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images of size (H, W)."""
        height, width = size
        return self.config.latent_channels, height // self.stride, width // self.stride

    def encode(self, x: torch.Tensor) -> DiagonalGaussian:
        """x: (B, C, H, W) in [-1, 1] -> DiagonalGaussian over (B, c, h, w), float32.

        logvar is clamped to [-30, 20]. Raises UserError when stride does not divide H and W.
        """
        height, width = x.shape[-2:]
        check_divides(height, width, self.stride)
        mean, logvar = self.quant_conv(self.encoder(x)).float().chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z: (B, c, h, w), on the autoencoder's own scale -> (B, C, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, DiagonalGaussian]:
        """x -> its reconstruction from one posterior sample (B, C, H, W), and that posterior.
        noise: see DiagonalGaussian.sample."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(noise)), posterior
