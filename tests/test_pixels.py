"""Pixels to [-1, 1] and back."""

import torch

from data.pixels import to_display, to_pixels, to_uint8


def test_pixels_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    x = to_pixels(values)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), values)
    torch.testing.assert_close(to_display(x), values / 255)
    torch.testing.assert_close(x, -x.flip(0))  # symmetric about 0


def test_values_outside_are_clamped():
    x = torch.tensor([-9.0, -1.01, 1.01, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 255, 255]
    assert to_display(x).tolist() == [0, 0, 1, 1]
