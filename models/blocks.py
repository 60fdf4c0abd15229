"""The parts that UNet and autoencoder share, in the structure of diffusers.

B: batch, C: channels, H, W: height and width at the block, E: width of the time embedding.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoids of t: (B,) -> (B, dim), cosines first. Vaswani et al. 2017, section 3.5."""
    half = dim // 2
    k = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(-math.log(10000) * k / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + embedding))); a 1x1 shortcut where widths differ.

    emb_channels None makes a block without a time embedding (the autoencoder's). The second
    convolution starts at zero, so that an untrained block is its shortcut (Ho et al. 2020's code).
    """

    def __init__(
        self, c_in: int, c_out: int, groups: int, eps: float, emb_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        if emb_channels is not None:
            self.time_emb_proj = nn.Linear(emb_channels, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        start_at_zero(self.conv2)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """x: (B, c_in, H, W), emb: (B, E) -> (B, c_out, H, W)."""
        # fmt: off
        h = self.conv1(F.silu(self.norm1(x)))                       # (B, c_out, H, W)
        if emb is not None:
            h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))         # (B, c_out, H, W)
        return self.conv_shortcut(x) + h
        # fmt: on


class Attention(nn.Module):
    """out(attention among all positions of norm(x)) + x, in heads of C / heads channels (Vaswani et
    al. 2017, section 3.2). It starts as x alone, like a residual block.

    scaled_dot_product_attention takes memory for the positions, not for all pairs of them.
    """

    def __init__(self, channels: int, heads: int, groups: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        start_at_zero(self.to_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same shape."""
        # fmt: off
        h = self.group_norm(x.flatten(2)).mT                        # (B, HW, C)
        q, k, v = (
            to(h).unflatten(2, (self.heads, -1)).transpose(1, 2)    # (B, heads, HW, C/heads)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.to_out[0](h.transpose(1, 2).flatten(2))            # (B, HW, C)
        return h.mT.reshape(x.shape) + x                            # (B, C, H, W)
        # fmt: on


def start_at_zero(layer: nn.Module) -> None:
    """Set all weights to 0; no random number is drawn for it."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)


class Downsample(nn.Module):
    """3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H/2, W/2).

    The UNet pads all around; the autoencoder (pad_end) only below and on the right.
    """

    def __init__(self, channels: int, pad_end: bool = False) -> None:
        super().__init__()
        self.pad_end = pad_end
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if pad_end else 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """One resolution: residual blocks, then at most one resampler (both lists run in order).

    attentions: one after each of the first blocks; the others are followed by none.
    """

    def __init__(
        self, resnets: Iterable[nn.Module], downsamplers: Iterable[nn.Module] = (),
        upsamplers: Iterable[nn.Module] = (), attentions: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        nothing = [nn.Identity() for _ in self.resnets[len(attentions) :]]
        self.attentions = nn.ModuleList([*attentions, *nothing])
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, h: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """Without skips (the autoencoder, and the UNet's middle)."""
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            h = attend(resnet(h, emb))
        for resample in [*self.downsamplers, *self.upsamplers]:
            h = resample(h)
        return h


def norm_groups(width: int) -> int:
    """Groups of a norm for networks whose widths are multiples of `width`: 16 channels in each.

    8 where 16 does not divide the width. Measured on a CPU in bf16 and channels_last: with groups
    of 8 the backward pass takes 6 to 8 times as long, and with 24 it is slow too.
    """
    return width // (8 if width % 16 else 16)


def check_widths(channels: Sequence[int], groups: int, blocks: int) -> None:
    """Raise UserError unless there is a level, a block, and groups divides every width."""
    if not channels or min(channels) < 1 or blocks < 1 or groups < 1:
        raise UserError(f"needs positive widths and blocks, got {channels} and {blocks}")
    bad = [c for c in channels if c % groups]
    if bad:
        raise UserError(f"widths must be multiples of {groups} (groups of a norm), got {bad[0]}")
