"""A small classifier of MNIST's digits, whose features measure how alike two sets of digits are."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ClassifierConfig:
    """channels: width of each convolution; all but the first halve the size. features: of an
    image; classes: number of labels."""

    image_channels: int
    channels: tuple[int, ...]
    features: int
    classes: int


class Classifier(nn.Module):
    """x: (B, C, H, W) in [-1, 1] -> a logit per class, (B, classes); features(x): (B, features)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        body: list[nn.Module] = []
        c = config.image_channels
        for i, width in enumerate(config.channels):
            stride = 1 if i == 0 else 2
            body += [nn.Conv2d(c, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            c = width
        self.body = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.to_features = nn.Linear(4 * c, config.features)
        self.head = nn.Linear(config.features, config.classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.to_features(self.body(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))
