"""The denoiser's network: a UNet (Ho et al. 2020, appendix B), with attention where it is asked
for. What it puts out is eps or v; models/diffusion.py makes eps_hat of it.

Same structure and state-dict keys as diffusers' UNet2DModel, whose attention_head_dim is c0.
B: batch, C: in_channels, H, W: height and width, c0, c1, ..: the widths `channels`.

What is asked for, the condition c, is a vector that is added to that of t: of classes int64 (B,),
their number meaning "none"; of attributes (B, A) in {-1, 0, 1}: without it, unknown, with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from models.blocks import (
    Attention,
    Downsample,
    ResidualBlock,
    Stage,
    Upsample,
    check_widths,
    start_at_zero,
    timestep_embedding,
)
from models.sizes import check_divides, stride

NORM_EPS = 1e-5
EMBEDDING_STD = 0.1  # of what is asked for, in an untrained network; that of t has about as much


@dataclass(frozen=True)
class UNetConfig:
    """channels: width per level, the first at full size, each further one at half the last.

    blocks: residual blocks per level on the way down (one more on the way up). groups: of every
    GroupNorm. dropout: probability, inside the residual blocks. attention_levels: those with
    attention after each block, 0 for the finest, in order; with the last, the middle has it too.
    classes, attributes: how many can be asked for, of one kind only.
    """

    in_channels: int
    channels: tuple[int, ...]
    blocks: int
    groups: int
    dropout: float
    attention_levels: tuple[int, ...] = ()
    classes: int = 0
    attributes: int = 0


class UNet(nn.Module):
    """forward(xt, t, c) -> eps_hat or v_hat. stride = 2^(levels - 1) divides H and W."""

    down_blocks: Any  # ModuleLists of Stage, whose items a type checker cannot know
    up_blocks: Any

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        check_widths(config.channels, config.groups, config.blocks)
        check_attention(config)
        self.config = config
        self.stride = stride(config.channels)

        # All blocks are alike but for their widths.
        widths, last = config.channels, len(config.channels) - 1
        emb_channels = 4 * widths[0]

        def resnet(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, config.groups, NORM_EPS, emb_channels, config.dropout)

        def attentions(level: int, blocks: Iterable) -> list[nn.Module]:
            c, levels = widths[level], config.attention_levels
            return [Attention(c, c // widths[0], config.groups, NORM_EPS) for _ in blocks
                    if level in levels]  # fmt: skip

        # t as a vector for every block, and the image as features.
        linear_1 = nn.Linear(widths[0], emb_channels)
        linear_2 = nn.Linear(emb_channels, emb_channels)
        self.time_embedding = nn.ModuleDict({"linear_1": linear_1, "linear_2": linear_2})
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        # Down: what every block and every downsampler makes is kept as a skip.
        self.down_blocks = nn.ModuleList()
        skips, c = [widths[0]], widths[0]
        for i, width in enumerate(widths):
            resnets: list[nn.Module] = []
            for _ in range(config.blocks):
                resnets.append(resnet(c, width))
                c = width
                skips.append(c)
            downsamplers = [Downsample(c)] if i < last else []
            self.down_blocks.append(Stage(resnets, downsamplers, (), attentions(i, resnets)))
            if i < last:
                skips.append(c)

        # Middle: nothing is kept, nothing comes beside.
        self.mid_block = Stage([resnet(c, c), resnet(c, c)], attentions=attentions(last, range(1)))

        # Up: every block takes the newest skip beside what comes from below.
        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            resnets = []
            for _ in range(config.blocks + 1):
                resnets.append(resnet(c + skips.pop(), width))
                c = width
            upsamplers = [Upsample(c)] if i > 0 else []
            self.up_blocks.append(Stage(resnets, (), upsamplers, attentions(i, resnets)))

        # Back to the image. An untrained network predicts 0: its first loss is the noise's own
        # variance, 1.
        self.conv_norm_out = nn.GroupNorm(config.groups, c, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(c, config.in_channels, 3, padding=1)
        start_at_zero(self.conv_out)
        self._add_conditions(emb_channels)

    def _add_conditions(self, emb_channels: int) -> None:
        """What is asked for as a vector, at first as long as that of t: begun with zeros, rare
        attributes are not learnt in thousands of steps. To ask for nothing adds nothing at first,
        and other weights are the same with and without."""
        classes, attributes = self.config.classes, self.config.attributes
        if classes and attributes:
            raise UserError("a network knows either classes or attributes, not both")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            if classes:
                self.class_embedding = nn.Embedding(classes + 1, emb_channels)
                self.class_embedding.weight.normal_(std=EMBEDDING_STD)[classes] = 0
            if attributes:
                self.attribute_embedding = nn.Linear(attributes, emb_channels, bias=False)
                self.attribute_embedding.weight.normal_(std=EMBEDDING_STD)

    def nothing(self, n: int) -> torch.Tensor:
        """The condition c of n samples of which nothing is asked."""
        device = self.conv_in.weight.device
        if self.config.classes:
            return torch.full((n,), self.config.classes, device=device)
        return torch.zeros(n, self.config.attributes, device=device)

    def forward(
        self, xt: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None = None
    ) -> torch.Tensor:
        """xt: (B, C, H, W), t: (B,) in 0 .. T-1, c: as above, None: nothing is asked -> eps_hat or
        v_hat: (B, C, H, W).

        Raises UserError when H or W is not a multiple of `stride`.
        """
        height, width = xt.shape[-2:]
        check_divides(height, width, self.stride)

        # fmt: off
        # What t is, and what is asked for, for all blocks.
        emb = timestep_embedding(t, self.config.channels[0])        # (B, c0)
        emb = self.time_embedding["linear_1"](emb)                  # (B, 4 c0)
        emb = self.time_embedding["linear_2"](F.silu(emb))          # (B, 4 c0)
        if self.config.classes:
            emb = emb + self.class_embedding(self.nothing(len(xt)) if c is None else c)
        if self.config.attributes and c is not None:
            emb = emb + self.attribute_embedding(c.to(emb.dtype))   # exact: -1, 0, 1

        # Down, keeping what the way up needs beside it.
        h = self.conv_in(xt)                                        # (B, c0, H, W)
        skips = [h]
        for stage in self.down_blocks:                              # in level i: (B, ci, H/2^i, ..)
            for resnet, attend in zip(stage.resnets, stage.attentions, strict=True):
                h = attend(resnet(h, emb))
                skips.append(h)
            for downsample in stage.downsamplers:
                h = downsample(h)
                skips.append(h)

        # The middle, where a pixel sees most of the image.
        h = self.mid_block(h, emb)                                  # (B, c_last, H/.., W/..)

        # Up: every block takes the newest skip that is left, which has its own size.
        for stage in self.up_blocks:
            for resnet, attend in zip(stage.resnets, stage.attentions, strict=True):
                h = attend(resnet(torch.cat([h, skips.pop()], dim=1), emb))
            for upsample in stage.upsamplers:
                h = upsample(h)

        # Back to the channels of xt.
        return self.conv_out(F.silu(self.conv_norm_out(h)))         # (B, C, H, W)
        # fmt: on


def check_attention(config: UNetConfig) -> None:
    """Raise UserError unless attention_levels are levels in order, whose widths make heads of c0
    channels."""
    levels, widths = config.attention_levels, config.channels
    if list(levels) != sorted({*levels} & {*range(len(widths))}):
        raise UserError(f"attention is at levels from 0 to {len(widths) - 1}, not at {levels}")
    if bad := [widths[level] for level in levels if widths[level] % widths[0]]:
        raise UserError(f"attention needs widths that are multiples of {widths[0]}, got {bad[0]}")
