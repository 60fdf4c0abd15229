"""The ranges of pixels: uint8 on disk, [-1, 1] for the networks, [0, 1] for the eye.

All functions work value by value on tensors of any shape and leave the device as it is.
"""

import torch


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]; the inverse of to_uint8."""
    return images.float() / 127.5 - 1


def to_display(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1], where values outside are clamped -> float32 in [0, 1] for the eye."""
    return (x.float() / 2 + 0.5).clamp(0, 1)


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1], where values outside are clamped -> uint8; the inverse of to_pixels."""
    return (to_display(x) * 255).round().to(torch.uint8)
